"""Azure Container Apps: config, adapter and operator.

A release is one ``PATCH`` of the app: a copy of the template that serves, with the new image and the release id as
revision suffix, in revision mode Multiple, with all traffic for the latest revision. Azure moves that traffic by itself
once the new revision has passed its probes, and never when it does not. The way back pins the traffic to the revisions
that had it, by name and weight.

Only what a release changes is written: a PATCH merges, so secrets, which Azure redacts when they are read, registries
and everything else of the app stay as they are.

Microsoft.App has no concurrency token for an app (no operation of API version 2026-07-01 takes If-Match): the app is
read directly before each write, and Azure refuses a write while another one is being provisioned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.azure import ArmApi, Call, Steps
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.azure.container_apps_judge import (
    App,
    Json,
    judge,
    patch,
    released,
    repository,
    untouched,
)
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

PLACEHOLDERS = ("mcr.microsoft.com/k8se/quickstart", "mcr.microsoft.com/azuredocs/containerapps-helloworld")
"""Images that Azure's own tools put into a new app until the first one is deployed."""
_OURS = re.compile(r"--r[0-9a-f]{10}(-\d+)?$")
"""How the names of revisions end that releases made."""
_REVISIONS, _REPLICAS = "container_apps_revisions", "container_apps_revision_replicas"


class AzureContainerAppsConfig(TargetConfig):
    """One container app with ingress.

    :param resource_group: the app's.
    :param app: name of the app.
    :param container: the container that gets the image; None: the only one, else the only one whose image comes from
        the release's repository.
    :param subscription_id: None takes ``subscriptionId`` of the Connection's extra.
    """

    platform: Literal["azure_container_apps"] = "azure_container_apps"
    resource_group: Annotated[str, Field(pattern=r"^[-\w.()]{1,90}$")]
    app: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{1,31}$")]
    container: Annotated[str, Field(min_length=1)] | None = None
    subscription_id: Annotated[str, Field(min_length=1)] | None = None


