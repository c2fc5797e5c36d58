"""Helm itself: the worker's program, and the records that it keeps in the cluster."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import yaml
from pydantic import JsonValue

from airflow_multideploy.clients.connections import existing
from airflow_multideploy.platforms.clusters.workloads import Json, KubernetesConfig, KubernetesPlatform
from airflow_multideploy.release.contract import Release
from airflow_multideploy.secrets import MOST_READ, last_words

LABEL = "multideploy-release"
_PASSES = re.compile(
    r"EOF|connection re(set|fused)|time[d ]*out|too many requests|internal error|internalerror|unavailable"
    r"|another operation|has been modified|unable to (decode|handle)|invalid character|unexpected|try again|unreachable"
    r"|serializer for|an error on the server|TLS handshake|broken pipe|already exists",
    re.I,
)
"""How helm says what may heal by itself."""

C = TypeVar("C", bound=KubernetesConfig)


def said(release: Release) -> str:
    """How the description of this release's revision begins."""
    return f"multideploy {release.release_id} "


@dataclass(frozen=True)
class Record:
    """One line of a Helm release's history."""

    number: int
    status: str
    mark: str
    body: Json = field(repr=False)

    @classmethod
    def read(cls, secret: Json) -> Record:
        """https://helm.sh/docs/topics/advanced/#storage-backends: base64 of base64 of gzip of JSON."""
        labels = secret["metadata"]["labels"]
        body = json.loads(gzip.decompress(b64decode(b64decode(secret["data"]["release"]))))
        return cls(int(labels["version"]), labels["status"], labels.get(LABEL, ""), body)

    @property
    def description(self) -> str:
        """Helm's, or the one that the writer gave."""
        return str(self.body["info"].get("description", ""))

    def of(self, release: Release) -> bool:
        """Whether this release wrote it. The label alone does not say so: Helm carries it on."""
        unfinished = self.status in ("failed", "pending-install", "pending-upgrade")
        return self.mark == release.release_id and (unfinished or self.description.startswith(said(release)))

    @property
    def goes_back(self) -> bool:
        """Whether a rollback made it, or was about to."""
        return self.status == "pending-rollback" or self.description.startswith("Rollback")

    def deployments(self) -> list[Json]:
        """The Deployments of its manifest."""
        parts = re.split(r"^---\s*$", self.body["manifest"], flags=re.MULTILINE)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        documents = [yaml.load(part, loader) for part in parts if "Deployment" in part]  # noqa: S506 - a safe loader
        return [d for d in documents if isinstance(d, dict) and d.get("kind") == "Deployment"]


class HelmProgram(KubernetesPlatform[C]):
    """Base of a platform that has ``helm`` on its workers."""

    def _helm(self, *arguments: str, patience: float, values: JsonValue = None) -> None:
        """Run it.

        :param patience: seconds that each hook of the chart may take.
        """
        program = shutil.which("helm")
        if program is None:
            raise self.error("there is no `helm` on this worker's PATH; install Helm 4 on the workers")
        environment = {k: v for k, v in os.environ.items() if k != "KUBECONFIG" and not k.startswith("HELM_KUBE")}
        with TemporaryDirectory(prefix="multideploy-helm-") as folder:  # of this user alone
            command = [
                program,
                *arguments,
                "--timeout",
                f"{patience:.0f}s",
                "--namespace",
                self.config.namespace,
                *self._kubeconfig(Path(folder)),
            ]
            if values is not None:
                (Path(folder) / "values.json").write_text(json.dumps(values), encoding="utf-8")
                command += ["--values", str(Path(folder) / "values.json")]
            try:
                done = subprocess.run(  # noqa: S603 - a list of arguments; each is validated or ours
                    command,
                    env={**environment, "HELM_DRIVER": "secret"},
                    capture_output=True,
                    text=True,
                    timeout=patience + 60,
                    check=False,
                    stdin=subprocess.DEVNULL,
                )
            except subprocess.TimeoutExpired:
                raise self.error(f"helm {arguments[0]}: not done after its time-out", retryable=True) from None
        if done.returncode:
            words = last_words(done.stderr.replace(folder, ""), 700)
            passes = bool(_PASSES.search(done.stderr[-MOST_READ:]))
            raise self.error(f"helm {arguments[0]}: {words}", retryable=passes)

    def _kubeconfig(self, folder: Path) -> list[str]:
        """Arguments that lead helm to the cluster; in it, helm finds it by itself."""
        document: Any
        if managed := self._managed():
            document, context = managed["config_dict"], None
        else:
            from airflow.sdk import BaseHook

            with existing(self.config.conn_id, self.error):
                extra = BaseHook.get_connection(self.config.conn_id).extra_dejson
            known = {key.removeprefix("extra__kubernetes__"): value for key, value in extra.items() if value}
            document, context = known.get("kube_config"), known.get("cluster_context")
            if document is None:
                path = known.get("kube_config_path")
                return ["--kubeconfig", str(path)] if path else []
        path = folder / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
        return ["--kubeconfig", str(path), *(["--kube-context", str(context)] if context else [])]
