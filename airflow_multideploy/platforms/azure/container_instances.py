"""Azure Container Instances: config, adapter and operator.

A release is one ``PUT`` of the container group as it is, with the new image and a tag of ours, which is how Azure
updates a group: in place, its containers restart, its address stays. There is nothing before a group that could share
or move traffic, so there is an interruption, and no second group stands beside it: a DNS label belongs to one group,
and where several take part behind Traffic Manager or Front Door, each of them is a target.

A PUT replaces all, and Azure hides secrets when a group is read: so they come from the Connection, and a release of a
group whose secrets it does not hold is refused before anything is written.

Microsoft.ContainerInstance has no concurrency token (no operation of API version 2023-05-01 takes If-Match): the group
is read directly before each write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.azure import EXTRA, ArmApi, Call, Steps
from airflow_multideploy.errors import Drift
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

PLACEHOLDERS = ("mcr.microsoft.com/azuredocs/aci-helloworld",)
"""Images that Azure's own tutorials put into a new group until the first one is deployed."""
RESTARTS = 3
"""Restarts of a container after which its rollout counts as failed."""
SECRETS = "container_secrets"
"""Entry of the Connection's extra: secrets by name."""
TAG = "multideploy-release"

_READ_ONLY = {"id", "name", "type"}
_WAITING = ("ErrImagePull", "ImagePullBackOff", "CrashLoopBackOff")

Json = dict[str, Any]


class AzureContainerInstancesConfig(TargetConfig):
    """One container group that restarts its containers always.

    :param resource_group: the group's.
    :param group: name of the container group.
    :param container: the container that gets the image; None: the only one.
    :param subscription_id: None takes ``subscriptionId`` of the Connection's extra.
    """

    platform: Literal["azure_container_instances"] = "azure_container_instances"
    resource_group: Annotated[str, Field(pattern=r"^[-\w.()]{1,90}$")]
    group: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    container: Annotated[str, Field(min_length=1)] | None = None
    subscription_id: Annotated[str, Field(min_length=1)] | None = None


class Live(NamedTuple):
    """What the group is now. ``document`` may hold secrets that somebody gave as plain values: it stays in memory."""

    document: Json
    container: Json
    image: str
    mark: str
    at: datetime

    @property
    def ours(self) -> tuple[str, str, str]:
        """Release id, action and moment of our last write; empty when somebody else made the group."""
        parts = self.mark.split("|")
        return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("", "", "")


