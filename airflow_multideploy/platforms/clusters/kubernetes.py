"""Kubernetes Deployments, on any cluster: config, adapter and operator.

A release is a server-side apply of the image, as the field manager ``multideploy``, to the containers of an existing
Deployment, with the release id as an annotation of the pod template. Everything else of the Deployment belongs to
whoever made it; replicas belong to their autoscaler.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, field_validator

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.clusters.kubernetes_judge import (
    CREATED,
    RESTART,
    Trouble,
    applied,
    at_work,
    chosen,
    cleaned,
    created,
    digest,
    flaw_of,
    fresh,
    images_of,
    is_back,
    judge,
    marks_of,
    number_of,
    ours,
    restored,
    selector_of,
    told_apart,
)
from airflow_multideploy.platforms.clusters.workloads import (
    AGAIN,
    Json,
    KubernetesConfig,
    KubernetesPlatform,
    Refused,
    Steps,
)
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State

MANAGER = "multideploy"
_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"


class KubernetesDeploymentConfig(KubernetesConfig):
    """One Deployment.

    :param deployment: name of the Deployment.
    :param containers: containers and init containers that get the image; empty: those whose image comes from the
        release's repository, else the only one.
    :param restarts: of a container in ``CrashLoopBackOff``, from which on the rollout counts as failed.
    :param manifest: a Deployment as in ``kubectl apply``, created by the first-ever release when there is none; name,
        namespace and image come from the target and the release. None: the Deployment has to exist.
    """

    platform: Literal["kubernetes"] = "kubernetes"
    deployment: Annotated[str, Field(pattern=_NAME)]
    containers: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ()
    restarts: Annotated[int, Field(ge=1)] = 2
    manifest: Json | None = None

    @field_validator("manifest")
    @classmethod
    def _whole(cls, manifest: Json | None) -> Json | None:
        if manifest is not None and (flaw := flaw_of(manifest)):
            raise ValueError(flaw)
        return manifest


_MANUAL = Manual(
    connection="Type `kubernetes`, of the official provider `cncf.kubernetes`: a kubeconfig in `kube_config` (or its "
    "path on the workers and triggerers in `kube_config_path`), or `in_cluster`. The provider's "
    "`disable_verify_ssl` is not heeded by its asynchronous hook: name the authority in the kubeconfig. For a managed "
    "cluster set the target's `cluster`, and give a Connection of the cloud instead.",
    protocol="""
1. Snapshot: `GET` the Deployment and its ReplicaSets. While a rollout is under way, it waits for its end, up to two
   and a half minutes; of one that has failed, the template that still serves is the snapshot. Where there is none, pods
   that the `manifest` selects are refused (other permissions would be needed to see a StatefulSet with other labels).
2. Deploy: `PATCH` with server-side apply (`fieldManager=multideploy&force=true`): images, and the annotations
   `multideploy/release` and `multideploy/version` of the pod template; with uid and resourceVersion, so that an edit in
   between is a conflict, never overwritten.
3. Observe: `GET` the Deployment. Healthy when the controller has seen this release's template and all replicas are of
   it and available. Failed at once on `ProgressDeadlineExceeded`, or when a pod of this release says
   `ImagePullBackOff` (15 seconds after it started), `CrashLoopBackOff` (after `restarts` restarts) or that it cannot be
   configured.
4. Rollback: JSON patch: `test` the uid and the whole live template, `replace` it with the one before. A Deployment that
   the release created is deleted, with its pods.
""",
    permissions="""
A Role in the target's namespace; `create` and `delete` only with `manifest`:

```yaml
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: multideploy, namespace: shop}
rules:
  - {apiGroups: [apps], resources: [deployments], resourceNames: [shop], verbs: [get, patch, delete]}
  - {apiGroups: [apps], resources: [deployments], verbs: [create]}
  - {apiGroups: [apps], resources: [replicasets], verbs: [list]}
  - {apiGroups: [""], resources: [pods], verbs: [list]}
```

A managed cluster asks for more in its cloud: EKS `eks:DescribeCluster` and an access entry for the role; GKE
`container.clusters.get`; AKS `Microsoft.ContainerService/managedClusters/listClusterUserCredential/action`.
""",
    not_undone="what the new pods did (migrations, messages); replicas, which autoscaling owns; the field manager "
    "`multideploy` stays in `managedFields`.",
    example="""
shop:
  platform: kubernetes
  conn_id: k8s_prod
  namespace: shop
  deployment: shop
