"""Stand-in for Azure Container Apps, on the Resource Manager and the login of the sandbox's Azure stand-in.

Held to azure-mgmt-appcontainers' request builders and models by ``tests/platforms/azure/test_container_apps.py``. What
it does on its own initiative, because no contract says it:

- A revision is ready at once when its course is over; what follows the latest revision then moves to it. One that fails
  is Unhealthy and Failed, and its replica tells why; the app is then ``provisioningState: Failed``.
- A PATCH merges as RFC 7396 has it; a template that changes asks for a suffix that no revision has.
- Weights that are not 100 together, and names of revisions that are not there, are refused; so is traffic to an
  inactive revision.
- With mode Single, a revision that is ready deactivates the others.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from airflow_multideploy.sandbox._azure_site import iso
from airflow_multideploy.sandbox.azure_web_app import GROUP, SUBSCRIPTION, AzureWebAppStandIn, Refused
from airflow_multideploy.sandbox.world import Course, Live, World

QUICKSTART = "mcr.microsoft.com/k8se/quickstart:latest"
_APP = re.compile(
    r"^/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/Microsoft\.App/containerApps/"
    r"(?P<name>[^/]+)(?P<rest>/.*)?$",
    re.I,
)
_SUFFIX = re.compile(r"^[a-z0-9](?:-?[a-z0-9])*$")

Json = dict[str, Any]


@dataclass
class Revision:
    """One revision; ``course`` None: it has always run."""

    template: Json
    course: Course | None = None
    at: float = field(default_factory=World.now)
    active: bool = True
    states: tuple[str, str, str] | None = None
    """Of provisioning, health and running; None: as the course goes."""

    @property
    def done(self) -> bool:
        return self.course is None or self.course.done(World.now() - self.at)

    @property
    def ready(self) -> bool:
        return self.done and not self.failed

    @property
    def failed(self) -> bool:
        return self.course is not None and self.course.failed(World.now() - self.at)


@dataclass
class App:
    """One container app."""

    name: str
    mode: str = "Single"
    traffic: list[Json] = field(default_factory=lambda: [{"latestRevision": True, "weight": 100}])
    revisions: dict[str, Revision] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    latest: str = ""

    @property
    def ready(self) -> str | None:
        """Newest revision that became ready."""
        return next((name for name in reversed(self.revisions) if self.revisions[name].ready), None)

    def shares(self) -> dict[str, int]:
        """Weight by revision."""
        shares: dict[str, int] = {}
        for entry in self.traffic:
            name = self.ready if entry.get("latestRevision") else entry["revisionName"]
            if name:
                shares[name] = shares.get(name, 0) + entry.get("weight", 0)
        return shares


def template(image: str, suffix: str | None = None) -> Json:
    """As the portal makes one."""
    env = [{"name": "COLOUR", "value": "green"}, {"name": "DATABASE", "secretRef": "database"}]
    resources = {"cpu": 0.5, "memory": "1Gi", "ephemeralStorage": "2Gi"}
    return {
        **({"revisionSuffix": suffix} if suffix else {}),
        "containers": [{"name": "shop", "image": image, "env": env, "resources": resources}],
        "scale": {"minReplicas": 1, "maxReplicas": 3},
    }


class AzureContainerAppsStandIn(AzureWebAppStandIn):
    """Resource Manager and Entra behind one TLS address."""

    kind = "azure_container_apps"
    api_version = "2026-07-01"

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        super().__init__(world, port=port, secret=secret)
        self.apps: dict[str, App] = {}

    def target(self, resource: str) -> Json:
        return {"platform": self.kind, "resource_group": GROUP, "app": resource}

    def seed(self, resource: str, image: str | None) -> None:
        with self._lock:
            app = self.apps[resource] = App(resource)
            app.revisions[f"{resource}--abc1234"] = Revision(template(image or QUICKSTART))
            app.latest = f"{resource}--abc1234"

    def meddle(self, resource: str, image: str) -> None:
        with self._lock:
            app, name = self.apps[resource], f"{resource}--hand{len(self.apps[resource].revisions)}"
            app.revisions[name] = Revision(template(image, name.partition("--")[2]))
            app.latest, app.traffic = name, [{"latestRevision": True, "weight": 100}]

    def live(self, resource: str) -> Live:
        with self._lock:
            app = self.apps[resource]
            shares = app.shares()
            name = max(shares, key=lambda key: shares[key]) if shares else None
            settled = all(revision.done for revision in app.revisions.values())
            return Live(image=_image(app.revisions[name].template) if name else None, revision=name, settled=settled)

    def revisions(self, resource: str) -> list[str]:
        return list(self.apps[resource].made)

    # --- HTTP --------------------------------------------------------------------------------------------------------

    def _resource(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Json | str | None]:
        found = _APP.match(path)
        if not found or found["subscription"] != SUBSCRIPTION or found["group"].lower() != GROUP:
            raise Refused(404, "ResourceGroupNotFound", f"The resource group of {path!r} could not be found.")
        app = self.apps.get(found["name"])
        if app is None:
            raise Refused(
                404, "ResourceNotFound", f"The Resource 'Microsoft.App/containerApps/{found['name']}' was not found."
            )
        self._settle(app)
        rest = (found["rest"] or "").split("/")[1:]
        if not rest and method == "GET":
            return 200, self._document(app)
        if not rest and method == "PATCH":
            return self._patch_app(app, body)
        if rest == ["revisions"] and method == "GET":
            return 200, {"value": [self._revision(app, name) for name in app.revisions]}
        if rest[:1] == ["revisions"] and len(rest) in (2, 3):
            return self._of_revision(method, app, *rest[1:])
        raise Refused(404, "NotFound", f"{method} {path} is no operation of this stand-in.")

    def _of_revision(self, method: str, app: App, name: str, operation: str = "") -> tuple[int, Json | None]:
        revision = app.revisions.get(name)
        if revision is None:
            raise Refused(404, "RevisionNotFound", f"Revision {name!r} was not found.")
        if (method, operation) == ("GET", ""):
            return 200, self._revision(app, name)
        if (method, operation) == ("GET", "replicas"):
            return 200, {"value": [self._replica(app, name)] if revision.active else []}
        if (method, operation) in (("POST", "activate"), ("POST", "deactivate")):
            if operation == "deactivate" and app.shares().get(name):
                raise Refused(400, "RevisionHasTraffic", f"Revision {name!r} has traffic and cannot be deactivated.")
            revision.active = operation == "activate"
            return 200, None
        raise Refused(404, "NotFound", f"{method} {operation} is no operation of this stand-in.")

    def _patch_app(self, app: App, body: bytes) -> tuple[int, Json | None]:
        if self.busy:
            self.busy -= 1
            text = "because there is an active provisioning operation in progress."
            raise Refused(409, "ContainerAppOperationInProgress", f"Cannot modify a container app '{app.name}' {text}")
        try:
            changes = json.loads(body)["properties"]
            configuration, new = changes.get("configuration") or {}, changes.get("template")
            traffic = (configuration.get("ingress") or {}).get("traffic", app.traffic)
            suffix = new["revisionSuffix"] if new else None
            image = _image(new) if new else ""
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, "InvalidRequestContent", f"The request content was invalid: {error!r}") from None
        if "secrets" in configuration:
            raise Refused(400, "ContainerAppSecretInvalid", "Values of secrets are required.")
        if new and (not _SUFFIX.match(suffix or "") or " " in image):
            raise Refused(
                400, "InvalidParameterValueInContainerTemplate", f"{suffix!r} or {image!r} has an invalid value."
            )
        if new and f"{app.name}--{suffix}" in app.revisions:
            raise Refused(400, "RevisionSuffixInUse", f"A revision with suffix {suffix!r} exists.")
        self._check_traffic(app, traffic)
        app.mode = configuration.get("activeRevisionsMode", app.mode)
        if app.mode == "Multiple":
            app.traffic = traffic
        if new:
            name = f"{app.name}--{suffix}"
            merged = {**app.revisions[app.latest].template, **new}
            app.revisions[name] = Revision(merged, self.world.course(self.kind, app.name), self.world.now())
            app.latest = name
            app.made.append(name)
        self._settle(app)
        return 202, None

    def _check_traffic(self, app: App, traffic: list[Json]) -> None:
        named = [entry["revisionName"] for entry in traffic if not entry.get("latestRevision")]
        if sum(entry.get("weight", 0) for entry in traffic) != 100:
            raise Refused(400, "InvalidTrafficWeights", "The sum of traffic weights must be 100.")
        if wrong := [name for name in named if name not in app.revisions or not app.revisions[name].active]:
            raise Refused(400, "ContainerAppInvalidTrafficRevision", f"Revision {wrong[0]!r} is not active.")

    def _settle(self, app: App) -> None:
        if app.mode == "Single" and app.ready == app.latest:
            for name, revision in app.revisions.items():
                revision.active = name == app.latest

    # --- documents ---------------------------------------------------------------------------------------------------

    def _address(self, app: App, *rest: str) -> Json:
        path = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/containerApps/{app.name}"
        kinds = ["Microsoft.App/containerApps", *rest[::2]]
        return {"id": "/".join([path, *rest]), "name": rest[-1] if rest else app.name, "type": "/".join(kinds)}

    def _document(self, app: App) -> Json:
        latest = app.revisions[app.latest]
        ingress = {"fqdn": f"{app.name}.example.com", "external": True, "targetPort": 80, "traffic": app.traffic}
        state = "Failed" if latest.failed else "Succeeded" if latest.done else "InProgress"
        properties = {
            "provisioningState": state,
            "runningStatus": "Running",
            "latestRevisionName": app.latest,
            "latestReadyRevisionName": app.ready,
            "configuration": {
                "activeRevisionsMode": app.mode,
                "ingress": ingress,
                "secrets": [{"name": "database"}],  # the value is redacted
            },
            "template": latest.template,
        }
        if app.ready is None:
            del properties["latestReadyRevisionName"]
        return {**self._address(app), "location": "West Europe", "properties": properties}

    def _revision(self, app: App, name: str) -> Json:
        revision = app.revisions[name]
        states = ("Provisioning", "None", "Processing")
        if revision.done:
            states = (
                ("Provisioned", "Unhealthy", "Failed") if revision.failed else ("Provisioned", "Healthy", "Running")
            )
        properties = {
            "createdTime": iso(revision.at),
            "template": revision.template,
            "active": revision.active,
            "replicas": 1 if revision.active else 0,
            "trafficWeight": app.shares().get(name, 0),
            **dict(zip(("provisioningState", "healthState", "runningState"), revision.states or states, strict=True)),
        }
        return {**self._address(app, "revisions", name), "properties": properties}

    def _replica(self, app: App, name: str) -> Json:
        revision = app.revisions[name]
        state = "NotRunning" if revision.failed else "Running" if revision.ready else "Unknown"
        container: Json = {"name": "shop", "ready": revision.ready, "restartCount": 0, "runningState": "Running"}
        if revision.failed:
            container |= {"restartCount": 5, "runningState": "Terminated"}
            container["runningStateDetails"] = f"Container terminated: {revision.course.reason}"
        properties = {"createdTime": iso(revision.at), "runningState": state, "containers": [container]}
        return {**self._address(app, "revisions", name, "replicas", f"{name}-7f9c"), "properties": properties}


def _image(document: Json) -> str:
    return str(document["containers"][0]["image"])
