"""The Kubernetes adapter against a real API server: the shared contract, and what only Kubernetes does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from jsonschema import Draft4Validator

from airflow_multideploy.errors import Drift, PlatformError, SpecError
from airflow_multideploy.platforms.clusters.kubernetes_judge import digest, trouble_of
from airflow_multideploy.platforms.clusters.workloads import AGAIN
from airflow_multideploy.platforms.kinds import adapter
from airflow_multideploy.release.contract import Handle, State
from airflow_multideploy.release.wait import persist
from airflow_multideploy.sandbox.world import CallFault, RolloutFault, World
from airflow_multideploy.testing.contract import NEW, OLD, OTHER, RESOURCE, PlatformContract, QuickClock
from tests.stand_ins.kube import Cluster, Json, cluster
from tests.stand_ins.kubernetes import MERGE, SIDECAR, KubernetesStandIn


@pytest.fixture(scope="module")
def kube() -> Iterator[KubernetesStandIn]:
    stand_in = KubernetesStandIn(World(), cluster())
    stand_in.start()
    yield stand_in
    stand_in.stop()


def template(stand_in: KubernetesStandIn) -> Json:
    """The live pod template."""
    return dict(stand_in.deployment(stand_in.names[RESOURCE])["spec"]["template"])


def edit(stand_in: KubernetesStandIn, patch: Json, kind: str = MERGE) -> None:
    """Somebody else edits the Deployment; not waited for."""
    stand_in.cluster.call("PATCH", stand_in.deployments(stand_in.names[RESOURCE]), patch, kind=kind)


class TestKubernetes(PlatformContract):
    rollout_seconds = 0.2

    @pytest.fixture
    def stand_in(self, world: World, kube: KubernetesStandIn, monkeypatch: pytest.MonkeyPatch) -> KubernetesStandIn:
        kube.reset(world)
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(kube.connection()))
        kube.seed(RESOURCE, OLD)
        return kube

    # --- what comes back ---------------------------------------------------------------------------------------------

    def test_the_template_comes_back_bit_for_bit(self, stand_in: KubernetesStandIn) -> None:
        before = template(stand_in)
        snapshot, handle, release = self.start(stand_in)
        live = template(stand_in)
        assert live["metadata"]["annotations"] == {
            "team": "shop",
            "multideploy/release": release.release_id,
            "multideploy/version": "1.1.0",
        }
        assert [c["image"] for c in live["spec"]["containers"]] == [NEW, SIDECAR]
        self.platform(stand_in).rollback(release, snapshot, handle)
        assert template(stand_in) == before

    def test_no_document_holds_the_containers_environment(self, stand_in: KubernetesStandIn) -> None:
        snapshot, handle, _ = self.start(stand_in)
        assert "hunter2" not in snapshot.model_dump_json() + handle.model_dump_json()

    def test_replicas_belong_to_others(self, stand_in: KubernetesStandIn, mode: str) -> None:
        snapshot, handle, release = self.start(stand_in)
        edit(stand_in, {"spec": {"replicas": 2}})
        assert self.wait(self.platform(stand_in), handle, mode).state is State.HEALTHY
        self.undo(stand_in, release, snapshot, handle, mode)
        assert stand_in.deployment(stand_in.names[RESOURCE])["spec"]["replicas"] == 2

    def test_a_fix_can_be_released_over_a_crash_loop(self, stand_in: KubernetesStandIn, world: World) -> None:
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        _, broken, _ = self.start(stand_in)
        assert self.wait(self.platform(stand_in), broken, "sync").state is State.FAILED
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        snapshot, fix, release = self.start(stand_in, self.release(OTHER, "r1fix"))
        assert snapshot.image == OLD, "what serves, not what fails"
        assert self.wait(self.platform(stand_in), fix, "sync").state is State.FAILED
        self.undo(stand_in, release, snapshot, fix, "sync")
        assert stand_in.live(RESOURCE).image == OLD

    def test_an_old_replica_set_gives_what_the_live_template_cannot(self, stand_in: KubernetesStandIn) -> None:
        snapshot = self.platform(stand_in).snapshot()
        env = {"containers": [{"name": "app", "env": [{"name": "DEBUG", "value": "1"}]}]}
        edit(stand_in, {"spec": {"template": {"spec": env}}})
        forced = self.release(force=True)
        clock, until = QuickClock(), time.time() + 20
        handle = persist(lambda: self.platform(stand_in).deploy(forced, snapshot), clock=clock, until=until)
        back = self.platform(stand_in).rollback(forced, snapshot, handle)
        assert back.revision == snapshot.revision == digest(template(stand_in))

    # --- somebody else in between ------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "patch",
        [
            {"metadata": {"annotations": {"restarted": "now"}}},
            {"spec": {"containers": [{"name": "app", "env": [{"name": "DEBUG", "value": "1"}]}]}},
            {"spec": {"containers": [{"name": "proxy", "image": OTHER}]}},
        ],
    )
    def test_any_edit_of_the_template_is_drift(self, stand_in: KubernetesStandIn, world: World, patch: Json) -> None:
        snapshot, handle, release = self.start(stand_in)
        edit(stand_in, {"spec": {"template": patch}})
        edited, writes = template(stand_in), len(stand_in.writes)
        for known in (handle, None):
            with pytest.raises(Drift, match="somebody else changed it"):
                self.platform(stand_in).rollback(release, snapshot, known)
        with pytest.raises(Drift):
            self.platform(stand_in).deploy(self.release(OTHER, "r1other"), snapshot)
        assert (template(stand_in), len(stand_in.writes)) == (edited, writes)

    @pytest.mark.parametrize("way", ["deploy", "rollback"])
    def test_an_edit_between_our_look_and_our_write_is_not_overwritten(
        self, stand_in: KubernetesStandIn, way: str
    ) -> None:
        snapshot, handle, release = self.start(stand_in) if way == "rollback" else (None, None, self.release())
        snapshot = snapshot or self.platform(stand_in).snapshot()
        platform = self.platform(stand_in)
        act: Callable[[], Handle] = lambda: (  # noqa: E731
            platform.rollback(release, snapshot, handle) if way == "rollback" else platform.deploy(release, snapshot)
        )
        once = iter([lambda: edit(stand_in, {"spec": {"template": {"metadata": {"annotations": {"by": "hand"}}}}})])
        stand_in.before_write = lambda: next(once, lambda: None)()
        with pytest.raises(PlatformError) as caught:
            act()
        assert caught.value.retryable
        with pytest.raises(Drift):
            persist(act, clock=QuickClock(), until=time.time() + 20)
        assert template(stand_in)["metadata"]["annotations"]["by"] == "hand"

    def test_another_deployment_of_the_same_name_is_drift(self, stand_in: KubernetesStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        name = stand_in.names[RESOURCE]
        stand_in.cluster.call("DELETE", stand_in.deployments(name), propagationPolicy="Background")
        with pytest.raises(Drift, match="was deleted"):
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert self.platform(stand_in).observe(handle).state is State.SUPERSEDED
        stand_in.cluster.call("POST", stand_in.deployments(), stand_in.manifest(name, NEW))
        with pytest.raises(Drift, match="created anew"):
            self.platform(stand_in).rollback(release, snapshot, handle)
        assert self.platform(stand_in).observe(handle).state is State.SUPERSEDED

    def test_a_rollout_of_somebody_else_is_waited_for(self, stand_in: KubernetesStandIn, world: World) -> None:
        world.seconds = 60
        edit(stand_in, {"spec": {"template": {"metadata": {"annotations": {"by": "hand"}}}}})
        stand_in.until_seen(stand_in.names[RESOURCE])
        with pytest.raises(PlatformError, match="still in progress") as caught:
            self.platform(stand_in).snapshot()
        assert (caught.value.retryable, caught.value.retry_after) == (True, AGAIN)

    def test_a_paused_rollout_says_so(self, stand_in: KubernetesStandIn) -> None:
        edit(stand_in, {"spec": {"paused": True, "template": {"metadata": {"annotations": {"by": "hand"}}}}})
        stand_in.until_seen(stand_in.names[RESOURCE])
        with pytest.raises(PlatformError, match=r"in progress .*paused: `kubectl rollout resume` it"):
            self.platform(stand_in).snapshot()

    def test_a_restart_by_hand_is_not_told_as_another_image(self, stand_in: KubernetesStandIn) -> None:
        snapshot, handle, release = self.start(stand_in)
        restart = {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}
        edit(stand_in, {"spec": {"template": restart}})
        assert "its pod template differs" in self.platform(stand_in).observe(handle).reason
        with pytest.raises(Drift, match="its pod template differs, with the same images"):
            self.platform(stand_in).rollback(release, snapshot, handle)

    def test_kubernetes_own_deadline_ends_it(self, stand_in: KubernetesStandIn, world: World, mode: str) -> None:
        edit(stand_in, {"spec": {"progressDeadlineSeconds": 1}})
        world.rollout_faults.append(RolloutFault(stand_in.kind, "hangs"))
        snapshot, handle, release = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, mode)
        assert (seen.state, seen.reason[:24]) == (State.FAILED, "ProgressDeadlineExceeded")
        self.undo(stand_in, release, snapshot, handle, mode)

    # --- which containers, which Deployments --------------------------------------------------------------------------

    def test_init_containers_of_the_same_repository_get_the_image(self, stand_in: KubernetesStandIn) -> None:
        init = {"initContainers": [{"name": "migrate", "image": OLD}]}
        name = stand_in.names[RESOURCE]
        patch = {"spec": {"template": {"spec": init}}}
        stand_in.put(name, lambda: edit(stand_in, patch))
        self.start(stand_in)
        live = template(stand_in)["spec"]
        assert [c["image"] for c in live["initContainers"] + live["containers"]] == [NEW, NEW, SIDECAR]

    def test_containers_that_are_not_clear_are_asked_for(self, stand_in: KubernetesStandIn) -> None:
        image = "registry.example.com/another:2"
        snapshot = self.platform(stand_in).snapshot()
        with pytest.raises(PlatformError, match="it has app, proxy: name it in the target's 'containers'"):
            self.platform(stand_in).deploy(self.release(image), snapshot)
        self.platform(stand_in, containers=["proxy"]).deploy(self.release(image), snapshot)
        assert [c["image"] for c in template(stand_in)["spec"]["containers"]] == [OLD, image]

    @pytest.mark.parametrize(("policy", "changed"), [("IfNotPresent", False), ("Always", True)])
    def test_a_live_tag_is_written_again_only_if_it_is_pulled_again(
        self, stand_in: KubernetesStandIn, policy: str, changed: bool
    ) -> None:
        pull = {"spec": {"containers": [{"name": "app", "imagePullPolicy": policy}]}}
        stand_in.put(stand_in.names[RESOURCE], lambda: edit(stand_in, {"spec": {"template": pull}}))
        _, handle, _ = self.start(stand_in, self.release(OLD))
        assert handle.changed is changed
        assert len(stand_in.writes) == changed

    def test_a_paused_deployment_is_refused(self, stand_in: KubernetesStandIn) -> None:
        edit(stand_in, {"spec": {"paused": True}})
        snapshot = persist(lambda: self.platform(stand_in).snapshot(), clock=QuickClock(), until=time.time() + 20)
        with pytest.raises(PlatformError, match="kubectl rollout resume"):
            self.platform(stand_in).deploy(self.release(), snapshot)

    def test_without_replicas_nothing_is_verified(self, stand_in: KubernetesStandIn) -> None:
        stand_in.put(stand_in.names[RESOURCE], lambda: edit(stand_in, {"spec": {"replicas": 0}}))
        _, handle, _ = self.start(stand_in)
        seen = self.wait(self.platform(stand_in), handle, "sync")
        assert (seen.state, seen.verified) == (State.HEALTHY, False)

    def test_a_deployment_that_does_not_exist_is_asked_for(self, stand_in: KubernetesStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        platform = self.platform(stand_in, manifest=None)
        with pytest.raises(PlatformError, match="give the target a 'manifest'"):
            platform.deploy(self.release(), platform.snapshot())

    @pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "Rollout"])
    def test_a_manifest_of_another_kind_is_refused_when_the_catalog_is_read(
        self, stand_in: KubernetesStandIn, kind: str
    ) -> None:
        manifest = {**stand_in.manifest("shop", OLD), "kind": kind}
        with pytest.raises(
            SpecError, match=rf"manifest: .*is a {kind}: this platform releases Deployments; use 'helm'"
        ):
            self.platform(stand_in, manifest=manifest)

    def test_no_deployment_is_made_beside_a_stateful_set_with_its_labels(
        self, stand_in: KubernetesStandIn, world: World
    ) -> None:
        stand_in.seed(RESOURCE, None)
        name = stand_in.names[RESOURCE]
        manifest = stand_in.manifest(name, OLD)
        body = {**manifest, "kind": "StatefulSet", "spec": {**manifest["spec"], "serviceName": name}}
        path = f"/apis/apps/v1/namespaces/{stand_in.namespace}/statefulsets"
        stand_in.cluster.call("POST", path, body)
        platform, until = self.platform(stand_in), time.monotonic() + 20
        while not stand_in._pods(labelSelector=f"app={name}"):
            assert time.monotonic() < until
            time.sleep(0.05)
        words = f"there is no Deployment .*{name}, but pod {name}-0 of StatefulSet {name}"
        with self.unwritten(stand_in, world), pytest.raises(PlatformError, match=words) as caught:
            platform.snapshot()
        assert not caught.value.retryable
        stand_in.cluster.call("DELETE", f"{path}/{name}")
        while stand_in._pods(labelSelector=f"app={name}"):
            assert time.monotonic() < until + 20
            time.sleep(0.05)
        assert platform.snapshot().exists is False

    def test_what_somebody_created_meanwhile_is_not_removed(self, stand_in: KubernetesStandIn) -> None:
        stand_in.seed(RESOURCE, None)
        snapshot = self.platform(stand_in).snapshot()
        name = stand_in.names[RESOURCE]
        stand_in.put(name, lambda: stand_in.cluster.call("POST", stand_in.deployments(), stand_in.manifest(name, NEW)))
        for act in (
            lambda: self.platform(stand_in).deploy(self.release(OTHER), snapshot),
            lambda: self.platform(stand_in).rollback(self.release(), snapshot, None),
        ):
            with pytest.raises(Drift):
                act()
        assert stand_in.live(RESOURCE).image == NEW

    # --- the contract of the API -------------------------------------------------------------------------------------

    def test_every_write_is_of_the_official_contract(self, stand_in: KubernetesStandIn, world: World) -> None:
        """The server drops what it does not know: its OpenAPI document, read strictly, does not."""
        world.rollout_faults.append(RolloutFault(stand_in.kind, "fails"))
        snapshot, handle, release = self.start(stand_in)
        self.wait(self.platform(stand_in), handle, "sync")
        self.undo(stand_in, release, snapshot, handle, "sync")
        stand_in.seed(RESOURCE, None)
        snapshot, handle, release = self.start(stand_in)
        self.undo(stand_in, release, snapshot, handle, "sync")
        check = _contract(stand_in.cluster)
        kinds = [(method, kind) for method, kind, body in stand_in.writes if check(method, kind, body) is None]
        assert kinds == [
            ("PATCH", "application/apply-patch+yaml"),
            ("PATCH", "application/json-patch+json"),
            ("POST", "application/json"),
            ("DELETE", "application/json"),
        ]
        with pytest.raises(AssertionError, match="imagee"):
            check("POST", "", {"spec": {"template": {"spec": {"containers": [{"name": "app", "imagee": NEW}]}}}})

    # --- the Connection ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kubeconfig", ["{", "a: [b", "{}", "users: [{name: me, user: {token: canary-7f3a}}]"])
    def test_a_kubeconfig_that_is_none_is_not_shown(
        self, stand_in: KubernetesStandIn, monkeypatch: pytest.MonkeyPatch, kubeconfig: str, mode: str
    ) -> None:
        _, handle, _ = self.start(stand_in)
        wrong = {"conn_type": "kubernetes", "extra": {"kube_config": kubeconfig}}
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(wrong))
        with pytest.raises(PlatformError, match="check its kubeconfig") as caught:
            self.look(self.platform(stand_in), handle, mode)
        assert "canary" not in str(caught.value)

    def test_a_missing_connection_is_named(self, stand_in: KubernetesStandIn, mode: str) -> None:
        with pytest.raises(PlatformError, match="there is no Airflow Connection 'nobody'"):
            self.look(self.platform(stand_in, conn_id="nobody"), Handle(action="deploy"), mode)

    def test_credentials_do_not_go_over_plain_http(
        self, stand_in: KubernetesStandIn, monkeypatch: pytest.MonkeyPatch, mode: str
    ) -> None:
        plain = json.dumps(stand_in.connection()).replace(stand_in.url, "http://k8s.example.com")
        monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", plain)
        with pytest.raises(SpecError, match="plain http"):
            self.look(self.platform(stand_in), Handle(action="deploy"), mode)

    def test_a_forbidden_write_says_that_nothing_was_changed(self, stand_in: KubernetesStandIn, world: World) -> None:
        snapshot = self.platform(stand_in).snapshot()
        world.call_faults.append(CallFault(stand_in.kind, "400", operation="PATCH"))
        with pytest.raises(PlatformError) as caught:
            self.platform(stand_in).deploy(self.release(), snapshot)
        assert caught.value.no_effect


@pytest.mark.parametrize(
    ("reason", "age", "hopeless"),
    [
        ("ErrImagePull", 600, False),
        ("ImagePullBackOff", 3, False),
        ("ImagePullBackOff", 20, True),
        ("InvalidImageName", 0, True),
    ],
)
def test_a_pull_that_may_still_work_is_words_only(reason: str, age: int, hopeless: bool) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    state = {"waiting": {"reason": reason, "message": "429 Too Many Requests"}}
    status = {"containerStatuses": [{"name": "app", "state": state, "ready": False, "restartCount": 0}]}
    status["startTime"] = (now - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%SZ")
    found = trouble_of("rs", [{"metadata": {"name": "p"}, "status": status}], 2, now)
    assert found.hopeless is hopeless
    assert f"{reason}: 429 Too Many Requests" in found.words


def _contract(cluster: Cluster) -> Callable[[str, str, Any], None]:
    """Checks a body against the server's own OpenAPI document; keys that it does not know are errors."""
    definitions = cluster.call("GET", "/openapi/v2")["definitions"]
    for definition in definitions.values():
        if "properties" in definition:
            definition.setdefault("additionalProperties", False)
        if definition.get("format") == "int-or-string":
            definition.pop("type")
    parts = {"POST": "io.k8s.api.apps.v1.Deployment", "DELETE": "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"}

    def check(method: str, kind: str, body: Any) -> None:
        if "json-patch" in kind:
            body, name = body[-1]["value"], "io.k8s.api.core.v1.PodTemplateSpec"
        else:
            name = parts.get(method, parts["POST"])
            if "apply" in kind:  # required of the whole object, not of what one manager owns
                body = {**body, "spec": {"selector": {}, **body["spec"]}}
        # The server shows null where it means absent.
        body = json.loads(json.dumps(body).replace('"creationTimestamp": null, ', ""))
        schema = {"$ref": f"#/definitions/{name}", "definitions": definitions}
        found = [error.message for error in Draft4Validator(schema).iter_errors(body)]
        assert not found, found

    return check


