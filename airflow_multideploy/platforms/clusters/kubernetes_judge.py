"""What the documents of the Kubernetes API say about a rollout, and how a pod template is changed and changed back.

Pure functions, the same for the synchronous and the asynchronous client. A template is never kept: it may hold
anybody's secrets. A snapshot holds its digest and the few values that a release changes; what the way back writes is
the live template with those values put back, and only if its digest is the snapshot's again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_multideploy.release.contract import Handle, Observation, Release, Snapshot, State

Json = dict[str, Any]
RELEASE, VERSION, RESTART = "multideploy/release", "multideploy/version", "multideploy/restart"
"""Annotations of the pod template that are ours."""
CREATED = "multideploy/created"
"""Annotation of a Deployment that a first-ever release created."""
NUMBER = "deployment.kubernetes.io/revision"
HASH = "pod-template-hash"
_HOPELESS = frozenset(
    {
        "ErrImageNeverPull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
    }
)
"""Why a container waits, when waiting does not help."""
_BACK_OFF, _PULL_BACK_OFF = "CrashLoopBackOff", "ImagePullBackOff"
PULLS = 15.0
"""Seconds of a pod's life in which an image that cannot be pulled is tried again by itself: a registry may be busy."""


@dataclass(frozen=True)
class Trouble:
    """What the pods of a rollout say.

    :param hopeless: they will not get there.
    :param replica_set: name of the rollout's ReplicaSet; empty: there is none yet; None: nobody looked.
    """

    words: str = ""
    hopeless: bool = False
    replica_set: str | None = None


def judge(handle: Handle, deployment: Json | None, trouble: Trouble) -> Observation:
    """How a rollout looks in these documents.

    The Deployment has to hold the handle's template, its controller has to have seen it, and every replica has to be of
    it and available: the rule of ``kubectl rollout status``, plus that it is ours.
    https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#deployment-status
    """
    if handle.data.get("removed"):
        return _judge_removed(handle, deployment)
    if deployment is None:
        return Observation(state=State.SUPERSEDED, reason="the Deployment does not exist any more")
    live = digest(deployment["spec"]["template"])
    if live != handle.revision or deployment["metadata"]["uid"] != handle.data.get("uid"):
        shown = told_apart(deployment["spec"]["template"], handle.data.get("images"))
        return Observation(state=State.SUPERSEDED, reason=f"somebody else's template is live: {shown}", revision=live)
    return judge_rollout(deployment, live, trouble)


def judge_rollout(deployment: Json, live: str, trouble: Trouble) -> Observation:
    """How far the Deployment is with the template that it has.

    :param live: what that template is called.
    """
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return Observation(state=State.PROGRESSING, reason="the controller has not seen it yet", revision=live)
    total, updated, available = (status.get(k, 0) for k in ("replicas", "updatedReplicas", "availableReplicas"))
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    progressing, refused = conditions.get("Progressing", {}), conditions.get("ReplicaFailure", {})
    counts = f"{updated} of {wanted} replicas updated, {available} available, {total - updated} old"
    # Its words may hold the user's; the pods' are more to the point, so they come first.
    paused = "paused: `kubectl rollout resume` it" if deployment["spec"].get("paused") else ""
    said = [paused, trouble.words, str(refused.get("message", "")), counts]
    if _exceeded(progressing, trouble):
        said.insert(0, f"ProgressDeadlineExceeded: {progressing.get('message', '')}")
        return Observation(state=State.FAILED, reason=_joined(said), revision=live)
    if wanted == total == updated == available == 0:
        words = "the Deployment has 0 replicas: no pod runs, so nothing shows that the image starts"
        return Observation(state=State.HEALTHY, reason=words, revision=live, verified=False)
    if wanted == updated == total == available:
        return Observation(state=State.HEALTHY, reason=counts, revision=live, progress=1.0)
    state = State.FAILED if trouble.hopeless else State.PROGRESSING
    progress = min(updated, available, wanted) / wanted if wanted else None
    return Observation(state=state, reason=_joined(said), revision=live, progress=progress)


def _exceeded(condition: Json, trouble: Trouble) -> bool:
    """Whether it is this rollout whose time is over: the condition of the one before stays until this one moves on."""
    if condition.get("reason") != "ProgressDeadlineExceeded" or trouble.replica_set == "":
        return False
    message = str(condition.get("message", ""))
    return trouble.replica_set is None or 'ReplicaSet "' not in message or f'"{trouble.replica_set}"' in message


def _judge_removed(handle: Handle, deployment: Json | None) -> Observation:
    """The way back from a first-ever release is done when the Deployment and its pods are gone."""
    if deployment is None:
        return Observation(state=State.HEALTHY, reason="the Deployment that the release created is gone")
    live = digest(deployment["spec"]["template"])
    if deployment["metadata"]["uid"] != handle.data.get("uid"):
        return Observation(state=State.SUPERSEDED, reason="somebody created the Deployment anew", revision=live)
    return Observation(state=State.PROGRESSING, reason="the Deployment and its pods are being removed", revision=live)


