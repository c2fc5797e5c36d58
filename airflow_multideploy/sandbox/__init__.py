"""The sandbox: all four platforms as stand-ins on 127.0.0.1, with a control API for faults, for demo and tests.

with Sandbox(seconds=2) as sandbox:
    print(sandbox.connections(), sandbox.control_url)
    sandbox.wait()
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from airflow_multideploy.sandbox.world import PLATFORMS, StandIn, World

if TYPE_CHECKING:
    import trustme

__all__ = ["CONN_IDS", "TARGETS", "Sandbox"]

CONN_IDS = {"aws_ecs": "aws_prod", "azure_web_app": "azure_prod", "gcp_cloud_run": "gcp_prod", "http": "dc1"}
"""The Airflow Connection that leads to each stand-in."""

TARGETS = {"aws": "aws_ecs", "azure": "azure_web_app", "gcp": "gcp_cloud_run", "onprem": "http"}
"""What the sandbox's own catalog calls the target on each stand-in."""

_STAND_INS = {
    "aws_ecs": "AwsEcsStandIn",
    "azure_web_app": "AzureWebAppStandIn",
    "gcp_cloud_run": "GcpCloudRunStandIn",
    "http": "HttpStandIn",
}


class Sandbox:
    """Serves the stand-ins and the control API while the ``with`` block runs; afterwards every port is free again.

    :param seconds: how long a rollout takes.
    :param per_platform: the same for single platforms.
    :param platforms: which stand-ins; their SDK test servers are imported only then.
    :param ports: fixed ports by kind, and ``control``; what is not named takes a free one.
    :param secrets: the password or token that each kind's stand-in expects and hands out in its Connection.
    :param folder: where the local certificate authority lives (``ca.pem`` and its key); a second sandbox on the same
        folder is trusted by the first one's Connections. None: a folder that is removed at the end.
    :raises ValueError: an unknown platform, or a port for something that is not served.
    """

    def __init__(
        self,
        *,
        seconds: float = 8.0,
        per_platform: dict[str, float] | None = None,
        platforms: Sequence[str] = PLATFORMS,
        ports: dict[str, int] | None = None,
        secrets: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        for name, given in (("platforms", platforms), ("per_platform", per_platform or {}), ("secrets", secrets or {})):
            if unknown := set(given) - set(PLATFORMS):
                raise ValueError(f"{name}: {', '.join(sorted(unknown))} unknown; there are {', '.join(PLATFORMS)}")
        if unserved := set(ports or {}) - {*platforms, "control"}:
            raise ValueError(
                f"ports: {', '.join(sorted(unserved))} not served; served are {', '.join(platforms)}, control"
            )
        self.platforms = tuple(platforms)
        self.world = World(seconds=seconds, per_platform=dict(per_platform or {}))
        self.stand_ins: dict[str, StandIn] = {}
        self.control_url, self.folder = "", Path()
        self._ports, self._secrets, self._folder = dict(ports or {}), dict(secrets or {}), folder
        self._seeded: dict[str, set[str]] = {}
        self._exits = ExitStack()
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        from airflow_multideploy.sandbox.control import control_app
        from airflow_multideploy.sandbox.server import Server

        self._stopped.clear()
        with ExitStack() as exits:
            folder = self._folder or Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="multideploy-")))
            self.folder = folder.resolve()
            ca, ca_file = _authority(self.folder)
            for kind in self.platforms:
                stand_in = self._stand_in(kind, ca, ca_file)
                stand_in.start()
                exits.callback(stand_in.stop)
                self.stand_ins[kind] = stand_in
            control = Server(control_app(self), port=self._ports.get("control", 0)).start()
            exits.callback(control.stop)
            self.control_url = control.url
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._exits.close()

    def connections(self) -> dict[str, dict[str, Any]]:
        """Airflow Connections that lead to the stand-ins, by conn_id, as JSON documents."""
        return {CONN_IDS[kind]: stand_in.connection() for kind, stand_in in self.stand_ins.items()}

    def environment(self) -> dict[str, str]:
        """The same Connections as environment variables ``AIRFLOW_CONN_…`` for a process to inherit."""
        return {f"AIRFLOW_CONN_{name.upper()}": json.dumps(doc) for name, doc in self.connections().items()}

    def target(self, kind: str, resource: str) -> dict[str, Any]:
        """The whole catalog entry of a target on a resource of a stand-in."""
        return {**self.stand_ins[kind].target(resource), "conn_id": CONN_IDS[kind]}

    def catalog(self) -> dict[str, Any]:
        """A whole catalog: each seeded resource is a service, with a target on every stand-in that has it."""
        services: dict[str, Any] = {}
        for target, kind in TARGETS.items():
            for resource in self.seeded().get(kind, []):
                image = self.stand_ins[kind].live(resource).image or f"registry.example.com/{resource}"
                new = {"artifact": {"image": _repository(image)}, "targets": {}}
                services.setdefault(resource, new)["targets"][target] = self.target(kind, resource)
        return services

    def seed(self, kind: str, resource: str, image: str | None) -> None:
        """Create a resource, as `StandIn.seed`, and show it in ``GET /state`` from now on."""
        self.stand_ins[kind].seed(resource, image)
        self._seeded.setdefault(kind, set()).add(resource)

    def seeded(self) -> dict[str, list[str]]:
        """The resources seeded so far, by kind."""
        return {kind: sorted(names) for kind, names in self._seeded.items()}

    def wait(self, seconds: float | None = None) -> bool:
        """Block until the sandbox stops (True) or the seconds are over (False)."""
        return self._stopped.wait(seconds)

    def stop(self) -> None:
        """Let `wait` return, for a signal handler; the ports close when the ``with`` block is left."""
        self._stopped.set()

    def _stand_in(self, kind: str, ca: trustme.CA, ca_file: Path) -> StandIn:
        cls = getattr(import_module(f"{__name__}.{kind}"), _STAND_INS[kind])
        options: dict[str, Any] = {"ca_file": ca_file} if kind == "azure_web_app" else {}
        if kind in self._secrets:
            options["secret"] = self._secrets[kind]
        stand_in: StandIn = cls(self.world, port=self._ports.get(kind, 0), ca=ca, **options)
        return stand_in


def _repository(image: str) -> str:
    """An image reference without tag and digest."""
    path, slash, name = image.partition("@")[0].rpartition("/")
    return path + slash + name.partition(":")[0]


def _authority(folder: Path) -> tuple[trustme.CA, Path]:
    """The certificate authority that lives in a folder, made there when there is none; and its certificate's file."""
    import trustme

    folder.mkdir(parents=True, exist_ok=True)
    pem, key = folder / "ca.pem", folder / "ca.key"
    if pem.exists() and key.exists():
        return trustme.CA.from_pem(pem.read_bytes(), key.read_bytes()), pem
    ca = trustme.CA()
    key.touch(mode=0o600)
    ca.private_key_pem.write_to_path(key)
    ca.cert_pem.write_to_path(pem)
    return ca, pem
