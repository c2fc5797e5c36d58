"""Helm releases: config, adapter and operator.

What is written goes through the worker's own ``helm`` (version 4, driver ``secret``), as a list of arguments, never a
shell. What is read is read from the cluster: Helm's records of a release are Secrets, and a look of the triggerer's
must not cost a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from airflow_multideploy import addresses
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.artifact import Located, LocatedJson, filled, located
from airflow_multideploy.platforms.clusters.helm_program import LABEL, HelmProgram, Record, said
from airflow_multideploy.platforms.clusters.kubernetes_judge import (
    RESTART,
    Trouble,
    chosen,
    containers_of,
    images_of,
    judge_rollout,
)
from airflow_multideploy.platforms.clusters.workloads import AGAIN, Json, KubernetesConfig, Steps
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State
from airflow_multideploy.strict import Seconds

_WORST = (State.FAILED, State.SUPERSEDED, State.UNKNOWN, State.PROGRESSING, State.HEALTHY)


def _chart(text: str) -> str:
    if "://" in text:
        addresses.written(text.replace("oci://", "https://", 1))
    return text


class HelmConfig(KubernetesConfig):
    """One Helm release.

    :param release: name of the Helm release.
    :param chart: ``oci://…``, the URL of a packaged chart, ``repository/chart``, or a folder on the workers; may hold
        ``${version}`` and the other values of a release.
    :param chart_version: of the chart, when ``chart`` does not say it; may hold the same.
    :param values: values of the chart that a release sets; each text may hold the same, such as ``${image}``.
    :param reuse_values: keep the live revision's own values below these; false: these alone.
    :param restarts: of a container in ``CrashLoopBackOff``, from which on the rollout counts as failed.
    :param hook_timeout: seconds that a hook of the chart may take; the task waits for them.
    """

    platform: Literal["helm"] = "helm"
    release: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,51}[a-z0-9])?$")]
    chart: Annotated[Located, Field(pattern=r"^[^-\s]\S*$"), AfterValidator(_chart)]
    chart_version: Located | None = None
    values: dict[str, LocatedJson] = Field(default_factory=dict)
    reuse_values: bool = True
    restarts: Annotated[int, Field(ge=1)] = 2
    hook_timeout: Seconds = 300.0


_MANUAL = Manual(
    connection="As `kubernetes`: a Connection of type `kubernetes`, or one of the cloud with the target's `cluster`. "
    "Its kubeconfig is written to a private file for the time of one `helm` call. The workers need `helm` 4 on their "
    "PATH, logged in to a private chart registry (`helm registry login`). The triggerer needs no helm.",
    protocol="""
1. Snapshot: list Helm's records of the release (Secrets `sh.helm.release.v1.NAME.vN`); the number of the one deployed,
   or where none is (failed ones only), of the newest one whose Deployments run. Records of which none runs are refused.
   The end of a rollout that is under way is waited for, up to two and a half minutes.
2. Deploy: `helm upgrade --install --reset-then-reuse-values --values FILE`, with the release id as the label
   `multideploy-release` and in the description. It waits for hooks only. A `pending-*` record that a crashed run of the
   same release left is rolled back first; anybody else's is waited for.
3. Observe: the records, and each Deployment of the manifest. Healthy when the newest record is this release's, is
   `deployed`, and every Deployment has the manifest's images and all its replicas available. Pods fail it early as on
   `kubernetes`.
4. Rollback: `helm rollback NAME N`; a release of which Helm had no record before is uninstalled. Observed in the same
   way.
""",
    permissions="""
What the chart makes, and in the namespace of the release:

```yaml
- {apiGroups: [""], resources: [secrets], verbs: [get, list, create, update, delete]}
- {apiGroups: [apps], resources: [deployments], verbs: [get, list, watch, create, update, patch, delete]}
- {apiGroups: [apps], resources: [replicasets], verbs: [list]}
- {apiGroups: [""], resources: [pods], verbs: [list]}
```
""",
    not_undone="what hooks did (migrations); custom resource definitions; volumes that outlive an uninstall. Helm's "
    "history has a line for each try and for the way back.",
    example="""
