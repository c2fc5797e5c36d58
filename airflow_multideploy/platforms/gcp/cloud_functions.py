"""Google Cloud Functions of the second generation, from a package in a bucket.

**A release is one ``functions.patch``** of source, labels and traffic: the package pinned by its generation in Cloud
Storage, the release's id as a label, and all traffic to the revision that comes of it. Cloud Functions builds the
package, which takes minutes, and the old revision serves meanwhile.

**Rollback is the same patch** with the source that ran before, pinned by its generation. It is built again, as a new
revision. The old revision still exists in Cloud Run, and sending the traffic there would be quicker; but the function
would go on to show the undone source, and its next change of any kind would bring that back to life. So the traffic
is left to Cloud Functions, which sends all of it to what the function shows.

The API has no concurrency token. It refuses a second change while one is under way, live state is read directly before
each write, and what is live without this release's label and package is not ours. The list of operations tells a
release's own earlier write, whatever became of it.

The API: https://cloud.google.com/functions/docs/reference/rest/v2/projects.locations.functions
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, JsonValue

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.artifact import located
from airflow_multideploy.platforms.gcp.calls import CONNECTION, GcpPlatform, Package, Project
from airflow_multideploy.platforms.gcp.cloud_functions_judge import (
    RELEASE_LABEL,
    asked_by,
    judge,
    label_of,
    named,
    revision_of,
    source_of,
)
from airflow_multideploy.platforms.rest import Json, Steps
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State

_MASK = "buildConfig.source,serviceConfig.allTrafficOnLatestRevision,labels"


class GcpCloudFunctionsConfig(TargetConfig):
    """A function of the second generation.

    :param project: project id.
    :param location: region, such as ``europe-west1``.
    :param function: name of the function.
    :param package: source archive in a bucket, such as ``gs://releases/shop-${version}.zip``; it is pinned by its
        generation when it is released.
    :param runtime: such as ``python312``: with it the first release creates a function, triggered by HTTP, when there
        is none. An existing function keeps its own.
    :param entry_point: name in the source that a function so created runs.
    """

    platform: Literal["gcp_cloud_functions"] = "gcp_cloud_functions"
    project: Project
    location: Annotated[str, Field(pattern=r"^[a-z]+(-[a-z0-9]+)+$")]
    function: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9_-]{0,61}[a-z0-9])?$")]
    package: Package
    runtime: Annotated[str, Field(min_length=1)] | None = None
    entry_point: Annotated[str, Field(min_length=1)] | None = None


class GcpCloudFunctions(GcpPlatform[GcpCloudFunctionsConfig]):
    """Releases a source package to a Cloud Function of the second generation, and back.

    Cloud Functions takes no second change while one is under way, and an operation cannot be cancelled: the way back
    from a release that is still being built begins when that build ends, and is waited for within
    ``rollback_timeout``. The old revision serves all that time.
    """

    kind = "gcp_cloud_functions"
    api = "Cloud Functions"
    name_of_api = "cloudfunctions"
    config_type = GcpCloudFunctionsConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="the source, pinned by its generation, the release's label, the revision and the creation time",
        early_failure="yes: the operation ends with an error; its words and those of its stages are told",
        restores="the source, pinned by its generation, built again as a new revision that gets all traffic",
        tested_against="a stand-in held to Google's discovery documents cloudfunctions.v2 and storage.v1",
    )
    manual: ClassVar[Manual | None] = Manual(
        connection=CONNECTION,
        protocol="""
1. `functions.get` and `operations.list`: what is live, and whether this release was written before.
2. `storage.objects.get`: the package's generation, which pins it. A package that is not there ends the release here.
3. `functions.patch` of `buildConfig.source`, `labels` and `serviceConfig.allTrafficOnLatestRevision`; the label
   `multideploy-release` carries the release's id. When there is no function, and `runtime` and `entry_point` say what
   it is: `functions.create`.
4. Until the operation is done: `operations.get`, `functions.get`. Healthy: no error, state `ACTIVE`, the function shows
   this package with this generation, its revision is another one than before, and has all traffic.

The way back: `functions.patch` with the source of before, or `functions.delete` after a first-ever release.
""",
        permissions="""
A custom role for the Connection's account, on the project:

```json
{"includedPermissions": ["cloudfunctions.functions.get", "cloudfunctions.functions.update",
  "cloudfunctions.operations.get", "cloudfunctions.operations.list"]}
```

and `storage.objects.get` on the bucket, and `roles/iam.serviceAccountUser` on the function's service account. For
functions that a first release creates: also `cloudfunctions.functions.create` and `cloudfunctions.functions.delete`.
""",
        not_undone="The container images and Cloud Run revisions that were built stay. A split of the traffic that was "
        "made in Cloud Run is not restored: a release, and the way back, send all traffic to the function's latest "
        "revision. An object that was overwritten in a bucket without versioning cannot be restored: give each "
        "version a name of its own. A function that had failed before the release has nothing to go back to.",
        example="""
