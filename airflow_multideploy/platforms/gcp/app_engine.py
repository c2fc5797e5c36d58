"""Google App Engine services, of the standard or the flexible environment.

A release is a new version beside the ones there are, whose id is the release's id: a copy of the live version's
settings with another package or image. It gets no traffic while it is built and started. When it serves, one write
moves the traffic: the service's ``split``. The two writes are minutes apart, and nobody but ``deploy`` writes: it is
called again until the version serves, finds what it wrote, and goes on from there.

Rollback is the second write alone, with the allocations of before; the versions they name still serve.

The API has no concurrency token. It refuses a second operation on a version or service while one is under way, and
the traffic is read directly before it is written.

The API: https://cloud.google.com/appengine/docs/admin-api/reference/rest/v1/apps.services
"""

from __future__ import annotations

from string import Template
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, JsonValue

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.artifact import located
from airflow_multideploy.platforms.gcp.app_engine_judge import allocations, artifact_of, judge, main
from airflow_multideploy.platforms.gcp.calls import CONNECTION, GcpPlatform, Package, Project, failure
from airflow_multideploy.platforms.rest import Json, Steps
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State

_BUCKETS = "https://storage.googleapis.com/"
_OF_ONE_VERSION = frozenset(
    {
        "name",
        "id",
        "createdBy",
        "createTime",
        "diskUsageBytes",
        "versionUrl",
        "servingStatus",
        "deployment",
        "generatedCustomerMetadata",
    }
)
"""Fields of a version that a copy of it does not have: what the platform fills in, and what a release replaces."""


class GcpAppEngineConfig(TargetConfig):
    """A service of an App Engine application.

    :param project: project id, which is the application's.
    :param service: name of the service.
    :param package: zip file in a bucket, such as ``gs://releases/shop-${version}.zip``; None releases the image itself,
        which only the flexible environment takes.
    :param settings: fields of the API's Version document that each release sets over those of the live version, such as
        ``{runtime: python312, entrypoint: {shell: gunicorn main}}``; a first-ever release needs at least ``runtime``.
    """

    platform: Literal["gcp_app_engine"] = "gcp_app_engine"
    project: Project
    service: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "default"
    package: Package | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)


