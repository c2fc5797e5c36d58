"""Stand-in for a Kubernetes cluster: a real API server and real controllers, behind a proxy that checks the credential
and plays faults, with a kubelet that lets pods start, hang or crash as the world says.

What is not real: no container runs. The kubelet writes the status that a real one would.

The pods ask for a scheduler that does not exist, so that on a cluster with nodes no node takes them; and their sidecar
is called ``slow``, so that the kubelet of ``kube-local`` lets ours act first.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trustme

from airflow_multideploy.sandbox.server import Faults, Receive, Scope, Send, Server
from airflow_multideploy.sandbox.world import Course, Live, World
from tests.stand_ins.kube import Cluster, Json

KIND = "kubernetes"
NUMBER = "deployment.kubernetes.io/revision"
SIDECAR = "registry.example.com/slow-proxy:2.0.0"
MERGE = "application/strategic-merge-patch+json"


class KubernetesStandIn:
    """One namespace of a cluster behind one TLS address.

    :param secret: the bearer token that the proxy accepts.
    """

    kind = KIND

    def __init__(self, world: World, cluster: Cluster, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        self.world, self.cluster, self.secret = world, cluster, secret
        self.namespace = f"multideploy-{secrets.token_hex(4)}"
        self.names: dict[str, str] = {}
        """Deployment of a resource: another one each time it is seeded."""
        self.writes: list[tuple[str, str, Any]] = []
        """Method, content type and body of every write that came through."""
        self.before_write: Callable[[], None] = lambda: None
        """What somebody else does between the adapter's look and its write."""
        self._folder = tempfile.TemporaryDirectory(prefix="stand-in-kubernetes-")
        ca = trustme.CA()
        self.ca_file, chain = (str(Path(self._folder.name) / name) for name in ("ca.pem", "server.pem"))
        ca.cert_pem.write_to_path(self.ca_file)
        ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(chain)
        self._known: set[str] = set()
        self._at_once: set[str] = set()
        self._courses: dict[str, tuple[float, Course]] = {}
        self._stopping = threading.Event()
        self._kubelet = threading.Thread(target=self._look_after_all, daemon=True, name="stand-in-kubelet")
        self._faults = Faults(self._proxy, world, self.kind, error_body=_error_body)
        self._server = Server(self._faults, port=port, tls=(chain, chain))
        self.url = self._server.url

    def start(self) -> None:
        """Serve on loopback."""
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        self.cluster.call("POST", "/api/v1/namespaces", namespace)
        self._kubelet.start()
        self._server.start()

    def stop(self) -> None:
        """Stop serving; nothing stays in the cluster."""
        self._stopping.set()
        self._kubelet.join(10)
        self._server.stop()
        self.cluster.call("DELETE", f"/api/v1/namespaces/{self.namespace}")
        self._folder.cleanup()

    def reset(self, world: World) -> None:
        """Serve another test: another world, and no Deployment yet."""
        for name in self.names.values():
            self.cluster.call("DELETE", self.deployments(name), propagationPolicy="Background")
        self.names.clear()
        self.writes.clear()
        self.before_write = lambda: None
        self.world = self._faults.world = world

    def connection(self) -> Json:
        """A Connection of type ``kubernetes`` that leads here."""
        kubeconfig = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": self.url, "certificate-authority": self.ca_file}}],
            "users": [{"name": "me", "user": {"token": self.secret}}],
        }
        return {"conn_type": "kubernetes", "extra": {"kube_config": kubeconfig}}

    def target(self, resource: str) -> Json:
        """The catalog entry of a target on this Deployment."""
        name = self.names[resource]
        manifest = self.manifest(name, "registry.example.com/shop")
        return {"platform": KIND, "namespace": self.namespace, "deployment": name, "manifest": manifest}

    @staticmethod
    def manifest(name: str, image: str, replicas: int = 1) -> Json:
        """A Deployment as its owner writes it."""
        app = {"name": "app", "image": image, "env": [{"name": "DB_PASSWORD", "value": "hunter2"}]}
        template = {
            "metadata": {"labels": {"app": name}, "annotations": {"team": "shop"}},
            "spec": {
                "schedulerName": "stand-in",
                "terminationGracePeriodSeconds": 0,
                "containers": [app, {"name": "proxy", "image": SIDECAR}],
            },
        }
        spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}

    def seed(self, resource: str, image: str | None) -> None:
        """Create a Deployment, at once, with one replica of this image; None: there is none."""
        self.names[resource] = name = f"{resource}-{secrets.token_hex(3)}"
        if image:
            self.put(name, lambda: self.cluster.call("POST", self.deployments(), self.manifest(name, image)))

    def meddle(self, resource: str, image: str) -> None:
        """Somebody uses ``kubectl set image``."""
        name = self.names[resource]
        body = {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": image}]}}}}
        self.put(name, lambda: self.cluster.call("PATCH", self.deployments(name), body, kind=MERGE))

    def put(self, name: str, write: Any) -> None:
        """Write past the proxy, and wait until it is rolled out; that revision is none of the adapter's."""
        self._at_once.add(name)
        write()
        until = time.monotonic() + 20
        while not self._complete(live := self.deployment(name)):
            assert time.monotonic() < until, live
            time.sleep(0.02)
        self._at_once.discard(name)
        self._known |= {s["metadata"]["uid"] for s in self._sets(name) if _number(s) == _number(live)}

    def until_seen(self, name: str) -> None:
        """Wait until the controller has seen what was written last."""
        until = time.monotonic() + 20
        while True:
            live = self.deployment(name)
            if live.get("status", {}).get("observedGeneration") == live["metadata"]["generation"]:
                return
            assert time.monotonic() < until, live
            time.sleep(0.02)

    def live(self, resource: str) -> Live:
        """What the newest ready pod runs."""
        name = self.names[resource]
        pods = [
            p
            for p in self._pods(labelSelector=f"app={name}")
            if not p["metadata"].get("deletionTimestamp") and _ready(p)
        ]
        pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        image = next((c["image"] for p in pods[-1:] for c in p["spec"]["containers"] if c["name"] == "app"), None)
        found = self.deployment(name)
        return Live(image=image, revision=image, settled=not found or self._complete(found))

    def revisions(self, resource: str) -> list[str]:
        """ReplicaSets that came of calls through the proxy."""
        return [
            s["metadata"]["name"] for s in self._sets(self.names[resource]) if s["metadata"]["uid"] not in self._known
        ]

    def deployment(self, name: str) -> Json:
        """The Deployment as the API shows it; empty: there is none."""
        return self.cluster.call("GET", self.deployments(name))

    def deployments(self, name: str = "") -> str:
        """Path of a Deployment, or of all."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments" + (f"/{name}" if name else "")

    # --- the cluster --------------------------------------------------------------------------------------------------

    def _sets(self, name: str) -> list[Json]:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/replicasets"
        return sorted(self.cluster.call("GET", path, labelSelector=f"app={name}")["items"], key=_number)

    def _pods(self, **selectors: str) -> list[Json]:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return list(self.cluster.call("GET", path, **selectors).get("items", []))

    @staticmethod
    def _complete(live: Json) -> bool:
        status, wanted = live.get("status", {}), live["spec"]["replicas"]
        counts = {status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")}
        return status.get("observedGeneration") == live["metadata"]["generation"] and counts == {wanted}

    # --- the kubelet --------------------------------------------------------------------------------------------------

    def _look_after_all(self) -> None:
        while not self._stopping.wait(0.08):
            for pod in self._pods(fieldSelector="status.phase=Pending"):
                self._look_after(pod)

    def _look_after(self, pod: Json) -> None:
        meta, said = pod["metadata"], pod["status"].get("containerStatuses", [])
        name = meta["labels"]["app"]
        if meta.get("deletionTimestamp") or _ready(pod) or any(s.get("restartCount") for s in said):
            return
        if meta["uid"] not in self._courses:
            resource = next((r for r, n in self.names.items() if n == name), name)
            course = Course("succeeds", 0) if name in self._at_once else self.world.course(self.kind, resource)
            self._courses[meta["uid"]] = (time.time(), course)
        started, course = self._courses[meta["uid"]]
        elapsed = time.time() - started
        if course.failed(elapsed):
            status = _status(pod, ready=False, waiting="CrashLoopBackOff", ended=course.reason)
        elif course.done(elapsed):
            status = _status(pod, ready=True)
        elif not said:
            status = _status(pod, ready=False, waiting="ContainerCreating")
        else:
            return
        path = f"/api/v1/namespaces/{self.namespace}/pods/{meta['name']}/status"
        self.cluster.call("PATCH", path, {"status": status}, kind=MERGE)

    # --- the proxy ----------------------------------------------------------------------------------------------------

    async def _proxy(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        body = (await receive())["body"]
        if headers.get("authorization") != f"Bearer {self.secret}":
            await _send(send, 401, _error_body(401)[0])
            return
        if scope["method"] != "GET":
            await asyncio.to_thread(self.before_write)
            kind = headers.get("content-type", "application/json")
            readable = body and "protobuf" not in kind
            self.writes.append((scope["method"], kind, json.loads(body) if readable else None))
        answer = await asyncio.to_thread(
            self.cluster.http.request,
            scope["method"],
            f"{scope['path']}?{scope['query_string'].decode()}",
            content=body,
            headers={k: headers[k] for k in ("content-type", "accept") if k in headers},
        )
        await _send(send, answer.status_code, answer.content, answer.headers["content-type"])


def _ready(pod: Json) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _number(document: Json) -> int:
    return int(document["metadata"].get("annotations", {}).get(NUMBER, 0))


def _status(pod: Json, *, ready: bool, waiting: str = "", ended: str = "") -> Json:
    """https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#PodStatus"""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready") if ready else ("Initialized",)
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in kinds]
    statuses = []
    for container in pod["spec"]["containers"]:
        state: Json = {"running": {"startedAt": now}}
        status = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
        if waiting and container["name"] == "app":
            state = {"waiting": {"reason": waiting}}
            if ended:
                state["waiting"]["message"] = "back-off 20s restarting failed container"
                status["lastState"] = {"terminated": {"exitCode": 1, "reason": "Error", "message": ended}}
                status["restartCount"] = 3
        statuses.append({**status, "ready": ready, "state": state})
    phase = "Running" if ready or ended else "Pending"
    return {"phase": phase, "conditions": conditions, "containerStatuses": statuses}


def _error_body(status: int) -> tuple[bytes, dict[str, str]]:
    reasons = {400: "BadRequest", 401: "Unauthorized", 429: "TooManyRequests", 500: "InternalError"}
    document = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": reasons[status],
        "reason": reasons[status],
        "code": status,
    }
    return json.dumps(document).encode(), {}


async def _send(send: Send, status: int, body: bytes, kind: str = "application/json") -> None:
    headers = [(b"content-type", kind.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
