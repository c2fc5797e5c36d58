"""One site of Azure App Service: what its kinds of release have in common, whatever a site is told to run.

A marker of ours stands beside what the site runs and is written with it, so that neither can be there without the
other. Values of others there are read, merged and written back unseen, as they may be secrets.

Resource Manager accepts what to run before anything has started, and the old container goes on answering until the new
one does. So a site counts as healthy when the app itself tells the release's version, or when Azure lists new
containers on every instance; without either, when the app answers after the time that Azure gives a container to start,
and then unverified.

Microsoft.Web has no concurrency token (no operation of API version 2025-05-01 takes If-Match): what is live is read
directly before each write, and ``observe`` reads it again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar

from pydantic import AfterValidator, Field

from airflow_multideploy import addresses
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.azure import HEALTH, ArmApi, Call, Health, Steps
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.azure.site_judge import (
    Live,
    Looks,
    Marker,
    Rules,
    containers,
    disagrees,
    image_of,
    judge,
    last_stamp,
    read_marker,
)
from airflow_multideploy.release.contract import Handle, Observation, Platform, Release, Snapshot, State
from airflow_multideploy.strict import Seconds

PLACEHOLDERS = (
    "mcr.microsoft.com/appsvc/staticsite",
    "mcr.microsoft.com/azure-functions/dotnet:4-appservice-quickstart",
)
"""Images that Azure's portal puts into a new site until the first one is deployed."""

AGAIN = 30.0
"""Seconds until the next look at a site that is starting, when a snapshot is to be taken."""


class AzureSiteConfig(TargetConfig):
    """What every site has, whatever it is told to run.

    :param resource_group: the site's.
    :param site: name of the site.
    :param subscription_id: None takes ``subscriptionId`` of the Connection's extra.
    :param health_url: complete address of the app's own health or version answer; None: ``https://``, the site's
        default host name and ``health_path``.
    :param health_path: path of that answer; not used with ``health_url``.
    :param version_json_path: where the health answer tells what runs, such as ``build.version``; it has to equal the
        release's version, image or digest. The best evidence there is: configure it when the app can tell.
    :param version_header: the same, told in a response header.
    :param settle: seconds after a write from which a 2xx counts although nothing tells old and new container apart;
        the default is a little over the 230 s after which Azure gives up on a container that does not start.
    """

    resource_group: Annotated[str, Field(pattern=r"^[-\w.()]{1,90}$")]
    site: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,59}$")]
    subscription_id: Annotated[str, Field(min_length=1)] | None = None
    health_url: Annotated[str, AfterValidator(addresses.written)] | None = None
    health_path: Annotated[str, Field(pattern=r"^/\S*$")] = "/"
    version_json_path: Annotated[str, Field(min_length=1)] | None = None
    version_header: Annotated[str, Field(min_length=1)] | None = None
    settle: Seconds = 240.0

    @property
    def rules(self) -> Rules:
        """How an answer of the app is judged."""
        return Rules(self.version_json_path, self.version_header, self.settle)


S = TypeVar("S", bound=AzureSiteConfig)


class Told(NamedTuple):
    """What a site is told to run.

    :param fx: that, fit to be shown.
    :param kept: the values among which our marker stands; may be other people's secrets.
    :param at: the platform's clock.
    """

    fx: str
    kept: Mapping[str, str]
    at: datetime
    workers: int | None = None
    windows: bool = False


class _Before(NamedTuple):
    """What was to be seen directly before a write."""

    containers: list[str]
    log: str | None
    """Time stamp of the last line of the container log; None when the log cannot be read."""


