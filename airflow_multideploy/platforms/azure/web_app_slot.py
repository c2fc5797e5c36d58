"""Azure Web Apps that run one image, by a deployment slot and a swap (Linux): config, adapter and operator.

A release goes into the slot: our marker among its app settings, then ``linuxFxVersion`` with the image. When the slot
is well, it is swapped with production; the way back is the same swap again. The marker is no slot setting, so it
travels with the image: production runs the release when it has that release's marker and image.

A swap is not idempotent: a second one undoes the first. So before each one both sides are read, and Azure refuses one
while another is under way. ``deploy`` starts what is next and returns; while the slot is starting it raises a retryable
`PlatformError`, and the next call goes on from what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from airflow_multideploy import addresses
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.azure import HEALTH, Call, Steps, T
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.azure.site import AzureSite, AzureSiteConfig, Told
from airflow_multideploy.platforms.azure.site_judge import (
    Live,
    Marker,
    fx_version,
    image_of,
    read_marker,
    shown_fx,
    write_marker,
)
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State

PAUSE = 10.0
"""Fewest seconds until another look at a slot that is starting."""


class AzureWebAppSlotConfig(AzureSiteConfig):
    """One site with a deployment slot.

    :param slot: the slot that releases go into.
    :param slot_health_url: as ``health_url``, of the slot; None: ``https://``, the slot's default host name and
        ``health_path``.
    """

    platform: Literal["azure_web_app_slot"] = "azure_web_app_slot"
    slot: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,58}$")] = "staging"
    slot_health_url: Annotated[str, AfterValidator(addresses.written)] | None = None


class AzureWebAppSlot(AzureSite[AzureWebAppSlotConfig]):
    """Releases an image into a site's slot and swaps it with production, and swaps it back.

    A site counts as never deployed (``snapshot.exists`` False) while production's ``linuxFxVersion`` is empty or holds
    the portal's placeholder. Such a first-ever release is swapped back too: the placeholder serves again.

    A slot that does not become well is not swapped: production is not touched, and the rollout has failed.
    """

    linux: ClassVar[bool] = True
    kind: ClassVar[str] = "azure_web_app_slot"
    config_type: ClassVar[type[TargetConfig]] = AzureWebAppSlotConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="linuxFxVersion and our release marker of production and of the slot, the site's state, the version "
        "that the app told",
        early_failure="a failed container start in the slot's container log, in its words, before a swap",
        restores="production as it was, by swapping again: image and all settings that are no slot settings",
        tested_against="a simulator of Resource Manager held to azure-mgmt-web's models, with the real login flow",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="azure",
        connection="Type `multideploy_azure` or `azure`: login = client id, password = client secret, extra "
        "`tenantId` and `subscriptionId`. Without a secret: managed or workload identity.",
        protocol="In the slot: our marker `MULTIDEPLOY_RELEASE` among its app settings (all others are written back as "
        "they were read), then `linuxFxVersion`. When the slot's containers and its own answer say that it is well: "
        "swap with production. Back: both sides are read, and the same swap is made again; a release that was not "
        "swapped yet is marked in the slot's metadata, so that no late attempt swaps it. The deploy task holds its "
        "worker slot until the swap is accepted; the slot is looked at in growing pauses, five of them in one attempt "
        "of the task, over about four minutes.",
        permissions="The role *Website Contributor* on the site, or `Microsoft.Web/sites/read`, and below "
        "`Microsoft.Web/sites` and `Microsoft.Web/sites/slots`: `read`, `config/read`, `config/write`, "
        "`config/list/action`, `instances/read`, `containerlogs/*`, `restart/action`, `slotsswap/action`.",
        not_undone="slot settings, which stay where they are; the slot keeps the release that was taken back.",
        example="azure: {platform: azure_web_app_slot, conn_id: azure_prod, resource_group: rg, site: shop, "
        "slot: staging}",
    )

    def _wanted(self, release: Release) -> str:
        return fx_version(release.image)

    def _read(self) -> Steps[Told]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/list-application-settings"""
        answer = yield Call("get_configuration")
        while True:
            settings = (yield Call("list_application_settings")).value
            config, again = answer.value["properties"], (yield Call("get_configuration"))
            fx = config.get("linuxFxVersion") or ""
            if fx == (again.value["properties"].get("linuxFxVersion") or ""):
                break
            answer = again  # a swap came between the two: image of one side, settings of the other
        if fx and image_of(fx) is None:
            self._api.refuse(f"runs {shown_fx(fx)!r}, not one image; make it a site for containers first")
        windows = bool(config.get("windowsFxVersion"))
        return Told(fx, settings.get("properties") or {}, answer.at, config.get("numberOfWorkers"), windows)

    def _write(self, live: Live, marker: Marker) -> Steps[None]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/update-application-settings-slot"""
        if live.marker != marker:
            yield Call("update_application_settings", ({"properties": write_marker(live.metadata, marker)},))
        if live.fx != marker.fx:
            yield Call("update_configuration", ({"properties": {"linuxFxVersion": marker.fx}},))
        else:
            yield Call("restart")  # the same image again: a PATCH that changes nothing would not pull it

    def _in_slot(self, steps: Steps[T], host: str = "") -> Steps[T]:
        """The same steps with the slot in place of production."""
        try:
            call = next(steps)
            while True:
                there = Call(f"{call.operation}_slot", (self.config.slot, *call.arguments))
                if call.operation == HEALTH:
                    there = Call(HEALTH, (self.config.slot_health_url or f"https://{host}{self.config.health_path}",))
                try:
                    answer = yield there
                except PlatformError as error:
                    call = steps.throw(error)
                    continue
                if call.operation == "get":
                    host = answer.value["properties"].get("defaultHostName") or ""
                call = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _both(self) -> Steps[tuple[Live, Live]]:
        """Production and slot, with no swap between the two looks."""
        live = yield from self._live()
        while True:
            slot = yield from self._in_slot(self._live())
            again = yield from self._live()
            if _side(again) == _side(live):
                return again, slot
            live = again

    def _swapped(self) -> Steps[datetime | None]:
        """When production was last swapped with the slot, by Azure's clock."""
        status = ((yield Call("get")).value["properties"].get("slotSwapStatus")) or {}
        stamp = status.get("timestampUtc")
        return datetime.fromisoformat(stamp.replace("Z", "+00:00")) if stamp else None

    def _swap(self) -> Steps[None]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/swap-slot-with-production"""
        yield Call("begin_swap_slot_with_production", ({"targetSlot": self.config.slot, "preserveVnet": True},))

    def _snapshot(self) -> Steps[Snapshot]:
        taken = yield from super()._snapshot()
        slot = yield from self._in_slot(self._live())
        return taken.model_copy(update={"data": {**taken.data, "slot": _side(slot)}})

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        live, ours = (yield from self._live()), self._wanted(release)
        before = (snapshot.data["fx"], snapshot.data["marker"])
        if live.fx == ours and _ours(live, release):
            return self._swapped_handle(live, release, snapshot, "deploy")  # an earlier attempt's swap
        if (live.fx, _dump(live)) != before and not release.force:
            raise self._drift(live, f"{before[0]!r} as in the snapshot")
        if live.fx == ours and not release.force:
            handle = self._swapped_handle(live, release, snapshot, "deploy")
            handle = handle.model_copy(update={"changed": False, "data": {**handle.data, "marked": False}})
            if (yield from self._look(handle)).state is State.HEALTHY:
                return handle
        slot = yield from self._in_slot(self._live())
        marker = slot.marker if _ours(slot, release) else None
        over = marker is not None and (yield from self._over(marker, release))
        if marker is None or over:
            live = yield from self._live()
            if live.fx == ours and _ours(live, release):
                return self._swapped_handle(live, release, snapshot, "deploy")  # it landed while we looked
        if over:
            raise Drift(
                f"release {release.release_id} was rolled back here meanwhile; start a new one", target=self.name
            )
        if marker is None:
            if _side(slot) != snapshot.data["slot"] and not release.force:
                raise self._drift(slot, f"{snapshot.data['slot']!r} in slot {self.config.slot!r} as in the snapshot")
            seen, last = (yield from self._in_slot(self._before())), (yield from self._swapped())
            since = max(datetime.fromisoformat(slot.at), last or datetime.min.replace(tzinfo=UTC)).isoformat()
            marker = Marker(release.release_id, "deploy", ours, since, tuple(seen.containers), seen.log)
        if (slot.marker, slot.fx) != (marker, ours):
            yield from self._in_slot(self._write(slot, marker))
            raise self._starting(slot, marker, "the image was just put there")
        waited = self._handle(slot, marker, release, snapshot)
        ready = yield from self._in_slot(self._judge_live(waited, slot), slot.host)
        if ready.state is State.PROGRESSING:
            raise self._starting(slot, marker, ready.reason)
        if ready.state is State.HEALTHY:
            yield from self._swap()
        return self._swapped_handle(live, release, snapshot, "deploy", slot=waited.data)

    def _over(self, marker: Marker, release: Release) -> Steps[bool]:
        """Whether the release in the slot is one that came and went."""
        return self._taken_back((yield from self._slot_metadata()), release) or (yield from self._was_swapped(marker))

    def _was_swapped(self, marker: Marker) -> Steps[bool]:
        """Whether the release has been in production since it was put into the slot, where it is (again)."""
        at = yield from self._swapped()
        return at is not None and marker.since is not None and at > datetime.fromisoformat(marker.since)

    def _slot_metadata(self) -> Steps[dict[str, str]]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/list-metadata-slot"""
        answer = yield Call("list_metadata_slot", (self.config.slot,))
        return answer.value.get("properties") or {}

    def _taken_back(self, metadata: Mapping[str, str], release: Release) -> bool:
        mark = read_marker(metadata)
        return mark is not None and mark.release_id == release.release_id

    def _take_back(self, release: Release, slot: Live) -> Steps[None]:
        """No late attempt may swap a release that was never in production; while a swap is under way, Azure refuses.

        The mark is not among the app settings: a swap that lands just before the write would have brought those of
        production there.
        """
        metadata = yield from self._slot_metadata()
        if not self._taken_back(metadata, release):
            marker = Marker(release.release_id, "rollback", slot.fx, None, (), None)
            pairs = [{"name": name, "value": value} for name, value in write_marker(metadata, marker).items()]
            yield Call("update_configuration_slot", (self.config.slot, {"properties": {"metadata": pairs}}))

    def _starting(self, slot: Live, marker: Marker, reason: str) -> PlatformError:
        """Comes again after a little more than the time it has taken so far, so that a few tries cover a slow start."""
        age = (datetime.fromisoformat(slot.at) - datetime.fromisoformat(str(marker.since))).total_seconds()
        return self.error(
            f"slot {self.config.slot!r} is starting: {reason}", retryable=True, retry_after=max(PAUSE, 1.25 * age)
        )

    def _rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Steps[Handle]:
        (live, slot), ours = (yield from self._both()), self._wanted(release)
        back = self._swapped_handle(live, release, snapshot, "rollback")
        before = (snapshot.data["fx"], snapshot.data["marker"])
        if (live.fx, _dump(live)) == before:
            if not _ours(slot, release) or slot.marker is None:
                return back.model_copy(update={"changed": False})
            if not (yield from self._was_swapped(slot.marker)):
                yield from self._take_back(release, slot)
            live, slot = yield from self._both()  # a swap may have landed just before the mark
            if (live.fx, _dump(live)) == before:
                return back
        if not (live.fx == ours and _ours(live, release)):
            raise self._drift(live, f"{ours!r} of release {release.release_id}, or as in the snapshot")
        if (slot.fx, _dump(slot)) != before:
            raise self._drift(slot, f"{snapshot.data['fx']!r}, which ran before, in slot {self.config.slot!r}")
        yield from self._swap()
        return back.model_copy(update={"data": {**back.data, "swapping": True}})

    def _look(self, handle: Handle) -> Steps[Observation]:
        if not handle.data.get("marked", True):
            return (yield from super()._look(handle))
        live = yield from self._live()
        there = waiting = _side(live) == handle.data["before"]
        if handle.action == "deploy":
            there = live.fx == handle.data["fx"] and _release(live) == handle.data["release"]
        if there:
            seen = yield from self._judge_live(handle, live)
            # That the marker came with the swap tells the release from what ran before, also when the app does not.
            return seen.model_copy(update={"verified": True}) if live.state.lower() == "running" else seen
        if handle.action == "rollback":  # not swapping: the swap of a late attempt landed, so go back once more
            waiting = _release(live) == handle.data["release"] and bool(handle.data.get("swapping"))
        if not waiting:
            reason = f"production runs {live.fx!r}, neither the release nor what ran before"
            return Observation(state=State.SUPERSEDED, reason=reason, revision=live.fx or None)
        slot: Any = handle.data.get("slot")
        if slot is not None:
            seen = yield from self._in_slot(super()._look(Handle(action="deploy", data=slot)))
            if seen.state in (State.FAILED, State.PROGRESSING):
                return seen.model_copy(
                    update={"reason": f"slot {self.config.slot!r}, not swapped: {seen.reason}", "revision": live.fx}
                )
        return Observation(state=State.PROGRESSING, reason="the swap is under way", revision=live.fx or None)

    def _judge_live(self, handle: Handle, live: Live) -> Steps[Observation]:
        at = datetime.fromisoformat(live.at)
        return self._judged(handle, fx=live.fx, at=at, host=live.host, state=live.state)

    def _swapped_handle(
        self,
        live: Live,
        release: Release,
        snapshot: Snapshot,
        action: Literal["deploy", "rollback"],
        slot: Mapping[str, Any] | None = None,
    ) -> Handle:
        """About production, once it is swapped; ``slot`` tells how the slot is judged until then.

        Until then production runs what it runs now, which under ``force`` need not be the snapshot.
        """
        deploying = action == "deploy"
        fx = self._wanted(release) if deploying else str(snapshot.data["fx"])
        marker = Marker(release.release_id, action, fx, None, (), None)
        handle = self._handle(live, marker, release, snapshot)
        replaced = deploying and not _ours(live, release)
        before = _side(live) if replaced else {key: snapshot.data[key] for key in ("fx", "marker")}
        known = {"release": release.release_id, "before": before}
        return handle.model_copy(update={"data": {**handle.data, **known, **({"slot": dict(slot)} if slot else {})}})


def _release(live: Live) -> str | None:
    return live.marker.release_id if live.marker else None


def _ours(live: Live, release: Release) -> bool:
    return _release(live) == release.release_id


def _dump(live: Live) -> dict[str, Any] | None:
    return live.marker.dump() if live.marker else None


def _side(live: Live) -> dict[str, Any]:
    return {"fx": live.fx, "marker": _dump(live)}
