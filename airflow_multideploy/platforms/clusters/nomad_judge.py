"""What the documents of Nomad's API say: which image, whose job, and how a deployment goes. Without I/O."""

from __future__ import annotations

import copy
import hashlib
import json

from airflow_multideploy.platforms.rest import Json
from airflow_multideploy.release.contract import Handle, Observation, State

RELEASE_META = "multideploy_release"
"""The key of the job's Meta that carries a release's id."""
_OF_ONE_VERSION = frozenset(
    {
        "CreateIndex",
        "DispatchIdempotencyToken",
        "JobModifyIndex",
        "ModifyIndex",
        "NomadTokenID",
        "Stable",
        "Status",
        "StatusDescription",
        "Stop",
        "SubmitTime",
        "Version",
        "VersionTag",
    }
)
"""Fields of a job that Nomad fills in, so that a copy does not have them."""
_TELLING = frozenset(
    {
        "Alloc Unhealthy",
        "Driver Failure",
        "Failed Artifact Download",
        "Failed Validation",
        "Not Restarting",
        "Setup Failure",
        "Task hook failed",
        "Terminated",
    }
)
"""Types of task events that say why a task is not well."""


def tasks_of(job: Json, name: str | None) -> list[Json]:
    """The tasks of this name (None: any) that run an image."""
    tasks = [task for group in job.get("TaskGroups") or [] for task in group.get("Tasks") or []]
    return [t for t in tasks if name in (None, t.get("Name")) and (t.get("Config") or {}).get("image")]


def image_of(job: Json, name: str | None) -> str | None:
    """The image that the released tasks run; None when they do not agree."""
    images = {task["Config"]["image"] for task in tasks_of(job, name)}
    return str(images.pop()) if len(images) == 1 else None


def label_of(job: Json) -> str | None:
    """Id of the release that wrote this version."""
    label = (job.get("Meta") or {}).get(RELEASE_META)
    return None if label is None else str(label)


def copy_of(job: Json, image: str | None, label: str | None, name: str | None) -> Json:
    """The job to register: this one with another image (None: its own) and label."""
    made = {key: copy.deepcopy(value) for key, value in job.items() if key not in _OF_ONE_VERSION}
    meta = {key: value for key, value in (made.get("Meta") or {}).items() if key != RELEASE_META}
    made["Meta"] = (meta | ({RELEASE_META: label} if label else {})) or None
    for task in tasks_of(made, name) if image else ():
        task["Config"]["image"] = image
    return made


def rest_of(job: Json, name: str | None) -> str:
    """A fingerprint of all that a release leaves as it is: not the image and the label, nor an autoscaler's counts."""
    made = copy_of(job, "-", None, name)
    for group in made.get("TaskGroups") or []:
        group.pop("Count", None)
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def words_of(allocations: list[Json], version: int) -> str:
    """Why the tasks of a version are not well, in Nomad's words; each once, five at most."""
    said: list[str] = []
    for allocation in sorted(allocations, key=lambda a: int(a.get("ModifyTime") or 0), reverse=True):
        if allocation.get("JobVersion") != version:
            continue
        for task, state in (allocation.get("TaskStates") or {}).items():
            for event in reversed(state.get("Events") or []):
                words = f"{task}: {event.get('Type')}: {event.get('DisplayMessage') or event.get('Message') or ''}"
                if event.get("Type") in _TELLING and words not in said:
                    said.append(words)
    return "; ".join(said[:5])


def unhealthy(deployment: Json) -> int:
    """Allocations of a deployment that Nomad gave up."""
    return sum(int(group.get("UnhealthyAllocs") or 0) for group in (deployment.get("TaskGroups") or {}).values())


