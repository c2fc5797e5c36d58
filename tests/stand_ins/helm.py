"""Helm on the Kubernetes stand-in: the real ``helm`` writes through the proxy, and the stand-in's own user past it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from airflow_multideploy.sandbox.world import Live, World
from tests.stand_ins.kube import Cluster, Json
from tests.stand_ins.kubernetes import KubernetesStandIn

PROGRAM = "MULTIDEPLOY_TEST_HELM"


def program() -> str:
    """The helm of this machine; skips the test, and says so, where there is none."""
    found = os.environ.get(PROGRAM) or shutil.which("helm")
    if found is None:
        pytest.skip(f"no Helm: {PROGRAM} is not set, and there is no helm on the PATH")
    return found


class HelmStandIn(KubernetesStandIn):
    """A namespace, a chart in a folder, and a helm.

    A revision is what runs, so a ReplicaSet: Helm's own history also has a line for each try that failed.
    """

    kind = "helm"

    def __init__(self, world: World, cluster: Cluster, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        self.program = program()  # first: a skip leaves nothing behind that nobody would close
        super().__init__(world, cluster, port=port, secret=secret)
        self._chart = tempfile.TemporaryDirectory(prefix="stand-in-helm-")
        self.chart = Path(self._chart.name) / "shop"
        (self.chart / "templates").mkdir(parents=True)
        (self.chart / "Chart.yaml").write_text("{apiVersion: v2, name: shop, version: 1.0.0}\n")
        (self.chart / "values.yaml").write_text("replicas: 1\n")
        document = yaml.safe_dump(self.manifest("NAME", "IMAGE"))
        document = document.replace("NAME", "{{ .Release.Name }}").replace("IMAGE", "{{ .Values.image.ref }}")
        document = document.replace("replicas: 1", "replicas: {{ .Values.replicas }}")
        (self.chart / "templates" / "deployment.yaml").write_text(document)

    def stop(self) -> None:
        """Stop serving; nothing stays in the cluster."""
        super().stop()
        self._chart.cleanup()

    def target(self, resource: str) -> Json:
        """The catalog entry of a target on this release."""
        values = {"image": {"ref": "${image}"}}
        place = {"namespace": self.namespace, "release": self.names[resource]}
        return {"platform": self.kind, **place, "chart": str(self.chart), "values": values}

    def helm(self, *arguments: str) -> str:
        """As somebody at a terminal."""
        command = [self.program, *arguments, "--namespace", self.namespace, "--kubeconfig", self.cluster.path]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def upgrade(self, name: str, image: str) -> None:
        """Somebody releases by hand."""
        arguments = ("--install", "--reset-then-reuse-values", "--set", f"image.ref={image}")
        self.helm("upgrade", name, str(self.chart), *arguments)

    def seed(self, resource: str, image: str | None) -> None:
        """Install the chart, at once; None: it is not installed."""
        self.names[resource] = name = f"{resource}-{secrets.token_hex(3)}"
        if image:
            self.put(name, lambda: self.upgrade(name, image))

    def meddle(self, resource: str, image: str) -> None:
        """Somebody uses ``helm upgrade``."""
        name = self.names[resource]
        self.put(name, lambda: self.upgrade(name, image))

    def live(self, resource: str) -> Live:
        """What the newest ready pod runs; the pods of an uninstalled chart are on their way out."""
        if not self.deployment(self.names[resource]):
            return Live(image=None, revision=None, settled=True)
        return super().live(resource)

    def history(self, resource: str) -> list[Json]:
        """``helm history``."""
        return list(json.loads(self.helm("history", self.names[resource], "-o", "json")))