shop:
  platform: helm
  conn_id: k8s_prod
  namespace: shop
  release: shop
  chart: oci://registry.example.com/charts/shop
  chart_version: 2.4.0
  values: {image: {repository: registry.example.com/shop, tag: "${version}"}}
""",
    extra="kubernetes",
)


class Helm(HelmProgram[HelmConfig]):
    """Releases by `helm upgrade --install`, and goes back by `helm rollback`.

    A revision is Helm's own number. What is verified are the Deployments of the chart; of one that has none, only
    Helm's word is known, and that is said.
    """

    kind: ClassVar[str] = "helm"
    config_type: ClassVar[type[TargetConfig]] = HelmConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="number of the deployed Helm revision, image",
        early_failure="a failed Helm revision, and of its Deployments what `kubernetes` sees",
        restores="chart, values and manifest of the revision before; a first-ever release is uninstalled",
        tested_against="the real helm 4 on a real kube-apiserver, with a stand-in kubelet",
    )
    manual: ClassVar[Manual | None] = _MANUAL

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._run(self._snapshot(previous))

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`; waits for the chart's hooks. A chart may have changed behind its name, so only this
        release's own revision counts as already live."""
        records = self._run(self._records())
        newest = records[-1] if records else None
        if newest and newest.of(release) and newest.status == "deployed":
            return Handle(action="deploy", revision=str(newest.number))
        if not release.force:
            self._refuse_drift(records, release, snapshot)
        if newest and newest.status.startswith("pending"):
            if not newest.of(release):
                raise self._busy(records)
            self._recover(snapshot)
        self._upgrade(release)
        return Handle(action="deploy", revision=str(self._run(self._records())[-1].number))

    def observe(self, handle: Handle) -> Observation:
        return self._run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        return await self._arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        records = self._run(self._records())
        self._refuse_drift(records, release, snapshot)
        newest = records[-1] if records else None
        if not snapshot.exists:
            return self._remove(newest, release, snapshot)
        if newest is None:  # refused as drift above; tells the type checker
            raise self._drift("is not installed any more")
        back = Handle(action="rollback", revision=str(newest.number), changed=False)
        if newest.number == snapshot.data["found"]:
            return back.model_copy(update={"data": {"serves": snapshot.revision}})
        if newest.status == "deployed" and newest.description == f"Rollback to {snapshot.revision}":
            if self._run(self._look(back)).state is not State.FAILED:
                return back
            self._run(self._restart(newest))  # a way back that itself failed is started anew
            return back.model_copy(update={"changed": True})
        self._helm("rollback", self.config.release, str(snapshot.revision), patience=self.config.hook_timeout)
        return back.model_copy(update={"changed": True, "revision": str(self._run(self._records())[-1].number)})

    # --- reading: steps, without I/O ----------------------------------------------------------------------------------

    def _records(self) -> Steps[list[Record]]:
        """Helm's records, the oldest first; none when it is not installed."""
        selector = f"owner=helm,name={self.config.release}"
        listed = yield "list_namespaced_secret", {"label_selector": selector}
        records = sorted((Record.read(secret) for secret in listed["items"]), key=lambda r: r.number)
        return [] if records and records[-1].status == "uninstalled" else records

    def _snapshot(self, previous: Release | None) -> Steps[Snapshot]:
        records = yield from self._records()
        if records and records[-1].status.startswith(("pending", "uninstalling")):
            raise self._busy(records)
        if not records:
            return Snapshot(exists=False, data={"found": 0})
        live = next((record for record in reversed(records) if record.status == "deployed"), None)
        seen = yield from self._serving(live or records[-1])
        if seen.state is State.PROGRESSING:
            words = f"Helm: {self._place} is still being rolled out: {seen.reason}; waiting for its end"
            raise self.error(words, retryable=True, retry_after=AGAIN if seen.progress is not None else None)
        live = live or (yield from self._undeployed(records))
        image = None
        for deployment in live.deployments():
            template = deployment["spec"]["template"]
            names = chosen(template, (), previous.image if previous else "")
            image = image or images_of(template)[names[0] if names else template["spec"]["containers"][0]["name"]]
        number = records[-1].number
        return Snapshot(exists=True, revision=str(live.number), image=image, data={"found": number})

    def _undeployed(self, records: Sequence[Record]) -> Steps[Record]:
        """The newest revision that runs, although Helm calls none deployed."""
        for record in reversed(records):
            seen = yield from self._serving(record)
            if seen.state is State.HEALTHY and seen.verified:
                return record
        newest, name = records[-1], self.config.release
        raise self.error(
            f"Helm: {self._place} has no deployed revision (the newest, {newest.number}, is {newest.status}: "
            f"{newest.description}), and what runs is none of them, so nobody could restore it; nothing was written: "
            f"`helm rollback {name} REVISION` to one that works, or `helm uninstall {name}` if it is not needed, then "
            "release again"
        )

    def _look(self, handle: Handle) -> Steps[Observation]:
        records = yield from self._records()
        newest = records[-1] if records else None
        if handle.data.get("removed"):
            return (yield from self._seen_removed(newest, handle))
        if newest is None or str(newest.number) != handle.revision:
            words = f"revision {newest.number} is live: {newest.description}" if newest else "it is not installed"
            return Observation(state=State.SUPERSEDED, reason=words, revision=str(newest.number) if newest else None)
        if serves := handle.data.get("serves"):  # nothing was written: as it was found, whatever Helm calls it
            return (yield from self._serving(next(r for r in records if str(r.number) == serves)))
        return (yield from self._seen(newest))

    def _seen(self, record: Record) -> Steps[Observation]:
        words, revision = f"Helm says {record.status}: {record.description}", str(record.number)
        if record.status != "deployed":
            state = State.PROGRESSING if record.status.startswith("pending") else State.FAILED
            return Observation(state=state, reason=words, revision=revision)
        return (yield from self._serving(record))

    def _serving(self, record: Record) -> Steps[Observation]:
        """How the Deployments of a revision do, whatever Helm calls it."""
        words, revision = f"Helm says {record.status}: {record.description}", str(record.number)
        looks = []
        for document in record.deployments():
            looks.append((yield from self._seen_deployment(document, revision)))
        if not looks:
            words += "; the chart has no Deployment to look at"
            return Observation(state=State.HEALTHY, reason=words, revision=revision, verified=False)
        worst = min(looks, key=lambda look: _WORST.index(look.state))
        verified = all(look.verified for look in looks)
        progress = min((look.progress for look in looks if look.progress is not None), default=None)
        return worst.model_copy(update={"verified": verified, "progress": progress})

    def _seen_deployment(self, document: Json, revision: str) -> Steps[Observation]:
        name = document["metadata"]["name"]
        live = yield from self._deployment(document["metadata"])
        if live is None:
            words = f"Deployment {name} does not exist any more"
            return Observation(state=State.SUPERSEDED, reason=words, revision=revision)
        images = images_of(live["spec"]["template"])
        for container in containers_of(document["spec"]["template"]):
            if images.get(container["name"]) != container["image"]:
                words = f"somebody edited Deployment {name}: it has {', '.join(images.values())}"
                return Observation(state=State.SUPERSEDED, reason=words, revision=revision)
        seen = judge_rollout(live, revision, Trouble())
        if seen.state in (State.PROGRESSING, State.FAILED):
            seen = judge_rollout(live, revision, (yield from self._trouble(live, self.config.restarts)))
        return seen.model_copy(update={"reason": f"{name}: {seen.reason}"})

    def _seen_removed(self, newest: Record | None, handle: Handle) -> Steps[Observation]:
        left = newest is not None
        for meta in handle.data.get("deployments") or []:  # type: ignore[union-attr]
            left = left or (yield from self._deployment(meta)) is not None
        words = "what the release installed is " + ("being removed" if left else "gone")
        return Observation(state=State.PROGRESSING if left else State.HEALTHY, reason=words)

    def _deployment(self, meta: Any) -> Steps[Json | None]:
        place = {"name": meta["name"], "namespace": meta.get("namespace") or self.config.namespace}
        live: Json | None = yield "read_namespaced_deployment", place
        return live

    def _restart(self, record: Record) -> Steps[None]:
        """As ``kubectl rollout restart``: new pods of the same manifest, which Helm does not touch."""
        now = {"metadata": {"annotations": {RESTART: datetime.now(UTC).isoformat()}}}
        for document in record.deployments():
            meta = document["metadata"]
            place = {"name": meta["name"], "namespace": meta.get("namespace") or self.config.namespace}
            how = {"_content_type": "application/strategic-merge-patch+json"}
            yield "patch_namespaced_deployment", {**place, "body": {"spec": {"template": now}}, **how}

    # --- writing: helm ------------------------------------------------------------------------------------------------

    def _upgrade(self, release: Release) -> None:
        """https://helm.sh/docs/helm/helm_upgrade/"""
        config = self.config
        arguments = ["upgrade", config.release, located(config.chart, release), "--install"]
        arguments += [
            "--labels",
            f"{LABEL}={release.release_id}",
            "--description",
            f"{said(release)}{release.version}",
        ]
        arguments.append("--reset-then-reuse-values" if config.reuse_values else "--reset-values")
        if config.chart_version:
            arguments += ["--version", located(config.chart_version, release)]
        if release.force:
            arguments += ["--server-side=true", "--force-conflicts"]
        self._helm(*arguments, patience=config.hook_timeout, values=filled(config.values, release))

    def _recover(self, snapshot: Snapshot) -> None:
        """Out of the pending record that a crashed helm of ours left, and in which Helm refuses to go on."""
        way = ("rollback", self.config.release, str(snapshot.revision))
        self._helm(*(way if snapshot.exists else ("uninstall", way[1])), patience=self.config.hook_timeout)

    def _remove(self, newest: Record | None, release: Release, snapshot: Snapshot) -> Handle:
        """The way back from a first-ever release; pods go first, so that gone means gone."""
        deployments = [d["metadata"] for d in newest.deployments()] if newest else []
        places = [{key: m[key] for key in ("name", "namespace") if key in m} for m in deployments]
        data: Json = {"removed": True, "deployments": places}
        back = Handle(action="rollback", changed=False, data=data)
        if newest is None or newest.status == "uninstalling":
            return back
        if snapshot.data["found"] or not newest.of(release):
            raise self._drift(f"has revision {newest.number} now ({newest.description})")
        self._helm("uninstall", self.config.release, "--cascade", "foreground", patience=self.config.hook_timeout)
        return back.model_copy(update={"changed": True})

    # --- whose is it --------------------------------------------------------------------------------------------------

    @property
    def _place(self) -> str:
        return f"release {self.config.namespace}/{self.config.release}"

    def _refuse_drift(self, records: Sequence[Record], release: Release, snapshot: Snapshot) -> None:
        if snapshot.exists and not records:
            raise self._drift("is not installed any more")
        since = [record for record in records if record.number > int(str(snapshot.data["found"]))]
        mine = any(record.of(release) for record in since)
        others = [record for record in since if not (record.of(release) or (mine and record.goes_back))]
        if others:
            raise self._drift(f"has revision {others[-1].number} now ({others[-1].description})")

    def _drift(self, words: str) -> Drift:
        words = (
            f"Helm: {self._place} {words}: somebody else changed it; nothing was written. Check it, then release again"
        )
        return Drift(words, target=self.name)

    def _busy(self, records: Sequence[Record]) -> Exception:
        newest, before = records[-1], records[:-1]
        good = [record for record in before if record.status in ("deployed", "superseded")] or before
        way = f"rollback {self.config.release} {good[-1].number}" if good else f"uninstall {self.config.release}"
        return self.error(
            f"Helm: {self._place} is {newest.status} (revision {newest.number}): another helm is at work, or one has "
            f"died there; then `helm {way}` first",
            retryable=True,
            retry_after=AGAIN,
        )