""",
    extra="kubernetes",
)


class Kubernetes(KubernetesPlatform[KubernetesDeploymentConfig]):
    """Releases into a Deployment by server-side apply, and back.

    A revision is the digest of the pod template, not Kubernetes' own number: that one changes on the way back to an old
    template. No template is kept, as it may hold secrets: the way back puts the old images and annotations into the
    live template, and takes an old ReplicaSet's where that is not enough.
    """

    kind: ClassVar[str] = "kubernetes"
    config_type: ClassVar[type[TargetConfig]] = KubernetesDeploymentConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="uid, digest of the pod template, images, ReplicaSet, replicas",
        early_failure="ProgressDeadlineExceeded, ImagePullBackOff, CrashLoopBackOff and their like, in the pod's words",
        restores="the pod template, bit for bit; a Deployment that the first release created is deleted",
        tested_against="a real kube-apiserver and kube-controller-manager 1.20, with stand-in kubelets",
    )
    manual: ClassVar[Manual | None] = _MANUAL

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._run(self._snapshot(previous))

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`.

        An image that is live already is written again only when it is a tag that is pulled at every start.
        """
        return self._run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        return self._run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        return await self._arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return self._run(self._rollback(release, snapshot, handle))

    # --- steps: decisions and calls, without I/O ----------------------------------------------------------------------

    def _deployment(self) -> Steps[Json | None]:
        """https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/deployment-v1/"""
        live: Json | None = yield "read_namespaced_deployment", {"name": self.config.deployment}
        return live

    def _snapshot(self, previous: Release | None) -> Steps[Snapshot]:
        live = yield from self._deployment()
        if live is None:
            if self.config.manifest is not None:
                yield from self._alone(self.config.manifest)
            return Snapshot(exists=False, data={"uid": None, "found": None, "failing": False})
        seen = yield from self._seen(_handle(live))
        if seen.state is State.PROGRESSING:
            raise self.error(
                f"Kubernetes: a rollout of {self._place} is still in progress ({seen.reason}); a snapshot of a "
                "half-deployed Deployment is none: waiting for it",
                retryable=True,
                retry_after=AGAIN if seen.progress is not None else None,  # else its controller is about to see it
            )
        sets = yield from self._sets(live)
        template, failing = live["spec"]["template"], seen.state is State.FAILED
        current = next((s for s in sets if number_of(s) == number_of(live)), None)
        if failing:
            serving = [s for s in sets if s.get("status", {}).get("availableReplicas", 0) > 0]
            current = serving[-1] if serving else current
            template = cleaned(current["spec"]["template"]) if current else template
        images = images_of(template)
        names = chosen(template, self.config.containers, previous.image if previous else "")
        return Snapshot(
            exists=True,
            revision=digest(template),
            image=images[names[0] if names else template["spec"]["containers"][0]["name"]],
            data={
                "uid": live["metadata"]["uid"],
                "found": digest(live["spec"]["template"]),
                "failing": failing,
                "images": dict(images),
                "marks": dict(marks_of(template)),
                "replicas": live["spec"].get("replicas", 1),
                "replicaSet": current["metadata"]["name"] if current else None,
                "number": number_of(live),
            },
        )

    def _alone(self, manifest: Json) -> Steps[None]:
        """Refuse to create a Deployment beside what serves already under its labels."""
        listed = yield "list_namespaced_pod", {"label_selector": selector_of(manifest)}
        if pod := at_work(listed["items"]):
            raise self.error(
                f"Kubernetes: there is no {self._place}, but {pod} has its manifest's labels: a second one would run "
                "beside it; nothing was written: give it labels of its own, or remove what runs, then release again"
            )

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        live = yield from self._deployment()
        if live is None:
            if snapshot.exists and not release.force:
                raise self._drift("does not exist any more")
            return (yield from self._create(release))
        template = live["spec"]["template"]
        if ours(template, release, snapshot):
            return _handle(live)
        if live["metadata"].get("deletionTimestamp"):
            raise self.error(f"Kubernetes: {self._place} is being deleted; waiting for the end of it", retryable=True)
        if live["spec"].get("paused"):
            raise self.error(f"Kubernetes: {self._place} is paused: `kubectl rollout resume` it, then release again")
        names = self._chosen(template, release)
        if fresh(template, names, release.image) and not release.force:
            seen = yield from self._seen(_handle(live))
            if seen.state is State.HEALTHY and seen.verified:
                return _handle(live).model_copy(update={"changed": False})
        same = live["metadata"]["uid"] == snapshot.data["uid"] and digest(template) == snapshot.data["found"]
        if not same and not release.force:
            raise self._drift(f"is not what the snapshot saw: {told_apart(template, snapshot.data.get('images'))}")
        written = yield (
            "patch_namespaced_deployment",
            {
                "name": self.config.deployment,
                "body": applied(live, names, release),
                "field_manager": MANAGER,
                "force": True,
                "_content_type": "application/apply-patch+yaml",
            },
        )
        return _handle(written)

    def _create(self, release: Release) -> Steps[Handle]:
        if self.config.manifest is None:
            raise self.error(f"Kubernetes: there is no {self._place}; create it, or give the target a 'manifest'")
        names = self._chosen(self.config.manifest["spec"]["template"], release)
        body = created(self.config.manifest, self.config.namespace, self.config.deployment, names, release)
        written = yield "create_namespaced_deployment", {"body": body, "field_manager": MANAGER}
        return _handle(written)

    def _chosen(self, template: Json, release: Release) -> list[str]:
        names = chosen(template, self.config.containers, release.image)
        if names is None:
            raise self.error(
                f"Kubernetes: it is not clear which container of {self._place} gets {release.image}; it has "
                f"{', '.join(images_of(template))}: name it in the target's 'containers'"
            )
        return names

    def _look(self, handle: Handle) -> Steps[Observation]:
        if handle.data.get("left"):
            return Observation(state=State.HEALTHY, reason=str(handle.data["left"]), verified=False)
        return (yield from self._seen(handle))

    def _seen(self, handle: Handle) -> Steps[Observation]:
        live = yield from self._deployment()
        seen = judge(handle, live, Trouble())
        if live is None or handle.data.get("removed") or seen.state not in (State.PROGRESSING, State.FAILED):
            return seen
        return judge(handle, live, (yield from self._trouble(live, self.config.restarts)))

    def _rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Steps[Handle]:
        live = yield from self._deployment()
        if not snapshot.exists:
            return (yield from self._remove(live, release, snapshot, handle))
        if live is None or live["metadata"]["uid"] != snapshot.data["uid"]:
            raise self._drift("was deleted" if live is None else "was deleted and created anew")
        template, uid = live["spec"]["template"], live["metadata"]["uid"]
        back = _handle(live).model_copy(update={"action": "rollback", "changed": False})
        if is_back(template, snapshot):
            seen = yield from self._seen(_handle(live))
            if seen.state is not State.FAILED or snapshot.data["failing"]:
                return back
            target = restored(template, snapshot)  # a way back that itself failed is started anew
            target["metadata"].setdefault("annotations", {})[RESTART] = datetime.now(UTC).isoformat()
        elif ours(template, release, snapshot, handle):
            target = yield from self._template(live, snapshot)
        elif digest(template) == snapshot.data["found"]:
            return back.model_copy(update={"data": {"left": "nothing was written; it had failed before the release"}})
        else:
            known = handle.data.get("images") if handle else None
            raise self._drift(f"is not what this release wrote: {told_apart(template, known)}")
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "test", "path": "/spec/template", "value": template},
            {"op": "replace", "path": "/spec/template", "value": target},
        ]
        try:
            written = yield (
                "patch_namespaced_deployment",
                {
                    "name": self.config.deployment,
                    "body": patch,
                    "field_manager": MANAGER,
                    "_content_type": "application/json-patch+json",
                },
            )
        except Refused as error:
            if error.status == 422:  # a test of the patch failed: somebody wrote meanwhile; look again
                raise self.error(f"{self._place} was changed meanwhile: {error}", retryable=True) from error
            raise
        return _handle(written).model_copy(update={"action": "rollback"})

    def _template(self, live: Json, snapshot: Snapshot) -> Steps[Json]:
        """The snapshot's template: the live one with the old values, else that of the old ReplicaSet."""
        target = restored(live["spec"]["template"], snapshot)
        if digest(target) == snapshot.revision:
            return target
        for old in (yield from self._sets(live)):
            if digest(old["spec"]["template"]) == snapshot.revision:
                return cleaned(old["spec"]["template"])
        raise self.error(
            f"Kubernetes: the template of {self._place} before the release is neither what is live with the old image, "
            f"nor in a ReplicaSet ({snapshot.data['replicaSet']} is gone): restore it by hand"
        )

    def _remove(self, live: Json | None, release: Release, snapshot: Snapshot, handle: Handle | None) -> Steps[Handle]:
        """The way back from a first-ever release; dependents go first, so that gone means gone."""
        data: Json = {"uid": live["metadata"]["uid"] if live else None, "removed": True}
        back = Handle(action="rollback", changed=False, data=data)
        if live is None or live["metadata"].get("deletionTimestamp"):
            return back
        created = live["metadata"].get("annotations", {}).get(CREATED) == release.release_id
        if not created or not ours(live["spec"]["template"], release, snapshot, handle):
            raise self._drift("was not created by this release, or changed since")
        yield (
            "delete_namespaced_deployment",
            {
                "name": self.config.deployment,
                "body": {"propagationPolicy": "Foreground", "preconditions": {"uid": data["uid"]}},
            },
        )
        return back.model_copy(update={"changed": True})

    @property
    def _place(self) -> str:
        return f"Deployment {self.config.namespace}/{self.config.deployment}"

    def _drift(self, words: str) -> Drift:
        return Drift(
            f"Kubernetes: {self._place} {words}: somebody else changed it; nothing was written. Check it, then release "
            "again",
            target=self.name,
        )


def _handle(live: Json) -> Handle:
    template = live["spec"]["template"]
    data: dict[str, JsonValue] = {"uid": live["metadata"]["uid"], "images": {**images_of(template)}}
    return Handle(action="deploy", revision=digest(template), data=data)