def test_on_any_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The issue's acceptance, with nothing of ours between adapter and cluster: deploy, a bad image seen before the
    deadline, rollback, somebody else's edit refused."""
    real = cluster()
    base, name = "/apis/apps/v1/namespaces/default/deployments", f"multideploy-{time.time_ns()}"
    app = {"name": "app", "image": "nginx:1.27"}
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [app]}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template, "progressDeadlineSeconds": 120}
    document = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}
    connection = {"conn_type": "kubernetes", "extra": {"kube_config_path": real.path}}
    monkeypatch.setenv("AIRFLOW_CONN_CONTRACT", json.dumps(connection))
    suite = PlatformContract()
    config = {"platform": "kubernetes", "conn_id": "contract", "deployment": name}
    platform = adapter(config, service="shop", target="t1")
    real.call("POST", base, document)
    try:
        patient = QuickClock()
        for image, state in (("nginx:1.28", State.HEALTHY), ("nginx:bad-1.29", State.FAILED)):
            release = suite.release(image, f"r{image[-4:].replace('.', '')}")
            snapshot = persist(platform.snapshot, clock=patient, until=time.time() + 120)
            while not snapshot.exists or real.call("GET", f"{base}/{name}")["status"].get("availableReplicas") != 2:
                time.sleep(0.1)
            handle = platform.deploy(release, snapshot)
            seen = suite.wait(platform, handle, "async", seconds=100)
            assert seen.state is state, seen
        assert "ImagePull" in seen.reason or "ProgressDeadlineExceeded" in seen.reason
        assert "deadline passed" not in seen.reason, "seen by Kubernetes' words, before our own deadline"
        back = platform.rollback(release, snapshot, handle)
        assert suite.wait(platform, back, "async", seconds=100).state is State.HEALTHY
        live = real.call("GET", f"{base}/{name}")["spec"]["template"]["spec"]["containers"]
        assert [c["image"] for c in live] == ["nginx:1.28"]
        real.call("PATCH", f"{base}/{name}", {"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}, kind=MERGE)
        with pytest.raises(Drift, match="somebody else"):
            platform.deploy(release, snapshot)
        with pytest.raises(Drift, match="somebody else"):
            platform.rollback(release, snapshot, handle)
    finally:
        real.call("DELETE", f"{base}/{name}", propagationPolicy="Background")