def _of_deployment(deployment: Json, why: str, limit: int) -> tuple[State, str, float | None]:
    status = deployment.get("Status")
    said = str(deployment.get("StatusDescription") or status)
    if status == "successful":
        return State.HEALTHY, said, 1.0
    if status in ("failed", "cancelled") or unhealthy(deployment) >= limit:
        return State.FAILED, "; ".join(part for part in (said, why) if part), None
    groups = (deployment.get("TaskGroups") or {}).values()
    wanted = sum(int(group.get("DesiredTotal") or 0) for group in groups)
    healthy = sum(int(group.get("HealthyAllocs") or 0) for group in groups)
    return State.PROGRESSING, f"{said}: {healthy} of {wanted} healthy", healthy / wanted if wanted else None


def _of_allocations(job: Json, allocations: list[Json], limit: int) -> tuple[State, str, float | None]:
    """For a version without a deployment: a system job, one without rolling updates, or one not scheduled yet."""
    mine = [a for a in allocations if a.get("JobVersion") == job["Version"] and a.get("DesiredStatus") == "run"]
    running = [a for a in mine if a.get("ClientStatus") == "running"]
    failed = [a for a in mine if a.get("ClientStatus") == "failed"]
    if len(failed) >= limit:
        return State.FAILED, f"{len(failed)} allocations failed; {words_of(mine, job['Version'])}", None
    groups = {g["Name"]: int(g.get("Count") or 0) for g in job.get("TaskGroups") or []}
    per_group = {name: sum(a.get("TaskGroup") == name for a in running) for name in groups}
    enough = all(per_group[name] >= count for name, count in groups.items())
    if running and len(running) == len(mine) and (enough or job.get("Type") == "system"):
        return State.HEALTHY, f"{len(running)} allocations of version {job['Version']} run", 1.0
    return (
        State.PROGRESSING,
        f"no deployment of version {job['Version']} yet; {len(running)} of its allocations run",
        None,
    )


def judge(
    job: Json | None, deployments: list[Json], allocations: list[Json], handle: Handle, *, task: str | None, limit: int
) -> Observation:
    """Whether the handle's job, and no other, runs and is well.

    :param deployments: of the job, the latest first.
    :param allocations: of the job, as far as they matter.
    :param limit: unhealthy allocations from which on a rollout counts as failed.
    """
    stopped = job is None or bool(job.get("Stop"))
    if handle.data.get("removed"):
        if job is None or (stopped and job.get("Status") == "dead"):
            return Observation(state=State.HEALTHY, reason="the job is stopped" if job else "the job is removed")
        state = State.PROGRESSING if stopped else State.SUPERSEDED
        return Observation(state=state, reason="the job is being stopped" if stopped else "the job was started again")
    if job is None or stopped:
        return Observation(state=State.FAILED, reason=f"the job is {'gone' if job is None else 'stopped'}: not by us")
    revision, mine = str(job["Version"]), handle.data.get("version")
    ours = image_of(job, task) == handle.data.get("image") and rest_of(job, task) == handle.data.get("rest")
    if not ours or (handle.action == "deploy" and handle.changed and label_of(job) != handle.data.get("label")):
        # Nomad itself may have gone back (auto_revert): then our version's deployment says that it failed.
        gone = next((d for d in deployments if d.get("JobVersion") == mine and d.get("Status") == "failed"), None)
        if gone is not None:
            said = "; ".join(
                w for w in (str(gone.get("StatusDescription")), words_of(allocations, int(gone["JobVersion"]))) if w
            )
            return Observation(state=State.FAILED, reason=said, revision=revision)
        reason = f"somebody else changed the job: version {revision} runs {image_of(job, task)}"
        return Observation(state=State.SUPERSEDED, reason=reason, revision=revision)
    current = next((d for d in deployments if d.get("JobVersion") == job["Version"]), None)
    if current is None:
        state, reason, progress = _of_allocations(job, allocations, limit)
    else:
        state, reason, progress = _of_deployment(current, words_of(allocations, job["Version"]), limit)
    return Observation(state=state, reason=reason, revision=revision, progress=progress)