class GcpAppEngine(GcpPlatform[GcpAppEngineConfig]):
    """Releases a version of an App Engine service and moves all traffic to it, and back.

    The new version is built without traffic; a build that fails is seen at once, and nobody was served by it. While it
    is built, ``deploy`` is called every tenth of ``timeout``, five times in a try of the task; the task's retries go on
    from there. Set a longer ``timeout`` for the flexible environment, where that takes ten minutes and more.
    """

    kind = "gcp_app_engine"
    api = "App Engine"
    name_of_api = "appengine"
    config_type = GcpAppEngineConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="the traffic's allocations by version, and by what it is split",
        early_failure="yes: creating the version ends with an error, whose words are reported; a version is stopped",
        restores="the traffic's allocations, to the very versions that served",
        tested_against="a stand-in held to Google's discovery documents appengine.v1 and storage.v1",
    )
    manual: ClassVar[Manual | None] = Manual(
        connection=CONNECTION,
        protocol="""
1. `services.get`: the allocations of the traffic, which is the snapshot.
2. `versions.get` and `operations.list`: whether this release's version is there, or under way, or failed.
3. `versions.create` with the release's id as the version's id: the live version's settings, `settings` over them, and
   the package or image. A package that is not there ends the release before (`storage.objects.get`).
4. When the version is `SERVING`: `services.patch` of `split`, all traffic to it.
5. Healthy: the operation is done without error, the split is as asked, the version is `SERVING`.

The way back: `services.patch` of `split` with the allocations of before; `services.delete` after a first-ever release.
""",
        permissions="""
A custom role for the Connection's account, on the project:

```json
{"includedPermissions": ["appengine.services.get", "appengine.services.update", "appengine.versions.create",
  "appengine.versions.get", "appengine.versions.list", "appengine.operations.get", "appengine.operations.list",
  "cloudbuild.builds.create", "cloudbuild.builds.get"]}
```

and `storage.objects.get` on the package's bucket, and `roles/iam.serviceAccountUser` on the version's service account.
For services that a first release creates: also `appengine.services.delete`.
""",
        not_undone="The undone version stays, without traffic, and so do the ones before: App Engine keeps a limited "
        "number of versions, and those of the flexible environment, or scaled by hand, cost until somebody stops them. "
        "The service `default` cannot be deleted: a first-ever release of it is left.",
        example="""
web:
  platform: gcp_app_engine
  conn_id: gcp_prod
  project: my-project
  service: shop
  package: gs://releases/shop-${version}.zip
""",
        extra="gcp",
    )

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._run(self._snapshot(previous))

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`. While the version is being created: a retryable error, which says so."""
        return self._run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        return self._run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        return await self._arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return self._run(self._rollback(release, snapshot))

    def console_url(self, handle: Handle | None = None) -> str | None:
        where = f"serviceId={self.config.service}&project={self.config.project}"
        return f"https://console.cloud.google.com/appengine/versions?{where}"

    # --- reading

    @property
    def _app(self) -> str:
        return f"apps/{self.config.project}"

    @property
    def _name(self) -> str:
        return f"{self._app}/services/{self.config.service}"

    def _service(self) -> Steps[Json | None]:
        """https://cloud.google.com/appengine/docs/admin-api/reference/rest/v1/apps.services/get"""
        return (yield from self._google("GET", f"/v1/{self._name}", absent=True))

    def _version(self, name: str, *, whole: bool = False) -> Steps[Json | None]:
        """https://cloud.google.com/appengine/docs/admin-api/reference/rest/v1/apps.services.versions/get"""
        params = {"view": "FULL"} if whole else {}
        return (yield from self._google("GET", f"/v1/{self._name}/versions/{name}", params=params, absent=True))

    def _recent(self, *targets: str) -> Steps[list[Json]]:
        """https://cloud.google.com/appengine/docs/admin-api/reference/rest/v1/apps.operations/list"""
        return (yield from self._operations(f"/v1/{self._app}/operations", *targets))

    def _snapshot(self, previous: Release | None) -> Steps[Snapshot]:
        service = yield from self._service()
        if service is None:
            return Snapshot(exists=False)
        serves = main(allocations(service))
        made = artifact_of((yield from self._version(serves, whole=True))) if serves else None
        image = None if made is None or made.startswith("gs://") else made
        if previous is not None and made == self._artifact(previous):
            image = previous.image
        data: dict[str, JsonValue] = {"split": service.get("split", {}), "allocations": {**allocations(service)}}
        return Snapshot(exists=True, revision=serves, image=image, data=data)

    def _look(self, handle: Handle) -> Steps[Observation]:
        if handle.data.get("left"):
            return Observation(state=State.HEALTHY, reason=str(handle.data["left"]), verified=False)
        if handle.data.get("failed"):
            return Observation(state=State.FAILED, reason=str(handle.data["failed"]))
        operation = None
        if handle.data.get("operation"):
            operation = yield from self._google("GET", f"/v1/{handle.data['operation']}", absent=True)
        service = yield from self._service()
        versions: dict[str, Json | None] = {}
        for name in cast("dict[str, float]", handle.data.get("allocations") or {}) if service else {}:
            versions[name] = yield from self._version(name)
        return judge(service, versions, operation, handle)

    # --- writing

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        mine = release.release_id
        service = yield from self._service()
        now = allocations(service)
        if now == {mine: 1.0}:
            return self._handle("deploy", now, changed=snapshot.revision != mine)
        place = f"{self._name}/versions/{mine}"
        recent = yield from self._recent(self._name, place)
        version = yield from self._version(mine)
        if version and recent and recent[0]["metadata"]["target"] == self._name and not recent[0].get("done"):
            # Our own earlier write, in all likelihood; if it is somebody else's, where the traffic ends will tell.
            return self._handle("deploy", {mine: 1.0}, recent[0], before=now)
        self._idle(recent, self.config.timeout)
        if not release.force:
            self._still(snapshot, service)
            if (yield from self._is_live(release, now)):
                return self._handle("deploy", now, changed=False)
        made = next((operation for operation in recent if operation["metadata"]["target"] == place), None)
        if version is None and made and (why := failure(made)):
            return Handle(action="deploy", revision=mine, data={"failed": why})
        if version is None:
            raise self._busy((yield from self._create(release, main(now))), self.config.timeout)
        if version.get("servingStatus") != "SERVING":
            raise self.error(f"version {mine} of {self._name} is {version.get('servingStatus')}: somebody stopped it")
        operation = yield from self._patch({"allocations": {mine: 1}})
        return self._handle("deploy", {mine: 1.0}, operation, before=now)

    def _rollback(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        mine = release.release_id
        # The service comes into being with its first version; from then on a version under way does no harm.
        targets = [self._name] if snapshot.exists else [self._name, f"{self._name}/versions/{mine}"]
        self._idle((yield from self._recent(*targets)), self.config.rollback_timeout)
        service = yield from self._service()
        now, target = allocations(service), cast("dict[str, float]", snapshot.data.get("allocations"))
        if not snapshot.exists:
            return (yield from self._unmake(mine, service))
        if service is None:
            raise self._drift("the service was deleted since the snapshot")
        if now == target:
            return self._handle("rollback", target, changed=False)
        if now != {mine: 1.0}:
            raise self._drift(f"the traffic is neither this release's nor the snapshot's: {now}")
        if not target:
            return self._left("no version had any traffic before: there is nothing to go back to")
        operation = yield from self._patch(cast(Json, snapshot.data["split"]))
        return self._handle("rollback", target, operation, before=now)

    def _unmake(self, mine: str, service: Json | None) -> Steps[Handle]:
        """The way back from a first-ever release.

        https://cloud.google.com/appengine/docs/admin-api/reference/rest/v1/apps.services/delete
        """
        if service is None:
            return self._handle("rollback", None, changed=False)
        if allocations(service) != {mine: 1.0}:
            raise self._drift(f"the traffic is not this release's: {allocations(service)}")
        if self.config.service == "default":
            return self._left("first-ever release: left in place: a default service cannot be deleted")
        listed = yield from self._found("GET", f"/v1/{self._name}/versions")
        if others := [v.get("id") for v in listed.get("versions", []) if v.get("id") != mine]:
            raise self._drift(f"it has versions of others by now, which would be deleted with it: {others}")
        operation = yield from self._google("DELETE", f"/v1/{self._name}", absent=True)
        return self._handle("rollback", None, operation)

    def _create(self, release: Release, like: str | None) -> Steps[Json]:
        """https://cloud.google.com/appengine/docs/admin-api/reference/rest/v1/apps.services.versions/create

        :param like: the version whose settings are copied.
        """
        artifact = self._artifact(release)
        made: Json = {"container": {"image": artifact}}
        if self.config.package:
            yield from self._generation(artifact)
            made = {"zip": {"sourceUrl": _BUCKETS + artifact.removeprefix("gs://")}}
        model = (yield from self._version(like, whole=True)) if like else {}
        body = {key: value for key, value in (model or {}).items() if key not in _OF_ONE_VERSION}
        body |= {**self.config.settings, "id": release.release_id, "deployment": made}
        if not body.get("runtime"):
            raise self.error(
                f"{self._name} has no version to copy; give its runtime, and what else it needs, in settings"
            )
        return (yield from self._found("POST", f"/v1/{self._name}/versions", body=body))

    def _patch(self, split: Json) -> Steps[Json]:
        """https://cloud.google.com/appengine/docs/admin-api/reference/rest/v1/apps.services/patch"""
        return (
            yield from self._found("PATCH", f"/v1/{self._name}", params={"updateMask": "split"}, body={"split": split})
        )

    # --- decisions

    def _artifact(self, release: Release) -> str:
        return located(self.config.package, release) if self.config.package else release.image

    def _is_live(self, release: Release, now: dict[str, float]) -> Steps[bool]:
        """Whether all traffic goes to a version of this release's package.

        A package whose name does not tell its version may hold something else than yesterday: it never counts as live.
        """
        telling = {"version", "digest", "image", "release_id"}
        if len(now) != 1 or (
            self.config.package and not telling & set(Template(self.config.package).get_identifiers())
        ):
            return False
        version = yield from self._version(next(iter(now)), whole=True)
        return artifact_of(version) == self._artifact(release) and (version or {}).get("servingStatus") == "SERVING"

    def _still(self, snapshot: Snapshot, service: Json | None) -> None:
        """:raises Drift: the traffic does not go where the snapshot says."""
        if service is None and snapshot.exists:
            raise self._drift("the service was deleted since the snapshot")
        if service is not None and allocations(service) != (snapshot.data.get("allocations") or {}):
            raise self._drift(f"somebody else changed the traffic since the snapshot: to {allocations(service)}")

    def _idle(self, recent: list[Json], seconds: float) -> None:
        """:raises PlatformError: a write is under way, and will land: what is read now is not what will be."""
        for operation in recent:
            if not operation.get("done"):
                raise self._busy(operation, seconds)

    def _busy(self, operation: Json, seconds: float) -> Exception:
        said = operation.get("metadata", {})
        what = f"{said.get('method', '').rsplit('.', 1)[-1]} of {said.get('target')} is under way ({operation['name']})"
        return self.error(f"{what}; waiting for its end", retryable=True, retry_after=seconds / 10)

    def _handle(
        self,
        action: Literal["deploy", "rollback"],
        target: dict[str, float] | None,
        operation: Json | None = None,
        *,
        before: dict[str, float] | None = None,
        changed: bool = True,
    ) -> Handle:
        data: dict[str, Any] = {"allocations": target, "from": before, "removed": target is None}
        if operation is not None:
            data["operation"] = operation["name"]
        return Handle(action=action, revision=main(target or {}), changed=changed, data=data)

    def _left(self, why: str) -> Handle:
        return Handle(action="rollback", changed=False, data={"left": why})

    def _drift(self, what: str) -> Drift:
        return Drift(f"{self._name}: {what}; nothing was touched. Look at it, then release again", target=self.name)
