"""A Docker host: one container by name, made anew for each release through the Engine API, the one before kept.

The container's name is the concurrency token: the Engine gives a name to one container at a time, and every write but
the last renaming names a container by its id. What we made carries the release id as a label.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.docker import Host, refuse_open
from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.onprem.http_judge import run_of
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
from airflow_multideploy.strict import Seconds

RELEASE_LABEL, CONFIG_LABEL = "multideploy.release", "multideploy.config"


class DockerConfig(TargetConfig):
    """One container on one Docker host.

    :param url: the Engine: ``unix:///var/run/docker.sock`` of the worker, or ``tcp://host:2376``, for which the TLS
        keys are required unless it is this machine.
    :param tls_ca_cert: path on workers and triggerers: the certificate authority of the Engine.
    :param tls_client_cert: path of the client certificate.
    :param tls_client_key: path of the client certificate's key.
    :param container: its name. While a release is under way, and after it, the container before is kept, stopped, as
        ``NAME-before-ID``.
    :param environment: environment variables (never secrets: those stand in the Connection's extra ``environment``).
    :param ports: container port (``8080`` or ``53/udp``) to the host's ``port`` or ``address:port``.
    :param volumes: binds, as ``source:/path`` or ``source:/path:ro``.
    :param network: name of the network, or ``host`` or ``none``.
    :param command: the words of the command; empty: the image's own.
    :param restart: the container's restart policy.
    :param create: more of the Engine's own document for a new container, such as ``{HostConfig: {Memory: 268435456}}``;
        it wins over the keys above.
    :param stop_timeout: seconds that the container before gets to end, before it is killed.
    :param pull_timeout: seconds that the image may take to come; the task waits for it, as the Engine pulls only while
        somebody listens.
    :param settle: seconds that a container without a health check has to run.
    :param restarts: restarts after which the rollout counts as failed.
    """

    platform: Literal["docker"] = "docker"
    url: Annotated[str, Field(pattern=r"^(unix:///|tcp://)[^\s]+$")] = "unix:///var/run/docker.sock"
    tls_ca_cert: str | None = None
    tls_client_cert: str | None = None
    tls_client_key: str | None = None
    container: Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,80}$")]
    environment: dict[str, str] = Field(default_factory=dict)
    ports: dict[str, str] = Field(default_factory=dict)
    volumes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    network: str | None = None
    command: Annotated[tuple[str, ...], Field(strict=False)] = ()
    restart: Literal["no", "always", "unless-stopped", "on-failure"] = "unless-stopped"
    create: dict[str, JsonValue] = Field(default_factory=dict)
    stop_timeout: Annotated[int, Field(ge=0, le=25)] = 10
    pull_timeout: Seconds = 300.0
    settle: Seconds = 3.0
    restarts: Annotated[int, Field(ge=1)] = 3

    @model_validator(mode="after")
    def _private(self) -> DockerConfig:
        refuse_open(self.url, tls=bool(self.tls_ca_cert or self.tls_client_cert))
        return self

    def body(self) -> dict[str, Any]:
        """The Engine's document for a new container, without image, labels and secrets.

        https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerCreate
        """
        bindings = {}
        for inside, outside in self.ports.items():
            address, _, port = outside.rpartition(":")
            bindings[inside if "/" in inside else f"{inside}/tcp"] = [{"HostIp": address, "HostPort": port}]
        host: dict[str, Any] = {"RestartPolicy": {"Name": self.restart}, "Binds": list(self.volumes)}
        host |= {"PortBindings": bindings} | ({"NetworkMode": self.network} if self.network else {})
        body: dict[str, Any] = {"Env": [f"{name}={value}" for name, value in self.environment.items()]}
        body["ExposedPorts"] = {port: {} for port in bindings}
        if self.command:
            body["Cmd"] = list(self.command)
        more = dict(self.create)
        own = more.pop("HostConfig", {})
        return {**body, **more, "HostConfig": {**host, **(own if isinstance(own, dict) else {})}}


class Docker(Platform[DockerConfig]):
    """Releases an image to a Docker host as a new container under the same name, and keeps the one before.

    Between the stop of the old container and the start of the new one nothing serves: both need the same ports.
    """

    kind = "docker"
    config_type: ClassVar[type[TargetConfig]] = DockerConfig
    capabilities = Capabilities(
        snapshot="id, image, restart policy of the container with the name, and whether it ran",
        early_failure="an exited, dead or unhealthy container, or repeated restarts; with exit code, the Engine's "
        "words and the health check's output",
        restores="the container before itself: image, environment, ports, mounts and its own file system",
        tested_against="a real Docker Engine 20.10 behind a loopback proxy, with a real image registry",
    )
    manual = Manual(
        connection="Of any type (`docker` where the Docker provider is installed): host, login and password of the "
        "*image registry*, or nothing but its id for a public one; environment variables that are secret in extra "
        '`{"environment": {"NAME": "value"}}`. The Engine itself is named by `url`, and known by TLS certificates. The '
        "triggerer's looks run the blocking SDK in a thread.",
        protocol="1. Read: the container with the name.\n"
        "2. Pull the image, with the Connection's login.\n"
        "3. Create `NAME-ID` with the labels `multideploy.release` and `multideploy.config`.\n"
        "4. Stop the old one (its restart policy is set to `no`, or the Engine's own restart would bring it back), "
        "rename it to `NAME-before-ID` and the new one to `NAME`; start the new one.\n"
        "5. Look until it is healthy, or has run for `settle` seconds where it has no health check.\n"
        "6. Back: remove the new one, rename the old one back, give it its restart policy again, start it. After a "
        "first-ever release: remove.\n\nThe container before the one before is removed by the next release.",
        permissions="Access to the Engine's API is root on that host: there is no smaller right. Behind an "
        "authorization proxy it needs: `GET /version`, `/info`, `/containers/json`, `/containers/*/json`, "
        "`/images/*/json`; `POST /images/create`, `/containers/create`, `/containers/*/{rename,update,stop,start,"
        "restart}`; `DELETE /containers/*`.",
        not_undone="what the container wrote to volumes and elsewhere; the pulled image stays on the host.",
        example="web1:\n  platform: docker\n  conn_id: registry\n  url: tcp://web1.example.com:2376\n"
        "  tls_ca_cert: /certs/ca.pem\n  tls_client_cert: /certs/cert.pem\n  tls_client_key: /certs/key.pem\n"
        '  container: shop\n  ports: {"8080": "80"}\n  volumes: ["shop-data:/data"]',
        extra="docker",
    )

    def __init__(self, config: DockerConfig, *, service: str, target: str) -> None:
        super().__init__(config, service=service, target=target)
        self._host = Host(self)

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        """See `Platform.snapshot`."""
        with self._host.open() as engine:
            live = self._inspect(engine, self.config.container)
            if live is None:
                return Snapshot(exists=False, data={"id": None})
            runs, policy = live["State"]["Status"] in ("running", "restarting"), live["HostConfig"]["RestartPolicy"]
            data: dict[str, JsonValue] = {"id": live["Id"], "runs": runs, "restart": policy}
            return Snapshot(exists=True, revision=live["Id"], image=live["Config"]["Image"], data=data)

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`. It waits for the image's pull, and for the old container's end."""
        with self._host.open() as engine:
            live, mine = self._inspect(engine, self.config.container), self._mine(engine, release)
            if mine and live and live["Id"] == mine["Id"] and mine["State"]["Status"] != "created":
                return Handle(action="deploy", revision=mine["Id"], data={"runs": True})
            if not release.force:
                self._check_drift(engine, live, release, snapshot)
            if mine is None:
                image = self._host.pulled(engine, release.image)
                if not release.force and live and self._same(live, image):
                    there = Handle(action="deploy", revision=live["Id"], changed=False, data={"runs": True})
                    if self._judged(engine, there, live).state is State.HEALTHY:
                        return there
                mine = {"Id": self._created(engine, release)}
            self._swap(engine, release, snapshot, live, mine["Id"])
            return Handle(action="deploy", revision=mine["Id"], data={"runs": True})

    def observe(self, handle: Handle) -> Observation:
        """See `Platform.observe`."""
        with self._host.open() as engine:
            return self._judged(engine, handle, self._inspect(engine, self.config.container))

    async def aobserve(self, handle: Handle) -> Observation:
        """See `Platform.aobserve`. Docker's SDK has no asynchronous variant: it runs in a thread."""
        return await asyncio.to_thread(self.observe, handle)

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """See `Platform.rollback`."""
        name, before = self.config.container, snapshot.data["id"]
        with self._host.open() as engine:
            live, mine = self._inspect(engine, name), self._mine(engine, release)
            if live and live["Id"] != before and not _ours(live, release):
                raise self._drift(live, snapshot)
            made = {each["Id"] for each in (live, mine) if each and each["Id"] != before}
            back = Handle(action="rollback", revision=snapshot.revision, changed=bool(made), data={"runs": True})
            if not snapshot.exists:
                for each in made:
                    engine.remove_container(each, force=True)
                return back
            kept = self._inspect(engine, str(before))
            if kept is None:
                raise self.error(f"the container before ({before!s:.12}) is gone; deploy the version that is wanted")
            for each in made:
                engine.remove_container(each, force=True)
            if kept["Name"] != f"/{name}":
                engine.rename(before, name)
            return back.model_copy(
                update={"changed": self._revived(engine, kept, snapshot) or bool(made), "data": dict(snapshot.data)}
            )

    # --- steps -----------------------------------------------------------------------------------------------------

    def _swap(self, engine: Any, release: Release, snapshot: Snapshot, live: Any, mine: str) -> None:
        """The new container takes the name, then the place. Each step is seen by the next try.

        https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerRename
        """
        from docker.errors import APIError

        name, kept = self.config.container, f"{self.config.container}-before-{release.release_id}"
        before = live if live and live["Id"] != mine else self._inspect(engine, kept)
        if before is not None and before["State"]["Status"] in ("running", "restarting", "paused"):
            # Before it is renamed: the Engine cannot rename a container that it is about to restart.
            engine.update_container(before["Id"], restart_policy={"Name": "no"})
            engine.stop(before["Id"], timeout=self.config.stop_timeout)
        if live is None or live["Id"] != mine:
            if live is not None:
                engine.rename(live["Id"], kept)
            engine.rename(mine, name)
        engine.start(mine)
        ours = re.compile(rf"/{re.escape(name)}-before-r[0-9a-f]+(-\d+)?")  # no `shop-before-migration` of somebody's
        for old in engine.containers(all=True, filters={"name": f"^/{name}-before-"}):
            known = old["Id"] == snapshot.data["id"] or old["Names"] == [f"/{kept}"] or old["State"] == "running"
            if not known and all(ours.fullmatch(each) for each in old["Names"]):
                with suppress(APIError):  # one that cannot be removed now, the next release removes
                    engine.remove_container(old["Id"])

    def _revived(self, engine: Any, kept: dict[str, Any], snapshot: Snapshot) -> bool:
        """Whether the container before, which ran, had to be started again."""
        if not snapshot.data["runs"]:
            return False
        state = kept["State"]
        if kept["HostConfig"]["RestartPolicy"] != snapshot.data["restart"]:
            engine.update_container(kept["Id"], restart_policy=snapshot.data["restart"])
        if state["Status"] in ("running", "restarting") and (state.get("Health") or {}).get("Status") != "unhealthy":
            return False
        engine.restart(kept["Id"], timeout=self.config.stop_timeout)
        return True

    def _created(self, engine: Any, release: Release) -> str:
        """Id of a new container, not yet started."""
        body, extra = self.config.body(), self._host.connection().extra_dejson.get("environment") or {}
        labels = {RELEASE_LABEL: release.release_id, CONFIG_LABEL: self._fingerprint()}
        labels |= {"multideploy.version": release.version, "multideploy.target": self.name}
        body["Env"] = [*body["Env"], *(f"{key}={value}" for key, value in extra.items())]
        document = {**body, "Image": release.image, "Labels": {**body.get("Labels", {}), **labels}}
        name = f"{self.config.container}-{release.release_id}"
        return str(engine.create_container_from_config(document, name)["Id"])

    # --- reading ---------------------------------------------------------------------------------------------------

    def _inspect(self, engine: Any, container: str) -> dict[str, Any] | None:
        from docker.errors import NotFound

        try:
            found: dict[str, Any] = engine.inspect_container(container)
        except NotFound:
            return None
        return found

    def _mine(self, engine: Any, release: Release) -> dict[str, Any] | None:
        labels = [f"{RELEASE_LABEL}={release.release_id}", f"multideploy.target={self.name}"]
        listed = engine.containers(all=True, filters={"label": labels})
        return self._inspect(engine, listed[0]["Id"]) if listed else None

    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.config.body(), sort_keys=True).encode()).hexdigest()[:16]

    def _same(self, live: dict[str, Any], image: str) -> bool:
        labels = live["Config"].get("Labels") or {}
        return live["Image"] == image and labels.get(CONFIG_LABEL) == self._fingerprint()

    def _check_drift(self, engine: Any, live: dict[str, Any] | None, release: Release, snapshot: Snapshot) -> None:
        before = snapshot.data["id"]
        if live is not None:
            if live["Id"] != before and not _ours(live, release):
                raise self._drift(live, snapshot)
        elif before is not None:
            kept = self._inspect(engine, str(before))
            if kept is None or kept["Name"] != f"/{self.config.container}-before-{release.release_id}":
                raise self._drift(None, snapshot)

    def _drift(self, live: dict[str, Any] | None, snapshot: Snapshot) -> Drift:
        there = f"{live['Id']:.12} ({live['Config']['Image']})" if live else "no container"
        return Drift(
            f"{self.config.container!r} is {there}, neither this release nor the snapshot "
            f"({snapshot.revision or 'none':.12}): somebody else changed it; nothing was written; look at it first",
            target=self.name,
        )

    def _judged(self, engine: Any, handle: Handle, live: dict[str, Any] | None) -> Observation:
        state = live["State"] if live else {}
        plain = state.get("Status") == "running" and not state.get("Health")
        return judge(handle, live, engine.info()["SystemTime"] if plain else "", self.config)