class AzureContainerInstances(Platform[AzureContainerInstancesConfig]):
    """Releases an image into a container group in place, and back.

    A group counts as never deployed (``snapshot.exists`` False) while it runs the image of Azure's tutorials. To remove
    such a first-ever release means to restore exactly that; the group is not ours.
    """

    kind: ClassVar[str] = "azure_container_instances"
    config_type: ClassVar[type[TargetConfig]] = AzureContainerInstancesConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="the container's image, and our release tag",
        early_failure="an image that cannot be pulled, a container that restarts again and again, in Azure's words",
        restores="the image; everything else of the group is written back as it is then",
        tested_against="a simulator of Resource Manager held to azure-mgmt-containerinstance, with the real login flow",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="azure",
        connection="Type `multideploy_azure` or `azure`: login = client id, password = client secret, extra "
        "`tenantId` and `subscriptionId`. Without a secret: managed or workload identity. Secrets of the group go into "
        "the extra's `container_secrets`, an object: name of a secure environment variable, server of an image "
        "registry, name of a storage account, or id of a log workspace → its secret.",
        protocol="One PUT of the group as it was read, with the new image, the tag `multideploy-release`, and the "
        "secrets, which Azure hides. Its containers restart in place: there is an interruption. Healthy when the "
        "container has started after the write and runs. Back: the same with the old image.",
        permissions="The role *Azure Container Instances Contributor Role* on the group, or "
        "`Microsoft.ContainerInstance/containerGroups/read` and `containerGroups/write` (and, for a group in a "
        "virtual network, `Microsoft.Network/virtualNetworks/subnets/join/action`).",
        not_undone="the interruption; the bits of a tag that was moved meanwhile.",
        example="azure: {platform: azure_container_instances, conn_id: azure_prod, resource_group: rg, group: shop}",
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
        return f"https://portal.azure.com/#resource{resource}/overview" if resource else None

    @cached_property
    def _api(self) -> ArmApi:
        config, sdk = self.config, ("azure.mgmt.containerinstance", "ContainerInstanceManagementClient")
        scope = (config.resource_group, config.group)
        return ArmApi(self, sdk, "container_groups", scope, f"group {config.group!r}", config.subscription_id)

    # --- steps: decisions and calls, without I/O ---------------------------------------------------------------------

    def _live(self) -> Steps[Live]:
        """https://learn.microsoft.com/rest/api/container-instances/container-groups/get"""
        answer = yield Call("get")
        properties, containers = answer.value["properties"], answer.value["properties"]["containers"]
        found = [c for c in containers if self.config.container in (None, c["name"])]
        if len(found) != 1:
            names = ", ".join(str(c["name"]) for c in containers)
            self._api.refuse(f"has containers {names}: say which one gets the image, with container of the target")
        if (properties.get("restartPolicy") or "Always") != "Always":
            self._api.refuse("does not restart its containers always: Azure cannot update a group that has ended")
        tags = answer.value.get("tags") or {}
        return Live(answer.value, found[0], found[0]["properties"]["image"], str(tags.get(TAG) or ""), answer.at)

    def _snapshot(self) -> Steps[Snapshot]:
        live = yield from self._live()
        exists = not live.image.startswith(PLACEHOLDERS)
        return Snapshot(
            exists=exists,
            revision=live.image if exists else None,
            image=live.image if exists else None,
            data={"image": live.image, "mark": live.mark},
        )

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        live = yield from self._live()
        before = (snapshot.data["image"], snapshot.data["mark"])
        mine = live.ours[0] == release.release_id
        if mine and live.ours[1] == "deploy" and live.image == release.image:
            return _handle(live, "deploy", release.image, live.mark)  # an earlier attempt's write, its answer was lost
        if mine and live.mark != snapshot.data["mark"]:
            raise Drift(
                f"release {release.release_id} was rolled back here meanwhile; start a new one", target=self.name
            )
        if (live.image, live.mark) != before and not release.force:
            raise self._drift(live, f"{before[0]!r} as in the snapshot")
        if live.image == release.image and not release.force:
            handle = _handle(live, "deploy", release.image, live.mark).model_copy(update={"changed": False})
            if (yield from self._look(handle)).state is State.HEALTHY:
                return handle
        mark = yield from self._write(live, release, "deploy", release.image)
        return _handle(live, "deploy", release.image, mark)

    def _rollback(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        live, before = (yield from self._live()), str(snapshot.data["image"])
        mine = live.ours[0] == release.release_id
        if (live.image, live.mark) == (before, snapshot.data["mark"]):
            return _handle(live, "rollback", before, live.mark).model_copy(update={"changed": False})
        if mine and live.ours[1] == "rollback" and live.image == before:
            back = _handle(live, "rollback", before, live.mark)
            if (yield from self._look(back)).state is not State.FAILED:
                return back
        elif not (mine and live.image == release.image):
            raise self._drift(live, f"{release.image!r} of release {release.release_id}, or {before!r} as before")
        mark = yield from self._write(live, release, "rollback", before)
        return _handle(live, "rollback", before, mark)

    def _write(self, live: Live, release: Release, action: str, image: str) -> Steps[str]:
        """https://learn.microsoft.com/rest/api/container-instances/container-groups/create-or-update"""
        given = (yield Call(EXTRA, (SECRETS,))).value
        document = _writable(live, image)
        missing = list(_fill(document["properties"], given if isinstance(given, dict) else {}))
        if missing:
            self._api.refuse(
                f"has secrets that Azure hides and a write would lose: put {', '.join(missing)} into {SECRETS} of the "
                f"extra of connection {self.config.conn_id!r}; nothing was written"
            )
        mark = f"{release.release_id}|{action}|{live.at.isoformat()}"
        document["tags"] = {**(document.get("tags") or {}), TAG: mark}
        yield Call("begin_create_or_update", (document,))
        return mark

    def _look(self, handle: Handle) -> Steps[Observation]:
        return judge(handle, (yield from self._live()))

    def _drift(self, live: Live, expected: str) -> Drift:
        found = f"{live.image!r}" + (f", tagged by release {live.ours[0]}" if live.ours[0] else "")
        return Drift(
            f"group {self.config.group!r} runs {found}, expected {expected}; somebody else deployed there, nothing was "
            "written: look at the group's activity log",
            target=self.name,
        )


def _handle(live: Live, action: Literal["deploy", "rollback"], image: str, mark: str) -> Handle:
    return Handle(action=action, revision=image, data={"image": image, "mark": mark, "id": live.document.get("id")})


def _writable(live: Live, image: str) -> Json:
    """The group with another image, without what only Azure writes."""
    group: Json = {key: value for key, value in live.document.items() if key not in _READ_ONLY}
    properties = {k: v for k, v in group["properties"].items() if k not in ("instanceView", "provisioningState")}
    if address := properties.get("ipAddress"):
        properties["ipAddress"] = {k: v for k, v in address.items() if k not in ("ip", "fqdn")}
    containers = []
    for one in properties["containers"]:
        own = {k: v for k, v in one["properties"].items() if k != "instanceView"}
        own["image"] = image if one["name"] == live.container["name"] else own["image"]
        own["environmentVariables"] = [dict(item) for item in own.get("environmentVariables") or []]
        containers.append({**one, "properties": own})
    for name in ("imageRegistryCredentials", "volumes"):
        if properties.get(name):
            properties[name] = [dict(item) for item in properties[name]]
    return {**group, "properties": {**properties, "containers": containers}}


def _fill(properties: Json, secrets: Mapping[str, str]) -> Iterator[str]:
    """Put the secrets where Azure hides them; yields the names of those that are not known."""
    places: list[tuple[str, Json, str]] = []
    inits = properties.get("initContainers") or []
    for one in [*properties["containers"], *inits]:
        variables = one["properties"].get("environmentVariables") or []
        places += [(item["name"], item, "secureValue") for item in variables if item.get("value") is None]
    for login in properties.get("imageRegistryCredentials") or []:
        if login.get("username"):
            places.append((login["server"], login, "password"))
    for volume in properties.get("volumes") or []:
        if share := volume.get("azureFile"):
            volume["azureFile"] = share = dict(share)
            places.append((share["storageAccountName"], share, "storageAccountKey"))
        if "secret" in volume and volume["secret"] is not None:
            yield f"the secret volume {volume['name']} (which cannot be given there: mount a file share instead)"
    if logs := (properties.get("diagnostics") or {}).get("logAnalytics"):
        properties["diagnostics"] = {"logAnalytics": (logs := dict(logs))}
        places.append((logs["workspaceId"], logs, "workspaceKey"))
    for name, place, key in places:
        if name in secrets:
            place[key] = secrets[name]
        else:
            yield name


# --- judging, without any I/O ----------------------------------------------------------------------------------------


def judge(handle: Handle, live: Live) -> Observation:
    """Documents in, observation out; the same for both kinds of I/O."""
    if (live.image, live.mark) != (handle.data["image"], handle.data["mark"]):
        reason = f"the group runs {live.image!r}, tagged {live.mark!r}"
        return Observation(state=State.SUPERSEDED, reason=reason, revision=live.image)
    group, view = live.document["properties"], live.container["properties"].get("instanceView") or {}
    current, provisioning = view.get("currentState") or {}, str(group.get("provisioningState") or "")
    fresh = _since(current.get("startTime"), live.ours[2])
    restarts = view.get("restartCount") or 0
    said = f"provisioning {provisioning}, container {current.get('state') or 'not there'}, {restarts} restarts"
    stuck = current.get("detailStatus") in _WAITING or (restarts >= RESTARTS and current.get("state") != "Running")
    if provisioning == "Failed" or stuck:
        return Observation(state=State.FAILED, reason=_words(view, group) or said, revision=live.image)
    if provisioning == "Succeeded" and current.get("state") == "Running" and fresh:
        return Observation(state=State.HEALTHY, reason=said, revision=live.image)
    return Observation(state=State.PROGRESSING, reason=said)


def _since(started: str | None, written: str) -> bool:
    """Whether a container started after the write; Azure's clock on both sides."""
    if started is None or not written:
        return started is not None
    return datetime.fromisoformat(started.replace("Z", "+00:00")) >= datetime.fromisoformat(written)


def _words(view: Json, group: Json) -> str:
    """Why, from the last warnings and states."""
    events = [*(view.get("events") or []), *((group.get("instanceView") or {}).get("events") or [])]
    words = [str(event.get("message")) for event in events if event.get("type") == "Warning"][-3:]
    for state in (view.get("previousState") or {}, view.get("currentState") or {}):
        if state.get("exitCode"):
            words.append(f"exit code {state['exitCode']}")
        words.append(str(state.get("detailStatus") or ""))
    return "; ".join(dict.fromkeys(word for word in words if word))
