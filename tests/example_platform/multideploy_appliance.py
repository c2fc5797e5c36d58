"""The platform ``appliance``: an application behind an in-house deploy API. A template for platforms of your own."""

from typing import Any, Literal

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.rest import Call, RestPlatform, Steps, at
from airflow_multideploy.release.contract import Capabilities, Handle, Observation, Release, Snapshot, State


class ApplianceConfig(TargetConfig):
    """One application.

    :param app: its name there.
    """

    platform: Literal["appliance"]
    app: str


class Appliance(RestPlatform[ApplianceConfig]):
    """One application on the appliance."""

    kind, api, config_type = "appliance", "appliance", ApplianceConfig
    capabilities = Capabilities(
        snapshot="image", early_failure="the operation's state", restores="image", tested_against="a stand-in"
    )

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        _, live = self._run(self._read())
        return Snapshot(exists=bool(live), revision=live.get("revision"), image=live.get("image"))

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        told, live = self._run(self._read())
        if told.get("release_id") == release.release_id:  # an earlier try of ours came through
            return Handle(action="deploy", revision=told["revision"])
        if not release.force and told.get("revision") != snapshot.revision != live.get("revision"):
            raise Drift(f"{told.get('image')} was deployed by somebody else", target=self.name)
        if not release.force and told and told["revision"] == live.get("revision") and live["image"] == release.image:
            return Handle(action="deploy", revision=live["revision"], changed=False)
        return Handle(action="deploy", revision=self._run(self._put(told, release.image, release.release_id)))

    def observe(self, handle: Handle) -> Observation:
        return self._judge(handle, *self._run(self._read()))

    async def aobserve(self, handle: Handle) -> Observation:
        return self._judge(handle, *await self._arun(self._read()))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        told, back = self._run(self._read())[0], f"{release.release_id}-back"
        ours, failed = told.get("release_id"), told.get("state") == "failed"
        if told.get("revision") == snapshot.revision or (ours == back and not failed):
            return Handle(action="rollback", revision=told.get("revision"), changed=ours == back)
        if ours not in (release.release_id, back):
            raise Drift(f"{told.get('image')} was deployed by somebody else", target=self.name)
        return Handle(action="rollback", revision=self._run(self._put(told, snapshot.image, back)))

    def _read(self) -> Steps[tuple[dict[str, Any], dict[str, Any]]]:
        """What the appliance was told to run, with ETag and state of the operation; and what it serves."""
        told = yield Call("GET", at("apps", self.config.app), also=(404,))
        live = yield Call("GET", at("apps", self.config.app, "version"), also=(404,))
        known = {**told.document, "etag": told.headers["etag"]} if told.status == 200 else {}
        if known.get("operation"):
            known |= (yield Call("GET", at("operations", known["operation"]))).document
        return known, live.document if live.status == 200 else {}

    def _put(self, told: dict[str, Any], image: str | None, release_id: str) -> Steps[str | None]:
        guard = {"If-Match": told["etag"]} if told else {"If-None-Match": "*"}
        body = {"image": image, "version": str(image).rpartition(":")[2], "release_id": release_id}
        call = Call("PUT" if image else "DELETE", at("apps", self.config.app), body=image and body, headers=guard)
        return ((yield call).document or {}).get("revision")

    def _judge(self, handle: Handle, told: dict[str, Any], live: dict[str, Any]) -> Observation:
        if told.get("revision") != handle.revision:
            return Observation(state=State.SUPERSEDED, reason=f"{told.get('image')} was deployed by somebody else")
        ended = told.get("state", "succeeded")
        healthy = live.get("revision") == handle.revision
        state = State.HEALTHY if healthy else State.FAILED if ended == "failed" else State.PROGRESSING
        return Observation(state=state, reason=str(told.get("reason") or ended), revision=live.get("revision"))