def _joined(words: Sequence[str]) -> str:
    return "; ".join(word for word in words if word)


def trouble_of(replica_set: str, pods: Sequence[Json], restarts: int, now: datetime) -> Trouble:
    """What keeps these pods from being ready, in Kubernetes' words.

    https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#container-states

    :param restarts: of a container in CrashLoopBackOff, from which on it is without hope.
    """
    words, hopeless = [], False
    for pod in pods:
        status = pod.get("status", {})
        for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
            waiting = container.get("state", {}).get("waiting") or {}
            reason, ended = waiting.get("reason"), _ended(container)
            if reason in (None, "ContainerCreating", "PodInitializing") and not ended:
                continue
            looping = reason == _BACK_OFF and container.get("restartCount", 0) >= restarts
            unpullable = reason == _PULL_BACK_OFF and _age(pod, now) >= PULLS
            hopeless = hopeless or looping or unpullable or reason in _HOPELESS
            told = _joined((": ".join(w for w in (reason, waiting.get("message")) if w), ended))
            words.append(f"pod {pod['metadata']['name']}, container {container['name']}: {told}")
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                words.append(f"pod {pod['metadata']['name']}: {condition.get('reason')}: {condition.get('message')}")
    return Trouble(_joined(words[:3]), hopeless, replica_set)


def _age(pod: Json, now: datetime) -> float:
    """Seconds since a node took the pod."""
    began = pod.get("status", {}).get("startTime") or pod["metadata"]["creationTimestamp"]
    return (now - datetime.fromisoformat(began)).total_seconds()


def _ended(container: Json) -> str:
    found = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
    if not found or (found.get("exitCode") == 0 and container.get("ready")):
        return ""
    return f"exit code {found.get('exitCode')}" + "".join(
        f": {found[k]}" for k in ("reason", "message") if found.get(k)
    )


# --- pod templates ----------------------------------------------------------------------------------------------------


def containers_of(template: Json) -> Iterator[Json]:
    """Init containers and containers."""
    yield from template["spec"].get("initContainers", [])
    yield from template["spec"]["containers"]


def images_of(template: Json) -> dict[str, str]:
    """Image per container."""
    return {container["name"]: container.get("image", "") for container in containers_of(template)}


def told_apart(template: Json, images: object) -> str:
    """How it differs, for a person, from the template that has these images."""
    live = images_of(template)
    return "its pod template differs, with the same images" if live == images else f"it has {', '.join(live.values())}"


def marks_of(template: Json) -> dict[str, str]:
    """Our annotations."""
    annotations = template.get("metadata", {}).get("annotations") or {}
    return {key: annotations[key] for key in (RELEASE, VERSION, RESTART) if key in annotations}


def changed(template: Json, images: Mapping[str, str], marks: Mapping[str, str]) -> Json:
    """A copy with these images, and with these as our only annotations."""
    copy = deepcopy(template)
    for container in containers_of(copy):
        if container["name"] in images:
            container["image"] = images[container["name"]]
    meta = copy.setdefault("metadata", {})
    others = {k: v for k, v in (meta.get("annotations") or {}).items() if k not in (RELEASE, VERSION, RESTART)}
    meta["annotations"] = {**others, **marks}
    return cleaned(copy)


def cleaned(template: Json) -> Json:
    """A copy without what Kubernetes adds by itself: of a ReplicaSet's template, the Deployment's."""
    copy = deepcopy(template)
    meta = copy.get("metadata", {})
    (meta.get("labels") or {}).pop(HASH, None)
    for empty in [key for key in ("creationTimestamp", "labels", "annotations") if not meta.get(key)]:
        meta.pop(empty, None)
    return copy


def digest(template: Json) -> str:
    """Short digest of a template as the API shows it: what a revision is called here."""
    text = json.dumps(cleaned(template), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def chosen(template: Json, names: Sequence[str], image: str) -> list[str] | None:
    """The containers that get the image, or None when it is not clear which."""
    images = images_of(template)
    if names:
        return list(names) if set(names) <= set(images) else None
    fits = [name for name, live in images.items() if _repository(live) == _repository(image)]
    return fits or (list(images) if len(images) == 1 else None)


def _repository(image: str) -> str:
    name, _, _ = image.partition("@")
    path, slash, last = name.rpartition("/")
    return path + slash + last.partition(":")[0]


def fresh(template: Json, names: Sequence[str], image: str) -> bool:
    """Whether writing the same image again brings nothing: the containers have it, and its bits are pinned.

    A tag that is pulled at every start may hold other bits than yesterday.
    """
    mine = [c for c in containers_of(template) if c["name"] in names]
    pinned = "@sha256:" in image or all(c.get("imagePullPolicy") != "Always" for c in mine)
    return pinned and all(c.get("image") == image for c in mine)


# --- what is written --------------------------------------------------------------------------------------------------


def applied(live: Json, names: Sequence[str], release: Release) -> Json:
    """What we own of a Deployment: https://kubernetes.io/docs/reference/using-api/server-side-apply/

    With uid and resourceVersion it is refused when anything was written since ``live`` was read.
    """
    inits = {container["name"] for container in live["spec"]["template"]["spec"].get("initContainers", [])}
    spec: dict[str, list[Json]] = {}
    for name in names:
        part = spec.setdefault("initContainers" if name in inits else "containers", [])
        part.append({"name": name, "image": release.image})
    marks = {RELEASE: release.release_id, VERSION: release.version}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {key: live["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")},
        "spec": {"template": {"metadata": {"annotations": marks}, "spec": spec}},
    }