fn:
  platform: gcp_cloud_functions
  conn_id: gcp_prod
  project: my-project
  location: europe-west1
  function: shop
  package: gs://releases/shop-${version}.zip
""",
        extra="gcp",
    )

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._run(self._snapshot(previous))

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        return self._run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        return self._run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        return await self._arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return self._run(self._rollback(release, snapshot, handle))

    def console_url(self, handle: Handle | None = None) -> str | None:
        where = f"{self.config.location}/{self.config.function}"
        return f"https://console.cloud.google.com/functions/details/{where}?env=gen2&project={self.config.project}"

    # --- reading

    @property
    def _parent(self) -> str:
        return f"projects/{self.config.project}/locations/{self.config.location}"

    @property
    def _name(self) -> str:
        return f"{self._parent}/functions/{self.config.function}"

    def _function(self) -> Steps[Json | None]:
        """https://cloud.google.com/functions/docs/reference/rest/v2/projects.locations.functions/get"""
        found = yield from self._google("GET", f"/v2/{self._name}", absent=True)
        if found and found.get("environment") == "GEN_1":
            raise self.error(f"{self._name} is of the first generation; upgrade it, releases go to the second")
        return found

    def _latest(self) -> Steps[Json | None]:
        """The function's latest operation.

        https://cloud.google.com/functions/docs/reference/rest/v2/projects.locations.operations/list
        """
        found = yield from self._operations(f"/v2/{self._parent}/operations", self._name)
        return found[0] if found else None

    def _snapshot(self, previous: Release | None) -> Steps[Snapshot]:
        function = yield from self._function()
        if function is None:
            return Snapshot(exists=False)
        state = function.get("state")
        if state in ("DEPLOYING", "DELETING"):
            raise self.error(
                f"{self._name} is {state}: a snapshot of that is none; waiting for its end", retryable=True
            )
        source = source_of(function)
        packed = previous is not None and (named(source) or "").split("#")[0] == located(self.config.package, previous)
        data = {
            "source": source,
            "label": label_of(function),
            "serves": revision_of(function),
            "created": function.get("createTime"),
            "well": state == "ACTIVE",
        }
        image = previous.image if previous is not None and packed else None
        return Snapshot(exists=True, revision=named(source), image=image, data=data)

    def _look(self, handle: Handle) -> Steps[Observation]:
        if handle.data.get("left"):
            return Observation(state=State.HEALTHY, reason=str(handle.data["left"]), verified=False)
        operation = None
        if handle.data.get("operation"):
            operation = yield from self._google("GET", f"/v2/{handle.data['operation']}", absent=True)
        function = yield from self._function()
        return judge(function, operation, handle)

    # --- writing

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        function = yield from self._function()
        latest = yield from self._latest()
        before = snapshot.data.get("label") != release.release_id
        if latest and self._ours(asked_by(latest), release, None):  # an earlier attempt's, whatever became of it
            source = source_of(asked_by(latest))
            was = snapshot.data.get("serves") if before and source != snapshot.data.get("source") else None
            return self._handle("deploy", source, latest, was, changed=before)
        if function and self._ours(function, release, None):
            return self._handle("deploy", source_of(function), None, None, changed=before)
        if latest and not latest.get("done"):
            raise self._busy(latest, self.config.timeout)
        if not release.force:
            self._still(snapshot, function)
        package = located(self.config.package, release)
        bucket, _, name = package.removeprefix("gs://").partition("/")
        generation = yield from self._generation(package)
        source = {"storageSource": {"bucket": bucket, "object": name, "generation": generation}}
        if function is None:
            operation = yield from self._create(release, source)
            return self._handle("deploy", source, operation, None)
        same = source_of(function) == source
        whole = function.get("state") == "ACTIVE" and function["serviceConfig"].get("allTrafficOnLatestRevision")
        if same and whole and not release.force:
            return self._handle("deploy", source, None, None, changed=False)
        operation = yield from self._patch(function, source, release.release_id)
        return self._handle("deploy", source, operation, None if same else revision_of(function))

    def _rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Steps[Handle]:
        function = yield from self._function()
        latest = yield from self._latest()
        source = cast(Json, snapshot.data.get("source"))
        if latest and not latest.get("done"):
            removing = latest["metadata"].get("verb") == "delete"
            if removing != snapshot.exists and (removing or source_of(asked_by(latest)) == source):
                return self._handle("rollback", source, latest, None)  # on the way back already
            if not any(self._ours(shown, release, handle) for shown in (asked_by(latest), function or {})):
                raise self._drift(f"somebody else's {latest['metadata'].get('verb')} is under way")
            raise self._busy(latest, self.config.rollback_timeout)
        if not snapshot.exists:
            return (yield from self._unmake(release, function, handle))
        if function is None or function.get("createTime") != snapshot.data.get("created"):
            raise self._drift("the function was deleted, or deleted and created again, since the snapshot")
        if source_of(function) == source:
            if function.get("state") == "ACTIVE":
                return self._handle("rollback", source, None, None, changed=False)
        elif not self._ours(function, release, handle):
            raise self._drift(
                f"it shows {named(source_of(function))}: neither this release's nor the snapshot's source"
            )
        if not snapshot.data.get("well"):
            return self._left("the function had failed before this release: there is nothing to go back to")
        operation = yield from self._patch(function, source, cast("str | None", snapshot.data.get("label")))
        return self._handle("rollback", source, operation, None)

    def _unmake(self, release: Release, function: Json | None, handle: Handle | None) -> Steps[Handle]:
        """The way back from a first-ever release.

        https://cloud.google.com/functions/docs/reference/rest/v2/projects.locations.functions/delete
        """
        if function is None or function.get("state") == "DELETING":
            return self._handle("rollback", None, None, None, changed=function is not None)
        if not self._ours(function, release, handle):
            raise self._drift(f"it was created by somebody else, from {named(source_of(function))}")
        operation = yield from self._google("DELETE", f"/v2/{self._name}", absent=True)
        return self._handle("rollback", None, operation, None)

    def _create(self, release: Release, source: Json) -> Steps[Json]:
        """https://cloud.google.com/functions/docs/reference/rest/v2/projects.locations.functions/create"""
        if not (self.config.runtime and self.config.entry_point):
            raise self.error(
                f"there is no function {self._name}; create it once with your infrastructure tool, or give "
                "runtime and entry_point"
            )
        build = {"runtime": self.config.runtime, "entryPoint": self.config.entry_point, "source": source}
        body = {
            "name": self._name,
            "environment": "GEN_2",
            "buildConfig": build,
            "serviceConfig": {"allTrafficOnLatestRevision": True},
            "labels": {RELEASE_LABEL: release.release_id},
        }
        params = {"functionId": self.config.function}
        return (yield from self._found("POST", f"/v2/{self._parent}/functions", params=params, body=body))

    def _patch(self, function: Json, source: Json, label: str | None) -> Steps[Json]:
        """https://cloud.google.com/functions/docs/reference/rest/v2/projects.locations.functions/patch"""
        labels = {key: value for key, value in function.get("labels", {}).items() if key != RELEASE_LABEL}
        body = {
            "name": self._name,
            "buildConfig": {"source": source},
            "serviceConfig": {"allTrafficOnLatestRevision": True},
            "labels": labels | ({RELEASE_LABEL: label} if label else {}),
        }
        return (yield from self._found("PATCH", f"/v2/{self._name}", params={"updateMask": _MASK}, body=body))

    # --- decisions

    def _ours(self, function: Json, release: Release, handle: Handle | None) -> bool:
        """Whether the function shows this release: its label, which others' changes keep, and its package."""
        source = source_of(function)
        if handle is not None and handle.data.get("source"):
            same = source == handle.data["source"]
        else:
            same = (named(source) or "").split("#")[0] == located(self.config.package, release)
        return same and label_of(function) == release.release_id

    def _still(self, snapshot: Snapshot, function: Json | None) -> None:
        """:raises Drift: the function is not what the snapshot says."""
        if function is None:
            if snapshot.exists:
                raise self._drift("the function was deleted since the snapshot")
            return
        if not snapshot.exists:
            raise self._drift("the function was created by somebody else since the snapshot")
        now = (source_of(function), revision_of(function), function.get("createTime"))
        if now != (snapshot.data.get("source"), snapshot.data.get("serves"), snapshot.data.get("created")):
            raise self._drift(f"somebody else deployed since the snapshot: {named(now[0])}, revision {now[1]}")

    def _handle(
        self,
        action: Literal["deploy", "rollback"],
        source: Any,
        operation: Json | None,
        was: Any,
        *,
        changed: bool = True,
    ) -> Handle:
        """:param was: the revision that served before, when another one has to serve afterwards."""
        data: dict[str, JsonValue] = {"source": source, "was": was, "removed": source is None}
        if operation is not None:
            data["operation"] = operation["name"]
        return Handle(action=action, revision=named(source) if source else None, changed=changed, data=data)

    def _left(self, why: str) -> Handle:
        return Handle(action="rollback", changed=False, data={"left": why})

    def _busy(self, operation: Json, seconds: float) -> Exception:
        """It cannot be written to now; asked again until these seconds are nearly over."""
        verb, name = operation.get("metadata", {}).get("verb"), operation.get("name")
        what = (
            f"{self._name}: {verb} is still under way ({name}), and the API takes no second change: waiting for its end"
        )
        return self.error(what, retryable=True, retry_after=seconds / 6)

    def _drift(self, what: str) -> Drift:
        return Drift(f"{self._name}: {what}; nothing was touched. Look at it, then release again", target=self.name)
