"""Stand-ins for what else Azure App Service runs: slots, packages and functions, on the sandbox's sites.

Held to azure-mgmt-web's request builders and models by ``tests/platforms/azure/test_sites_contract.py``. What they do
on their own initiative, because no contract says it:

- A replacement of the app settings restarts a site. Only the new image, or the new package, of a release takes the
  course that the world has for it.
- A swap takes half a rollout's time, and exchanges images, app settings and what serves at one moment. Until then, each
  write to either side is refused with 409.
- A package whose address does not begin with `PACKAGES` is never found, and the site does not start.
- Functions are listed once triggers were synchronised after the last change of the package.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable

from airflow_multideploy.sandbox._azure_site import Site, iso
from airflow_multideploy.sandbox.azure_web_app import AzureWebAppStandIn, Json, Refused
from airflow_multideploy.sandbox.world import Course, Live, World

PACKAGES = "https://releases.blob.core.windows.net/shop"
SETTING = "WEBSITE_RUN_FROM_PACKAGE"
SLOT = "staging"
OTHERS = {"DATABASE_PASSWORD": "others-canary-51c0"}

Operations = dict[tuple[str, str], Callable[[], tuple[int, Json | str | None]]]


class _Settings(AzureWebAppStandIn):
    """Sites with app settings."""

    def _operations(self, site: Site, path: str, query: dict[str, str], body: bytes) -> Operations:
        return {
            **super()._operations(site, path, query, body),
            ("POST", "/config/appsettings/list"): lambda: (200, self._settings_document(site)),
            ("PUT", "/config/appsettings"): lambda: self._put_settings(site, body),
        }

    def _put_settings(self, site: Site, body: bytes) -> tuple[int, Json]:
        self._refuse_when_busy()
        try:
            settings = {str(key): str(value) for key, value in json.loads(body)["properties"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, "BadRequest", f"The request content is invalid: {error!r}") from None
        site.settings = settings
        self._restarted(site)
        return 200, self._settings_document(site)

    def _refuse_when_busy(self) -> None:
        if self.busy:
            self.busy -= 1
            raise Refused(409, "Conflict", "Cannot modify this site because another operation is in progress.")

    def _restarted(self, site: Site) -> None:
        site.begin(Course("succeeds", 0.0), self.world.now())

    def _settings_document(self, site: Site) -> Json:
        name = {
            "id": self._id(site, "/config/appsettings"),
            "name": "appsettings",
            "type": "Microsoft.Web/sites/config",
        }
        return {**name, "properties": dict(site.settings)}


class AzureWebAppPackageStandIn(_Settings):
    """Sites that run from a package."""

    kind = "azure_web_app_package"

    def target(self, resource: str) -> Json:
        return {**super().target(resource), "package": f"{PACKAGES}/{resource}-${{version}}.zip"}

    def seed(self, resource: str, image: str | None) -> None:
        with self._lock:
            fx = package(image) if image else ""
            site = self.sites[resource] = Site(resource, fx=fx, serving=fx or None)
            site.settings = {**OTHERS, **({SETTING: fx} if fx else {})}

    def meddle(self, resource: str, image: str) -> None:
        with self._lock:
            site = self.sites[resource]
            site.fx = site.serving = site.settings[SETTING] = package(image)
            site.start, site.generation = None, site.generation + 2

    def live(self, resource: str) -> Live:
        with self._lock:
            site = self._settled(self.sites[resource])
            return Live(image=image_of(site.serving), revision=site.serving, settled=site.start is None)

    def _restarted(self, site: Site) -> None:
        fx = site.settings.get(SETTING, "")
        if fx == site.fx:
            super()._restarted(site)
            return
        site.fx = fx
        if fx:
            site.revisions.append(fx)
        course = self.world.course(self.kind, site.name)
        found = not fx or fx.startswith(PACKAGES)
        site.begin(
            course if found else Course("fails", course.seconds, f"package {fx} was not found"), self.world.now()
        )

    def _app_answer(self, name: str) -> tuple[int, Json | str]:
        status, answer = super()._app_answer(name)
        if isinstance(answer, dict):
            image = image_of(self.sites[name].serving) or ""
            answer = {"status": "ok", "version": image.rpartition(":")[2]}
        return status, answer

    def _config_document(self, site: Site) -> Json:
        document = super()._config_document(site)
        document["properties"]["linuxFxVersion"] = "PYTHON|3.12"
        return document


class AzureFunctionsStandIn(AzureWebAppPackageStandIn):
    """Function apps that run from a package."""

    kind = "azure_functions"

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        super().__init__(world, port=port, secret=secret)
        self.synced: dict[str, str] = {}
        """Package by function app, as of the last synchronisation of its triggers."""

    def _operations(self, site: Site, path: str, query: dict[str, str], body: bytes) -> Operations:
        return {
            **super()._operations(site, path, query, body),
            ("POST", "/syncfunctiontriggers"): lambda: self._sync(site),
            ("GET", "/functions"): lambda: (200, {"value": self._functions(site)}),
        }

    def _sync(self, site: Site) -> tuple[int, None]:
        self.synced[site.name] = site.fx
        return 204, None

    def _functions(self, site: Site) -> list[Json]:
        if not site.fx or self.synced.get(site.name) != site.fx:
            return []
        name = {"id": self._id(site, "/functions/order"), "name": f"{site.name}/order"}
        properties = {"language": "python", "isDisabled": False}
        return [{**name, "type": "Microsoft.Web/sites/functions", "properties": properties}]

    def meddle(self, resource: str, image: str) -> None:
        super().meddle(resource, image)
        self.synced[resource] = package(image)

    def seed(self, resource: str, image: str | None) -> None:
        super().seed(resource, image)
        self.synced[resource] = self.sites[resource].fx


class AzureWebAppSlotStandIn(_Settings):
    """Sites with a slot; the slot of ``shop`` is kept as ``shop-staging``, as its host name has it."""

    kind = "azure_web_app_slot"

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        super().__init__(world, port=port, secret=secret)
        self.swaps: dict[str, float] = {}
        """When a swap that is under way will be done, by site."""
        self.lands_after: int | None = None
        """Number of calls after which a swap under way is done, whatever the time."""
        self.swapped: dict[str, float] = {}

    def target(self, resource: str) -> Json:
        slot = f"{self.url}/apps/{resource}-{SLOT}/health"
        return {**super().target(resource), "slot": SLOT, "slot_health_url": slot}

    def seed(self, resource: str, image: str | None) -> None:
        super().seed(resource, image)
        super().seed(f"{resource}-{SLOT}", "registry.example.com/shop:0.9.0")
        for name in (resource, f"{resource}-{SLOT}"):
            self.sites[name].settings = dict(OTHERS)

    def meddle(self, resource: str, image: str) -> None:
        with self._lock:  # after a swap that is under way: Azure would refuse it before
            self.swaps = dict.fromkeys(self.swaps, self.world.now())
            self._settled(self.sites[resource])
            super().meddle(resource, image)

    def live(self, resource: str) -> Live:
        live = super().live(resource)
        settled = live.settled and resource not in self.swaps
        return Live(image=live.image, revision=live.revision, settled=settled)

    def revisions(self, resource: str) -> list[str]:
        return [fx for name in (resource, f"{resource}-{SLOT}") for fx in self.sites[name].revisions]

    def _settled(self, site: Site) -> Site:
        name = site.name.removesuffix(f"-{SLOT}")
        if (done := self.swaps.get(name)) is not None and done <= self.world.now():
            del self.swaps[name]
            self.swapped[name] = done
            one, two = self.sites[name], self.sites[f"{name}-{SLOT}"]
            for both in (one, two):
                both.settle(done)
            for what in ("fx", "serving", "settings", "generation", "start"):
                mine, theirs = getattr(one, what), getattr(two, what)
                setattr(one, what, theirs)
                setattr(two, what, mine)
        return super()._settled(site)

    def _resource(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Json | str | None]:
        busy = set(self.swaps)  # a call that comes while a swap lands came while it was under way
        if self.lands_after is not None:
            self.swaps = dict.fromkeys(self.swaps, math.inf if self.lands_after else self.world.now())
            self.lands_after = self.lands_after - 1 if self.lands_after else None
        for site in list(self.sites.values()):
            self._settled(site)
        name = re.search(r"/sites/([^/]+)", path)
        if method != "GET" and not path.endswith(("/list", "/containerlogs")) and name and name[1] in busy:
            raise Refused(409, "Conflict", "Cannot modify this site because another operation is in progress.")
        return super()._resource(method, re.sub(r"/slots/([^/]+)", r"-\1", path), query, body)

    def _operations(self, site: Site, path: str, query: dict[str, str], body: bytes) -> Operations:
        return {
            **super()._operations(site, path, query, body),
            ("POST", "/slotsswap"): lambda: self._swap(site, body),
        }

    def _swap(self, site: Site, body: bytes) -> tuple[int, None]:
        self._refuse_when_busy()
        slot = self.sites.get(f"{site.name}-{json.loads(body)['targetSlot']}")
        if slot is None or (slot.fx and self._settled(slot).serving is None):
            raise Refused(409, "Conflict", "Cannot swap: the slot did not respond to its warm-up.")
        self.swaps[site.name] = self.world.now() + self.world.per_platform.get(self.kind, self.world.seconds) / 2
        return 202, None

    def _instances(self, site: Site, path: str, page: int) -> Json:
        parent = site.name.removesuffix(f"-{SLOT}")
        if parent != site.name:
            path = path.replace(f"/{site.name}/", f"/{parent}/slots/{SLOT}/")
        return super()._instances(site, path, page)

    def _id(self, site: Site, rest: str = "") -> str:
        whole, parent = super()._id(site, rest), site.name.removesuffix(f"-{SLOT}")
        return whole if parent == site.name else whole.replace(f"/{site.name}", f"/{parent}/slots/{SLOT}", 1)

    def _site_document(self, site: Site) -> Json:
        document = super()._site_document(site)
        if site.name.endswith(f"-{SLOT}"):
            document |= {"type": "Microsoft.Web/sites/slots", "name": f"{site.name.removesuffix(f'-{SLOT}')}/{SLOT}"}
        elif site.name in self.swapped:
            status = {"sourceSlotName": SLOT, "destinationSlotName": "Production"}
            document["properties"]["slotSwapStatus"] = {"timestampUtc": iso(self.swapped[site.name]), **status}
        return document


def package(image: str) -> str:
    """Address of the package with an image's version."""
    return f"{PACKAGES}/shop-{image.rpartition(':')[2]}.zip"


def image_of(address: str | None) -> str | None:
    """The image with a package's version."""
    found = re.search(r"/shop-([^/]+)\.zip$", (address or "").partition("?")[0])
    return f"registry.example.com/shop:{found[1]}" if found else None