def judge(  # noqa: PLR0911 - one return for each state
    handle: Handle, live: dict[str, Any] | None, now: str, config: DockerConfig
) -> Observation:
    """What one look at the container with the name means.

    :param now: the host's time, when the container runs and has no health check.
    """

    def say(state: State, reason: str, progress: float | None = None) -> Observation:
        return Observation(state=state, reason=reason, revision=live and live["Id"], progress=progress)

    if live is None:
        if handle.revision is None:
            return say(State.HEALTHY, "there is no container, as before the first release")
        return say(State.SUPERSEDED, f"there is no container {config.container!r}")
    if live["Id"] != handle.revision:
        return say(State.SUPERSEDED, f"{config.container!r} is another container ({live['Config']['Image']})")
    state, restarts = live["State"], live["RestartCount"]
    status, health = state["Status"], state.get("Health") or {}
    if not handle.data.get("runs"):
        return say(State.HEALTHY, f"the container before is back; it is {status}, and did not run before either")
    ended = f"exit code {state['ExitCode']}" + (", out of memory" if state["OOMKilled"] else "")
    words = f"{status}: {ended}, {restarts} restarts {state.get('Error') or ''}".strip()
    if status in ("exited", "dead", "removing") or (status == "restarting" and restarts >= config.restarts):
        return say(State.FAILED, words)
    if status != "running":
        return say(State.PROGRESSING, words)
    said = (health.get("Log") or [{}])[-1].get("Output", "").strip()
    if health.get("Status") == "unhealthy":
        return say(State.FAILED, f"unhealthy: {said}")
    if health and health.get("Status") != "none":
        done = health["Status"] == "healthy"
        return say(State.HEALTHY if done else State.PROGRESSING, f"{health['Status']} {said}".strip())
    age = (datetime.fromisoformat(now) - datetime.fromisoformat(state["StartedAt"])).total_seconds()
    if age < config.settle:
        return say(State.PROGRESSING, f"running for {max(age, 0):.1f} of {config.settle:g} s", 0.9)
    return say(State.HEALTHY, "running")


def _ours(live: dict[str, Any], release: Release) -> bool:
    mark = (live["Config"].get("Labels") or {}).get(RELEASE_LABEL, "")
    return run_of(mark) == run_of(release.release_id)