def flaw_of(manifest: Json) -> str:
    """Why it is no manifest of a Deployment; empty: it is one."""
    if (kind := manifest.get("kind", "Deployment")) != "Deployment":
        return f"is a {kind!s:.40}: this platform releases Deployments; use 'helm' or 'command' for it"
    for path in ("spec.selector", "spec.template.spec.containers"):
        found: Any = manifest
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if not found:
            return f"is no Deployment: it has no {path}"
    named = isinstance(found, list) and all(isinstance(one, dict) and one.get("name") for one in found)
    return "" if named else f"is no Deployment: it has no {path}[].name"


def created(manifest: Json, namespace: str, name: str, names: Sequence[str], release: Release) -> Json:
    """The Deployment that a first-ever release creates."""
    body = deepcopy(manifest)
    spec, meta = body["spec"], body.setdefault("metadata", {})
    marks = {RELEASE: release.release_id, VERSION: release.version}
    spec["template"] = changed(spec["template"], dict.fromkeys(names, release.image), marks)
    meta.update({"name": name, "namespace": namespace})
    meta["annotations"] = {**(meta.get("annotations") or {}), CREATED: release.release_id}
    return {**body, "apiVersion": "apps/v1", "kind": "Deployment"}


# --- whose is it ------------------------------------------------------------------------------------------------------


def undisturbed(template: Json, snapshot: Snapshot) -> bool:
    """Whether it differs from the snapshot's in nothing but images and our annotations."""
    return digest(restored(template, snapshot)) == snapshot.revision


def restored(template: Json, snapshot: Snapshot) -> Json:
    """The template with the snapshot's images and annotations."""
    return changed(template, _kept(snapshot, "images"), _kept(snapshot, "marks"))


def _kept(snapshot: Snapshot, name: str) -> dict[str, str]:
    kept = snapshot.data.get(name)
    return {key: str(value) for key, value in kept.items()} if isinstance(kept, dict) else {}


def ours(template: Json, release: Release, snapshot: Snapshot, handle: Handle | None = None) -> bool:
    """Whether this release wrote it, and nobody changed it since."""
    if marks_of(template).get(RELEASE) != release.release_id:
        return False
    if handle is not None and handle.revision == digest(template):
        return True
    images, before = images_of(template), _kept(snapshot, "images")
    if not snapshot.exists:
        return release.image in images.values()
    return undisturbed(template, snapshot) and all(i in (before[n], release.image) for n, i in images.items())


def is_back(template: Json, snapshot: Snapshot) -> bool:
    """Whether it is the snapshot's, or the snapshot's started anew."""
    marks, then = marks_of(template), _kept(snapshot, "marks")
    same = images_of(template) == _kept(snapshot, "images") and marks.get(RELEASE) == then.get(RELEASE)
    return same and undisturbed(template, snapshot)


def at_work(pods: Sequence[Json]) -> str:
    """The first of them that has not ended, with its owner; empty: there is none."""
    for pod in pods:
        meta = pod["metadata"]
        if not meta.get("deletionTimestamp") and pod["status"].get("phase") not in ("Succeeded", "Failed"):
            owners = meta.get("ownerReferences") or [{"kind": "nobody"}]
            return f"pod {meta['name']} of {owners[0]['kind']} {owners[0].get('name', '')}".rstrip()
    return ""


def number_of(document: Json) -> int:
    """Kubernetes' own number of a Deployment's or ReplicaSet's revision."""
    return int(document["metadata"].get("annotations", {}).get(NUMBER, 0))


def selector_of(deployment: Json) -> str:
    """The label selector of its pods, as a query has it."""
    selector = deployment["spec"]["selector"]
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for rule in selector.get("matchExpressions") or []:
        key, operator, values = rule["key"], rule["operator"], ",".join(rule.get("values") or [])
        shapes = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key}
        parts.append(shapes.get(operator, f"!{key}"))
    return ",".join(parts)