class AzureSite(Platform[S]):
    """Releases into one site, and back."""

    linux: ClassVar[bool] = False
    """Whether it takes a Linux site."""

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._api.run(self._snapshot())

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`. With ``release.force``, an image that is live already is pulled again by a restart."""
        return self._api.run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        return self._api.run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        return await self._api.arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return self._api.run(self._rollback(release, snapshot, handle))

    def console_url(self, handle: Handle | None = None) -> str | None:
        subscription = self.config.subscription_id or (handle and handle.data.get("subscription"))
        if not subscription:
            return None
        return (
            f"https://portal.azure.com/#resource/subscriptions/{subscription}/resourceGroups/"
            f"{self.config.resource_group}/providers/Microsoft.Web/sites/{self.config.site}/appServices"
        )

    @cached_property
    def _api(self) -> ArmApi:
        config, sdk = self.config, ("azure.mgmt.web", "WebSiteManagementClient")
        scope = (config.resource_group, config.site)
        return ArmApi(self, sdk, "web_apps", scope, f"site {config.site!r}", config.subscription_id)

    # --- steps: decisions and calls, without I/O ---------------------------------------------------------------------

    @abstractmethod
    def _wanted(self, release: Release) -> str:
        """What the site has to be told to run for this release."""

    @abstractmethod
    def _read(self) -> Steps[Told]:
        """What the site is told to run, and all values among which our marker stands."""

    @abstractmethod
    def _write(self, live: Live, marker: Marker) -> Steps[None]:
        """Tell the site to run ``marker.fx``, and leave the marker, in one write."""

    def _glance(self) -> Steps[tuple[str, datetime]]:
        """What the site is told to run, and when that was; all that a look at a rollout needs of it."""
        told = yield from self._read()
        return told.fx, told.at

    def _image(self, fx: str) -> str | None:
        """The image that this means, None when it means none that a release could have put there."""
        return image_of(fx)

    def _written(self) -> Steps[None]:
        """What has to follow a write, also one of an earlier attempt."""
        return _nothing()

    def _live(self) -> Steps[Live]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/get"""
        site = (yield Call("get")).value
        told = yield from self._read()
        about = site["properties"]
        if self.linux and (told.windows or about.get("reserved") is False):
            self._api.refuse("runs on Windows; this platform releases images into Linux sites")
        return Live(
            fx=told.fx,
            marker=read_marker(told.kept),
            metadata=told.kept,
            state=about.get("state") or "",
            host=about.get("defaultHostName") or "",
            subscription=str(site.get("id") or "").partition("/subscriptions/")[2].partition("/")[0],
            workers=told.workers,
            at=told.at.isoformat(),
        )

    def _snapshot(self) -> Steps[Snapshot]:
        live = yield from self._live()
        instances = (yield Call("list_instance_identifiers")).value
        health = yield from self._health(live.host) if self.config.rules.tells_version else _nothing()
        image = self._image(live.fx)
        exists = bool(live.fx) and not (image or "").startswith(PLACEHOLDERS)
        told = self.config.rules.told(health) if health else None
        if disagrees(told, live.fx):
            raise self.error(
                f"site {self.config.site!r} is told to run {live.fx!r}, but tells {told!r}: a snapshot of a "
                "half-deployed site is none: waiting for its start; or set it back to what it tells",
                retryable=True,
                retry_after=AGAIN,
            )
        return Snapshot(
            exists=exists,
            revision=live.fx if exists else None,
            image=image if exists else None,
            data={
                "fx": live.fx,
                "marker": live.marker.dump() if live.marker else None,
                "containers": list(containers(instances)),
                "state": live.state,
                "workers": live.workers,
                "told": told,
            },
        )

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        live = yield from self._live()
        ours, before = self._wanted(release), str(snapshot.data["fx"])
        marker = live.marker if live.marker and live.marker.release_id == release.release_id else None
        if marker and marker.action == "deploy" and live.fx == ours:
            if marker.dump() != snapshot.data.get("marker"):
                yield from self._written()
            return self._handle(live, marker, release, snapshot)  # an earlier attempt's write, its answer was lost
        if marker and marker.action == "rollback" and marker.dump() != snapshot.data.get("marker"):
            raise Drift(
                f"release {release.release_id} was rolled back here meanwhile; start a new one", target=self.name
            )
        if live.fx not in (before, ours) and not release.force:
            raise self._drift(live, f"{before!r} as in the snapshot")
        if live.fx == ours and not release.force:
            marker = Marker(release.release_id, "deploy", ours, None, (), None)
            handle = self._handle(live, marker, release, snapshot).model_copy(update={"changed": False})
            if (yield from self._look(handle)).state is State.HEALTHY:
                return handle
        seen = yield from self._before()
        marker = Marker(release.release_id, "deploy", ours, live.at, tuple(seen.containers), seen.log)
        if live.fx == ours:
            yield Call("restart")  # the same image again: a PATCH that changes nothing would not pull it
        yield from self._write(live, marker)
        yield from self._written()
        return self._handle(live, marker, release, snapshot)

    def _rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Steps[Handle]:
        live = yield from self._live()
        ours, before = self._wanted(release), str(snapshot.data["fx"])
        marker = live.marker if live.marker and live.marker.release_id == release.release_id else None
        if live.fx == before:
            if marker and marker.action == "rollback":
                under_way = self._handle(live, marker, release, snapshot)
                if (yield from self._look(under_way)).state is not State.FAILED:
                    return under_way
                marker = yield from self._mark_back(release, snapshot, live)
                yield Call("restart")  # the way back itself failed; a PATCH that changes nothing would not try again
                yield from self._write(live, marker)
                yield from self._written()
                return self._handle(live, marker, release, snapshot)
            marker = Marker(release.release_id, "rollback", before, None, (), None)
            back = self._handle(live, marker, release, snapshot)
            return back.model_copy(update={"changed": False})
        unmarked = (live.marker.dump() if live.marker else None) == snapshot.data.get("marker")
        if live.fx != ours or not (marker or (handle and handle.changed and unmarked)):
            raise self._drift(live, f"{ours!r} of release {release.release_id}, or {before!r} as in the snapshot")
        marker = yield from self._mark_back(release, snapshot, live)
        yield from self._write(live, marker)
        yield from self._written()
        return self._handle(live, marker, release, snapshot)

    def _mark_back(self, release: Release, snapshot: Snapshot, live: Live) -> Steps[Marker]:
        seen = yield from self._before()
        old = tuple(name for name in seen.containers if name not in _names(snapshot))
        return Marker(release.release_id, "rollback", str(snapshot.data["fx"]), live.at, old, seen.log)

    def _before(self) -> Steps[_Before]:
        """What must be gone, or is no news, after a write."""
        instances = (yield Call("list_instance_identifiers")).value
        log = yield from self._log()
        return _Before(list(containers(instances)), None if log is None else last_stamp(log))

    def _look(self, handle: Handle) -> Steps[Observation]:
        about = (yield Call("get")).value.get("properties") or {}
        fx, at = yield from self._glance()
        host, state = str(about.get("defaultHostName") or ""), str(about.get("state") or "")
        return (yield from self._judged(handle, fx=fx, at=at, host=host, state=state))

    def _judged(self, handle: Handle, *, fx: str, at: datetime, host: str, state: str) -> Steps[Observation]:
        instances, health = [], Health(None, error="not asked")
        if fx and fx == handle.data.get("fx"):
            instances = (yield Call("list_instance_identifiers")).value
            health = yield from self._health(host)
        looks = Looks(fx=fx, state=state, instances=instances, health=health, log="", at=at, serves=bool(fx))
        seen = judge(handle, looks, self.config.rules)
        if seen.state is State.PROGRESSING:  # only then does the log matter, and only then is it read
            looks = looks._replace(log=(yield from self._log()))
            seen = judge(handle, looks, self.config.rules)
        return seen

    def _log(self) -> Steps[str | None]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/get-web-site-container-logs

        None: not for us to read.
        """
        try:
            return str((yield Call("get_web_site_container_logs")).value)
        except PlatformError as error:
            if error.retryable:
                raise
            return None  # a role without that permission: failures are then seen at the deadline

    def _health(self, host: str) -> Steps[Health]:
        url = self.config.health_url or f"https://{host}{self.config.health_path}"
        answer: Health = (yield Call(HEALTH, (url,))).value
        return answer

    def _handle(self, live: Live, marker: Marker, release: Release, snapshot: Snapshot) -> Handle:
        """All from documents and the marker, so that a retry on another machine gets the same."""
        names = [name for name in (release.version, release.image, release.digest) if name]
        deploy = marker.action == "deploy"
        before = snapshot.data.get("told")
        return Handle(
            action="deploy" if deploy else "rollback",
            revision=marker.fx if deploy else snapshot.revision,
            data={
                "fx": marker.fx,
                "since": marker.since,
                "old": list(marker.old),
                "log": marker.log,
                "expect": list(names) if deploy else ([before] if before else []),
                "reject": [] if deploy or before in names else list(names),
                "state": "Running" if deploy else snapshot.data.get("state"),
                "subscription": live.subscription,
            },
        )

    def _drift(self, live: Live, expected: str) -> Drift:
        found = f"{live.fx!r}" + (f", marked by release {live.marker.release_id}" if live.marker else "")
        return Drift(
            f"site {self.config.site!r} runs {found}, expected {expected}; somebody else deployed there, nothing was "
            "written: look at the site's activity log",
            target=self.name,
        )


def _nothing() -> Steps[None]:
    return None
    yield


def _names(snapshot: Snapshot) -> list[Any]:
    names = snapshot.data.get("containers")
    return names if isinstance(names, list) else []
