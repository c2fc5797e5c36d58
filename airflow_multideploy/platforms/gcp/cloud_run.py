"""Google Cloud Run services, through the Admin API v2.

**One write, not three.** A release is a single ``services.patch`` that sets the new template under an explicit
revision name *and* sends 100 % of the traffic to that revision by name. Cloud Run itself moves the traffic only once
the revision is ready; when reconciliation fails, ``trafficStatuses`` "will have the state of the last serving
revision" (description of ``Service.reconciling``), so the old revision keeps serving. Pinning first, updating with
0 % and promoting later would be three writes with two states in between in which a crash leaves a half-done release,
and the promotion would have to be written by whoever waits. The etag makes the single write atomic: it replaces
exactly what was read, or is refused.

**Rollback writes the traffic alone**, back to the revisions that served, by name and with their tags. A target that
said "latest" comes back as the revision it stood for: "latest" would now mean the release that is being undone. The
service's template keeps the undone release, because writing the old one back would create yet another revision. Every
later release starts from that template and replaces image and revision name, so nothing of it comes alive unasked.

The API: https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, JsonValue

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients import google_run as _cloud_run_api
from airflow_multideploy.clients.google_run import by_name, main, routed, serving, short, wanted
from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.gcp.cloud_run_judge import judge
from airflow_multideploy.release.contract import (
    Capabilities,
    Handle,
    Manual,
    Observation,
    Platform,
    Release,
    Snapshot,
    State,
)

if TYPE_CHECKING:
    from google.cloud import run_v2

SMOKE_TAG = "multideploy"
"""The traffic tag that gives the released revision a URL of its own, when a smoke test is asked for."""

Json = dict[str, Any]


class GcpCloudRunConfig(TargetConfig):
    """A Cloud Run service.

    The Connection is a Google Cloud one. Four extras of its own are read beside the provider's: ``transport``
    (``rest``, the default, or ``grpc``: how the worker calls; the triggerer always speaks gRPC), ``api_endpoint`` (base
    URL instead of ``https://run.googleapis.com``), ``grpc_endpoint`` (likewise for gRPC; default: ``api_endpoint``) and
    ``grpc_ca`` (PEM of the authority that signed the gRPC endpoint's certificate).

    :param project: project id.
    :param location: region, such as ``europe-west1``.
    :param service: name of the service; created by the first release when it does not exist.
    :param container: which container gets the image; needed only when there are several and not exactly one has ports.
    :param smoke_path: path on the released revision's own URL that has to answer 2xx, without authentication, before
        the rollout counts as healthy.
    """

    platform: Literal["gcp_cloud_run"]
    project: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9:.-]{0,61}[a-z0-9])?$")]
    location: Annotated[str, Field(pattern=r"^[a-z]+(-[a-z0-9]+)+$")]
    service: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,47}[a-z0-9])?$")]
    container: Annotated[str, Field(min_length=1)] | None = None
    smoke_path: Annotated[str, Field(pattern=r"^/\S*$")] | None = None


def _smoke_url(document: Json | None, path: str) -> str | None:
    statuses = (document or {}).get("trafficStatuses", [])
    uri = next((s.get("uri") for s in statuses if s.get("tag") == SMOKE_TAG), None)
    return f"{uri.rstrip('/')}{path}" if uri else None


def judge_smoke(healthy: Observation, url: str | None, answer: int | str) -> Observation:
    """The observation of a healthy rollout after its smoke test.

    :param answer: HTTP status, or why there was none. A 5xx or no answer may heal: progressing; another one: failed.
    """
    if isinstance(answer, int) and 200 <= answer < 300:
        return healthy
    state = State.FAILED if isinstance(answer, int) and 300 <= answer < 500 else State.PROGRESSING
    said = f"answered {answer}" if isinstance(answer, int) else answer
    return Observation(state=state, reason=f"smoke test: GET {url} {said}", revision=healthy.revision)


# --- the adapter ------------------------------------------------------------------------------------------------------


class GcpCloudRun(Platform[GcpCloudRunConfig]):
    """One Cloud Run service."""

    kind = "gcp_cloud_run"
    config_type = GcpCloudRunConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="traffic by revision name with tags, what serves and its image, the service's uid",
        early_failure="yes: reconciliation ends with failed conditions; their reasons and messages are reported",
        restores="the traffic, to the very revisions that served, by name and with tags. A 'latest' target comes back "
        "pinned to the revision it stood for. Not the template: it stays that of the undone release, without traffic",
        tested_against="stand-in (REST and gRPC), held to Google's discovery document run.v2 and the SDK's protos",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="gcp",
        connection="Type `multideploy_gcp` or `google_cloud_platform`. The service is created by the first release.",
        protocol="One `services.patch` with the etag: a revision named after the release id, and all traffic to it by "
        "name; Cloud Run moves the traffic only when that revision is ready. Back: one patch of the traffic, by "
        "revision name and with its tags. A `latest` target comes back pinned.",
        permissions="`run.services.get`, `run.services.update`, `run.revisions.get`, `run.operations.get`, "
        "`run.services.create` and `run.services.delete` for first-ever releases (*Cloud Run Developer*), and "
        "`iam.serviceAccounts.actAs` on the service's identity.",
        not_undone="the template: it stays that of the undone release, without traffic.",
        example="gcp: {platform: gcp_cloud_run, conn_id: gcp_prod, project: p-1, location: europe-west1, service: "
        "shop}",
    )

    @property
    def _location(self) -> str:
        return f"projects/{self.config.project}/locations/{self.config.location}"

    @property
    def _path(self) -> str:
        return f"{self._location}/services/{self.config.service}"

    def _revision_of(self, release: Release) -> str:
        """The revision's name: the same for one release and service, always; at most 63 characters, the API's limit."""
        name = f"{self.config.service}-{release.release_id}"
        if len(name) <= 63:
            return name
        return f"{self.config.service}-r{hashlib.sha256(release.release_id.encode()).hexdigest()[:11]}"

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        with self.understanding():
            return self._snapshot()

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        with self.understanding():
            return self._deploy(release, snapshot)

    def observe(self, handle: Handle) -> Observation:
        with self.understanding():
            return self._look(handle)

    async def aobserve(self, handle: Handle) -> Observation:
        with self.understanding():
            return await self._alook(handle)

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        with self.understanding():
            return self._rollback(release, snapshot)

    def console_url(self, handle: Handle | None = None) -> str | None:
        where = f"{self.config.location}/{self.config.service}"
        return f"https://console.cloud.google.com/run/detail/{where}/revisions?project={self.config.project}"

    # --- steps

    def _snapshot(self) -> Snapshot:
        _, document = self._read()
        if document is None:
            return Snapshot(exists=False)
        if document.get("deleteTime"):
            raise self.error(f"{self._path} is being deleted; wait for its end", retryable=True)
        serves = serving(document)
        data: dict[str, JsonValue] = {"uid": document.get("uid"), "traffic": by_name(document), "serves": {**serves}}
        return Snapshot(exists=True, revision=main(serves), image=self._image(main(serves)), data=data)

    def _deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        mine = self._revision_of(release)
        live, document = self._read()
        data: dict[str, JsonValue] = {"serves": {mine: 100}}
        if self.config.smoke_path:
            data["smoke"] = self.config.smoke_path
        if live is None or document is None:
            if snapshot.exists:
                raise self._drift("the service was deleted since the snapshot")
            self._create(release.image, mine)
            return Handle(action="deploy", revision=mine, data=data)
        if wanted(document) == {mine: 100}:  # an earlier attempt wrote it, or it was live before this run
            return Handle(action="deploy", revision=mine, changed=snapshot.revision != mine, data=data)
        if not release.force:
            self._still(snapshot, document)
        if not release.force and self._is_live(release, document):
            data["serves"] = {**serving(document)}
            data.pop("smoke", None)
            return Handle(action="deploy", revision=main(serving(document)), changed=False, data=data)
        self._write(release.image, mine, live, document)
        return Handle(action="deploy", revision=mine, data=data)

    def _look(self, handle: Handle) -> Observation:
        _, document = self._read()
        seen = judge(document, handle)
        if seen.state is State.HEALTHY and handle.data.get("smoke"):
            import httpx

            url = _smoke_url(document, str(handle.data["smoke"]))
            try:
                answer: int | str = (
                    httpx.get(url, timeout=_cloud_run_api.CALL_TIMEOUT).status_code if url else "has no URL yet"
                )
            except httpx.HTTPError as error:
                answer = f"got no answer: {type(error).__name__}"
            return judge_smoke(seen, url, answer)
        return seen

    async def _alook(self, handle: Handle) -> Observation:
        live = await self._api.aget()
        document = None if live is None else _cloud_run_api.document(live)
        seen = judge(document, handle)
        if seen.state is State.HEALTHY and handle.data.get("smoke"):
            import httpx

            url = _smoke_url(document, str(handle.data["smoke"]))
            try:
                async with httpx.AsyncClient(timeout=_cloud_run_api.CALL_TIMEOUT) as client:
                    answer: int | str = (await client.get(url)).status_code if url else "has no URL yet"
            except httpx.HTTPError as error:
                answer = f"got no answer: {type(error).__name__}"
            return judge_smoke(seen, url, answer)
        return seen

    def _rollback(self, release: Release, snapshot: Snapshot) -> Handle:
        mine = self._revision_of(release)
        _, document = self._read()
        if not snapshot.exists:
            return self._unmake(mine, document)
        if document is None or document.get("uid") != snapshot.data.get("uid"):
            raise self._drift("the service was deleted, or deleted and created again, since the snapshot")
        back: dict[str, JsonValue] = {"serves": snapshot.data.get("serves")}
        ours = wanted(document) == {mine: 100}
        if not snapshot.revision:
            # The service existed, but nothing ever became ready on it: there is nothing to send the traffic to.
            left = "no revision had ever served before: left as it is"
            return Handle(action="rollback", revision=mine if ours else None, changed=False, data={"left": left})
        if wanted(document) == snapshot.data.get("serves"):
            return Handle(action="rollback", revision=snapshot.revision, changed=False, data=back)
        if not ours:
            raise self._drift(f"the traffic is neither this release's nor the snapshot's: {wanted(document)}")
        self._write_traffic(cast(list[Json], snapshot.data["traffic"]), document)
        return Handle(action="rollback", revision=snapshot.revision, data=back)

    # --- decisions

    def _drift(self, what: str) -> Drift:
        return Drift(f"{self._path}: {what}; nothing was touched. Look at it, then release again", target=self.name)

    def _still(self, snapshot: Snapshot, document: Json) -> None:
        """:raises Drift: the service does not serve what the snapshot says."""
        if not snapshot.exists:
            raise self._drift("the service was created by somebody else since the snapshot")
        if document.get("deleteTime") or document.get("uid") != snapshot.data.get("uid"):
            raise self._drift("the service was deleted, or deleted and created again, since the snapshot")
        asked, before = wanted(document), snapshot.data.get("serves")
        if before and asked != before:
            raise self._drift(f"somebody else changed the traffic since the snapshot: from {before} to {asked}")

    def _is_live(self, release: Release, document: Json) -> bool:
        serves = serving(document)
        whole = len(serves) == 1 and serves == wanted(document) and not document.get("reconciling")
        return whole and routed(document) and self._image(main(serves)) == release.image

    def _unmake(self, mine: str, document: Json | None) -> Handle:
        """The way back from a first-ever deploy."""
        if document is None:
            return Handle(action="rollback", changed=False, data={"removed": True})
        if not document.get("deleteTime"):
            created = short(document.get("latestCreatedRevision", "")) or document.get("template", {}).get("revision")
            if created != mine or wanted(document) not in ({mine: 100}, {}):
                raise self._drift(f"revision {created} is not of this release")
            self._api.delete(document["etag"])
        return Handle(action="rollback", data={"removed": True})

    # --- reading and writing

    @cached_property
    def _api(self) -> _cloud_run_api.CloudRunApi:
        return _cloud_run_api.CloudRunApi(self.config.conn_id, self._path, fail=self.error, target=self.name)

    def _read(self) -> tuple[run_v2.Service | None, Json | None]:
        live = self._api.get()
        return live, None if live is None else _cloud_run_api.document(live)

    def _image(self, revision: str | None) -> str | None:
        """The image of a revision's main container; None when the revision is gone or its container is not known."""
        images = (self._api.images(revision) if revision else None) or {}
        if self.config.container is not None:
            return images.get(self.config.container)
        return next(iter(images.values())) if len(images) == 1 else None

    def _targets(self, mine: str, document: Json | None) -> list[Json]:
        """All traffic to this revision; the tags that others use stay where they are, without traffic."""
        smoke = {"tag": SMOKE_TAG} if self.config.smoke_path else {}
        kept: list[Json] = []
        for target in (document or {}).get("traffic", []):
            if target.get("tag") and target["tag"] != SMOKE_TAG:
                kept.append({key: value for key, value in target.items() if key != "percent"})
        return [{"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION", "revision": mine, "percent": 100, **smoke}, *kept]

    def _create(self, image: str, mine: str) -> None:
        from google.cloud import run_v2

        container = {"image": image} | ({"name": self.config.container} if self.config.container else {})
        template = run_v2.RevisionTemplate(revision=mine, containers=[container])
        self._api.create(run_v2.Service(template=template, traffic=self._targets(mine, None)))

    def _write(self, image: str, mine: str, live: run_v2.Service, document: Json) -> None:
        """The one write of a release. The mask names what changes, so that template fields which this SDK does not
        know yet survive."""
        if live.template.revision == mine:  # written before, and rolled back since: only the traffic is missing
            self._write_traffic(self._targets(mine, document), document)
            return
        from google.cloud import run_v2

        containers = [type(container)(container) for container in live.template.containers]
        containers[self._ingress(containers)].image = image
        template = run_v2.RevisionTemplate(revision=mine, containers=containers)
        traffic = self._targets(mine, document)
        changed = run_v2.Service(name=self._path, etag=live.etag, template=template, traffic=traffic)
        self._api.patch(changed, ["template.revision", "template.containers", "traffic"])

    def _write_traffic(self, traffic: list[Json], document: Json) -> None:
        from google.cloud import run_v2

        self._api.patch(run_v2.Service(name=self._path, etag=document["etag"], traffic=traffic), ["traffic"])

    def _ingress(self, containers: list[Any]) -> int:
        """Index of the container that gets the image."""
        if self.config.container is not None:
            found = [i for i, c in enumerate(containers) if c.name == self.config.container]
        else:
            found = [i for i, c in enumerate(containers) if c.ports or len(containers) == 1]
        if len(found) != 1:
            names = ", ".join(c.name for c in containers) or "none"
            raise self.error(f"{self._path}: which container gets the image? Set `container`; there are: {names}")
        return found[0]