class AzureContainerApps(Platform[AzureContainerAppsConfig]):
    """Releases an image into a container app as a new revision, and moves the traffic back.

    An app counts as never deployed (``snapshot.exists`` False) while no revision of it is ready, or one serves that
    holds a placeholder of Azure's own tools. To roll back such a first-ever release means to give the traffic back to
    that placeholder; where no revision was ever ready, there is nothing to go back to, and the release stays.

    Revisions that earlier releases made and that have neither traffic nor a label are deactivated by the next release,
    as an active one costs money.
    """

    kind: ClassVar[str] = "azure_container_apps"
    config_type: ClassVar[type[TargetConfig]] = AzureContainerAppsConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="traffic by revision name, weight and label; the latest revision; the image of the one that serves",
        early_failure="a revision that is Failed, Unhealthy or Degraded, or whose containers restart, in Azure's words",
        restores="the traffic, to the revisions that had it; they keep their own template. Not the app's configuration",
        tested_against="a simulator of Resource Manager held to azure-mgmt-appcontainers' models, with the real login",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="azure",
        connection="Type `multideploy_azure` or `azure`: login = client id, password = client secret, extra "
        "`tenantId` and `subscriptionId`. Without a secret: managed or workload identity.",
        protocol="One PATCH: the template that serves with the new image and the release id as revision suffix, mode "
        "Multiple, all traffic for the latest revision, to which Azure moves it when its probes have passed. Back: the "
        "old revisions are activated if need be, and one PATCH pins the traffic to them by weight.",
        permissions="The role *Container Apps Contributor* on the app, or `Microsoft.App/containerApps/read`, "
        "`containerApps/write`, `containerApps/revisions/read`, `containerApps/revisions/activate/action`, "
        "`containerApps/revisions/deactivate/action`, `containerApps/revisions/replicas/read`, and "
        "`Microsoft.App/managedEnvironments/join/action` on its environment.",
        not_undone="the revision mode stays Multiple; the released revision stays active without traffic until the "
        "next release deactivates it; secrets, scale rules of the app's newer template and other configuration.",
        example="azure: {platform: azure_container_apps, conn_id: azure_prod, resource_group: rg, app: shop}",
    )

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._api.run(self._snapshot())

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        return self._api.run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        return self._api.run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        return await self._api.arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return self._api.run(self._rollback(release, snapshot))

    def console_url(self, handle: Handle | None = None) -> str | None:
        resource = handle.data.get("id") if handle else None
        return f"https://portal.azure.com/#resource{resource}/containerapp" if resource else None

    @cached_property
    def _api(self) -> ArmApi:
        config, sdk = self.config, ("azure.mgmt.appcontainers", "ContainerAppsAPIClient")
        scope = (config.resource_group, config.app)
        return ArmApi(self, sdk, "container_apps", scope, f"app {config.app!r}", config.subscription_id)

    # --- steps: decisions and calls, without I/O ---------------------------------------------------------------------

    def _app(self) -> Steps[App]:
        """https://learn.microsoft.com/rest/api/containerapps/container-apps/get"""
        document = (yield Call("get")).value
        configuration = document["properties"]["configuration"]
        if not configuration.get("ingress"):
            self._api.refuse("has no ingress, so there is no traffic that a release could move; give it one")
        return App.read(document)

    def _revision(self, name: str) -> Steps[Json | None]:
        """https://learn.microsoft.com/rest/api/containerapps/container-apps-revisions/get-revision"""
        try:
            document: Json = (yield Call("get_revision", (name,), _REVISIONS)).value
            return document
        except PlatformError as error:
            if "HTTP 404" in str(error):
                return None
            raise

    def _snapshot(self) -> Steps[Snapshot]:
        app = yield from self._app()
        found = (yield from self._revision(app.serving[0]["revisionName"])) if app.serving else None
        image = self._container(found["properties"]["template"], None).get("image") if found else None
        exists = image is not None and not image.startswith(PLACEHOLDERS)
        return Snapshot(
            exists=exists,
            revision=found["name"] if found else None,
            image=image if exists else None,
            data={"traffic": app.traffic, "latest": app.latest, "serving": app.serving},
        )

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        app, mine = (yield from self._app()), self._mine(release)
        if app.latest == mine:
            if app.all_to(mine):
                return self._handle(app, mine)  # an earlier attempt's write, its answer was lost
            raise Drift(
                f"release {release.release_id} was rolled back here meanwhile; start a new one", target=self.name
            )
        if not untouched(app, snapshot.data) and not release.force:
            raise self._drift(app, "as in the snapshot")
        serving = app.serving[0]["revisionName"] if app.serving else app.latest
        found = yield from self._revision(serving)
        if found is None:
            raise self.error(f"app {app.name!r}: revision {serving!r}, which serves, is not there", retryable=True)
        template = found["properties"]["template"]
        container = self._container(template, release)
        if container.get("image") == release.image and app.all_to(serving) and not release.force:
            handle = self._handle(app, serving).model_copy(update={"changed": False})
            if (yield from self._look(handle)).state is State.HEALTHY:
                return handle
        yield from self._tidy(app, keep={serving, str(snapshot.revision)})
        yield Call("begin_update", (released(app, template, container, release),))
        return self._handle(app, mine)

    def _tidy(self, app: App, keep: set[str]) -> Steps[None]:
        """https://learn.microsoft.com/rest/api/containerapps/container-apps-revisions/deactivate-revision"""
        keep = keep | {str(entry.get("revisionName")) for entry in app.traffic}
        for revision in (yield Call("list_revisions", (), _REVISIONS)).value:
            name = str(revision.get("name"))
            if _OURS.search(name) and name not in keep and revision["properties"].get("active"):
                yield Call("deactivate_revision", (name,), _REVISIONS)

    def _rollback(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        app, mine = (yield from self._app()), self._mine(release)
        wanted: Any = snapshot.data["serving"]
        back = Handle(
            action="rollback",
            revision=snapshot.revision,
            data={**snapshot.data, "id": app.id, "old": [e["revisionName"] for e in wanted if e["weight"]]},
        )
        if untouched(app, snapshot.data):
            return back.model_copy(update={"changed": False})
        if app.pinned(app.latest) == wanted:
            under_way = yield from self._look(back)
            if under_way.state is not State.FAILED:
                return back.model_copy(update={"changed": app.latest == mine})
        elif not (app.latest == mine and app.all_to(mine)):
            raise self._drift(app, f"to {mine} of this release, or as in the snapshot")
        if not wanted:
            return Handle(action="rollback", revision=mine, changed=False, data={"left": True})
        for name in back.data["old"]:  # type: ignore[union-attr]
            revision = yield from self._revision(str(name))
            if revision is None:
                self._api.refuse(f"has no revision {name!r} any more, which had the traffic; nothing was written")
            if not revision["properties"].get("active"):
                yield Call("activate_revision", (name,), _REVISIONS)
        yield Call("begin_update", (patch(app, {"ingress": {"traffic": wanted}}),))
        return back

    def _look(self, handle: Handle) -> Steps[Observation]:
        app = yield from self._app()
        revisions = []
        for name in handle.data.get("old") or [handle.revision]:  # type: ignore[union-attr]
            revisions.append((yield from self._revision(str(name))))
        seen = judge(handle, app, revisions, None)
        if seen.state in (State.PROGRESSING, State.FAILED) and revisions[0] is not None:
            # https://learn.microsoft.com/rest/api/containerapps/container-apps-revision-replicas/list-replicas
            answer = yield Call("list_replicas", (revisions[0]["name"],), _REPLICAS)
            replicas = answer.value.get("value") or []
            seen = judge(handle, app, revisions, replicas)
        return seen

    def _mine(self, release: Release) -> str:
        return f"{self.config.app}--{release.release_id}"

    def _handle(self, app: App, revision: str) -> Handle:
        return Handle(action="deploy", revision=revision, data={"id": app.id})

    def _container(self, template: Mapping[str, Any], release: Release | None) -> Json:
        """The container that releases go into."""
        containers: list[Json] = template.get("containers") or []
        if self.config.container:
            found = [c for c in containers if c.get("name") == self.config.container]
        else:
            found = containers
            if len(containers) > 1 and release is not None:
                found = [c for c in containers if repository(c.get("image") or "") == repository(release.image)]
            elif len(containers) > 1:
                return containers[0]  # which one, only a release tells; the first is the app's own by convention
        if len(found) != 1:
            names = ", ".join(str(c.get("name")) for c in containers)
            self._api.refuse(f"has containers {names}: say which one gets the image, with container of the target")
        return found[0]

    def _drift(self, app: App, expected: str) -> Drift:
        shares = ", ".join(f"{e['revisionName']} {e['weight']} %" for e in app.pinned(app.latest))
        return Drift(
            f"app {app.name!r}: traffic goes to {shares or 'nothing'}, latest revision {app.latest!r}; expected it "
            f"{expected}; somebody else deployed there, nothing was written: look at the app's activity log",
            target=self.name,
        )
