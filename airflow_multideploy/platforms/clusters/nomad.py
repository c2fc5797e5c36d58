"""HashiCorp Nomad jobs.

A release registers a new version of the job: a copy of the live one with another image and, in its Meta, the release's
id. ``EnforceIndex`` with the live ``JobModifyIndex`` makes the write atomic: it replaces exactly what was read. Nomad
rolls the new version out by the job's own ``update`` block; its deployment and its allocations say how that goes.

Rollback is ``revert`` to the version that ran, with ``EnforcePriorVersion``. It makes a version of the same
specification, so what is back is told by the specification and not by the version's number. When Nomad has gone back
by itself (``auto_revert``), the specification is there already and nothing is written. Going back to a version whose
deployment failed is no news to Nomad, which would leave it failed: then it is registered anew, with a label of its own.

The API: https://developer.hashicorp.com/nomad/api-docs/jobs
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

import httpx
from pydantic import Field, JsonValue

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.http_messages import Answer
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.clusters.nomad_judge import (
    copy_of,
    image_of,
    judge,
    label_of,
    rest_of,
    tasks_of,
    unhealthy,
)
from airflow_multideploy.platforms.rest import Call, Door, Header, Json, RestPlatform, Steps, at
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State

AGAIN = 30.0
"""Seconds until the next look at a deployment of somebody else, whose end is waited for."""


class NomadConfig(TargetConfig):
    """A job of type ``service`` or ``system``.

    :param job: id of the job.
    :param namespace: the job's namespace.
    :param region: None takes the server's.
    :param task: name of the tasks that get the image; needed only when the job runs several images.
    :param unhealthy: unhealthy allocations of the new version from which on a rollout counts as failed. Nomad itself
        reschedules them until its ``progress_deadline``; give a higher number to let it.
    :param specification: the job as the API takes it (``nomad job run -output``), for a first-ever release; the image
        in it is replaced. Without one the job has to exist.
    """

    platform: Literal["nomad"] = "nomad"
    job: Annotated[str, Field(min_length=1, max_length=256)]
    namespace: Annotated[str, Field(min_length=1)] = "default"
    region: Annotated[str, Field(min_length=1)] | None = None
    task: Annotated[str, Field(min_length=1)] | None = None
    unhealthy: Annotated[int, Field(ge=1)] = 1
    specification: dict[str, JsonValue] | None = None


class _NoJob(PlatformError):
    """The job does not exist."""


class _NoVersion(PlatformError):
    """Nomad has forgotten the version of the job."""


class Nomad(RestPlatform[NomadConfig]):
    """Releases an image into a job of HashiCorp Nomad, and back.

    A job with canaries and without ``auto_promote`` waits, within ``timeout``, for somebody to promote them.
    """

    kind = "nomad"
    api = "Nomad"
    config_type = NomadConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="the job's version, image and a fingerprint of the rest of its specification",
        early_failure="yes: a failed deployment, or unhealthy allocations; with their tasks' events",
        restores="the job's specification of before, as a new version",
        tested_against="a stand-in held to the part of Nomad's API schema that the tests write down; no real Nomad",
    )
    manual: ClassVar[Manual | None] = Manual(
        connection="A Connection of type `http`: host with scheme and port (`https://nomad.example.com:4646`), and the "
        "ACL token as password, which is sent as `X-Nomad-Token`. In its extra, `verify` is false or the path of a CA "
        "bundle.",
        protocol="""
1. `GET /v1/job/JOB` and `GET /v1/job/JOB/deployments`: what is live, and whether it is at rest; a deployment that is
   under way is waited for, up to two and a half minutes.
2. `POST /v1/jobs`: the live job with the new image and the release's id in its Meta (`multideploy_release`), with
   `EnforceIndex` and the `JobModifyIndex` that was read.
3. The same two reads, and `GET /v1/job/JOB/allocations` for why, until the version's deployment is `successful`. For a
   version without a deployment (system jobs, no `update` block): until its allocations run.

The way back: `POST /v1/job/JOB/revert` to the version of before with `EnforcePriorVersion`; or, after a first-ever
release, `DELETE /v1/job/JOB`.
""",
        permissions="""
An ACL policy for the token:

```hcl
namespace "default" {
  capabilities = ["read-job", "submit-job"]
}
```
""",
        not_undone="The counts of the task groups come back as they were at the snapshot, whatever an autoscaler made "
        "of them since. When Nomad has forgotten the version of before (`job_tracked_versions`), the live job is "
        "registered with the image of before. Volumes, variables and what is in Consul or Vault are not touched.",
        example="""
dc:
  platform: nomad
  conn_id: nomad_prod
  job: shop
  task: web
""",
    )

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._run(self._snapshot())

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        return self._run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        return self._run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        return await self._arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return self._run(self._rollback(release, snapshot, handle))

    # --- the connection

    def authentication(self, door: Door) -> httpx.Auth | None:
        """The ACL token."""
        return Header("X-Nomad-Token", door.password) if door.password else None

    def _refused(self, call: Call, answer: Answer) -> PlatformError:
        """Nomad answers in plain text, and says 500 to much that no second try mends."""
        error = super()._refused(call, answer)
        if answer.status == 404 and "job not found" in answer.text:
            return _NoJob(f"{self._name} does not exist", target=self.name)
        if answer.status == 500 and re.search(r"at version \d+ not found", answer.text):
            return _NoVersion(f"{self._what(call)}: {answer.words}", target=self.name)
        if answer.status == 500 and re.search(r"errors? occurred:", answer.text):
            return self.error(f"{self._what(call)}: {answer.words}")
        return error

    # --- reading

    @property
    def _name(self) -> str:
        return f"job {self.config.job!r} in namespace {self.config.namespace!r}"

    def _call(self, method: str, *parts: str, body: Json | None = None, **params: str) -> Steps[Any]:
        where = {"namespace": self.config.namespace} | ({"region": self.config.region} if self.config.region else {})
        reply = yield Call(method, at("v1", *parts), {**where, **params}, body)
        return reply.document

    def _job(self) -> Steps[Json | None]:
        """https://developer.hashicorp.com/nomad/api-docs/jobs#read-job"""
        try:
            job: Json = yield from self._call("GET", "job", self.config.job)
        except _NoJob:
            return None
        if job.get("Type") not in ("service", "system"):
            raise self.error(f"{self._name} is of type {job.get('Type')}: releases go to service and system jobs")
        images = {task["Config"]["image"] for task in tasks_of(job, self.config.task)}
        if len(images) != 1:
            there = ", ".join(f"{t.get('Name')} ({t['Config']['image']})" for t in tasks_of(job, None))
            raise self.error(f"{self._name}: which tasks get the image? Set `task`; with images: {there or 'none'}")
        return job

    def _deployments(self) -> Steps[list[Json]]:
        """https://developer.hashicorp.com/nomad/api-docs/jobs#list-job-deployments"""
        found: list[Json] | None = yield from self._call("GET", "job", self.config.job, "deployments")
        return sorted(found or [], key=lambda deployment: int(deployment["CreateIndex"]), reverse=True)

    def _snapshot(self) -> Steps[Snapshot]:
        job = yield from self._job()
        if job is None:
            return Snapshot(exists=False)
        task = self.config.task
        data: dict[str, JsonValue] = {"rest": rest_of(job, task), "label": label_of(job), "version": job["Version"]}
        if job.get("Stop"):
            return Snapshot(exists=False, data={**data, "stopped": True})
        deployments = yield from self._deployments()
        latest = deployments[0] if deployments else {}
        if latest.get("Status") in ("running", "pending", "initializing") and not unhealthy(latest):
            raise self.error(
                f"{self._name}: the deployment of version {latest['JobVersion']} is {latest['Status']}; a snapshot of "
                "a half-deployed job is none: waiting for it",
                retryable=True,
                retry_after=AGAIN,
            )
        return Snapshot(exists=True, revision=str(job["Version"]), image=image_of(job, task), data=data)

    def _look(self, handle: Handle) -> Steps[Observation]:
        if handle.data.get("left"):
            return Observation(state=State.HEALTHY, reason=str(handle.data["left"]), verified=False)
        job = yield from self._job()
        deployments = (yield from self._deployments()) if job else []
        how: Json = {"task": self.config.task, "limit": self.config.unhealthy}
        seen = judge(job, deployments, [], handle, **how)
        if seen.state is State.HEALTHY or job is None or handle.data.get("removed"):
            return seen
        # https://developer.hashicorp.com/nomad/api-docs/jobs#list-job-allocations
        allocations: list[Json] | None = yield from self._call("GET", "job", self.config.job, "allocations")
        return judge(job, deployments, allocations or [], handle, **how)

    # --- writing

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        job, task = (yield from self._job()), self.config.task
        stopped = job is None or bool(job.get("Stop"))
        if job and not stopped and self._ours(job, release, None):
            return self._handle("deploy", job, changed=snapshot.data.get("label") != release.release_id)
        if not release.force:
            self._still(snapshot, job)
            if job and not stopped and image_of(job, task) == release.image:
                live = self._handle("deploy", job, changed=False)
                if (yield from self._look(live)).state is State.HEALTHY:
                    return live
        if job is None and self.config.specification is None:
            raise self.error(f"{self._name} does not exist; run it once, or give its `specification`")
        model = job or {"Namespace": self.config.namespace, **(self.config.specification or {}), "ID": self.config.job}
        if not tasks_of(model, task):
            raise self.error(f"{self._name}: no task of its specification runs an image")
        return (yield from self._register("deploy", copy_of(model, release.image, release.release_id, task), job))

    def _register(self, action: Literal["deploy", "rollback"], wanted: Json, over: Json | None) -> Steps[Handle]:
        """Write a version over what was read.

        https://developer.hashicorp.com/nomad/api-docs/jobs#create-job
        """
        body = {"Job": wanted, "EnforceIndex": True, "JobModifyIndex": over["JobModifyIndex"] if over else 0}
        yield from self._call("POST", "jobs", body=body)
        return (yield from self._written(action, image_of(wanted, self.config.task), label_of(wanted)))

    def _written(self, action: Literal["deploy", "rollback"], image: str | None, label: str | None) -> Steps[Handle]:
        """The handle of a write: Nomad's answer tells neither the version's number nor what it made of the job."""
        job = yield from self._job()
        if job is None or (image_of(job, self.config.task), label_of(job)) != (image, label):
            # Somebody was quick. Nothing fits this handle, so that looking says so.
            return Handle(action=action, data={"image": image, "label": label, "rest": None, "version": None})
        return self._handle(action, job)

    def _rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Steps[Handle]:
        job, task = (yield from self._job()), self.config.task
        if not snapshot.exists:
            return (yield from self._unmake(release, snapshot, job, handle))
        if job is None or job.get("Stop"):
            raise self._drift("the job was stopped since the snapshot")
        if self._same(snapshot, job):
            back = self._handle("rollback", job, changed=False)
            deployments = yield from self._deployments()
            current = next((d for d in deployments if d["JobVersion"] == job["Version"]), {})
            if current.get("Status") != "failed":
                return back
            if job["Version"] == snapshot.data["version"]:
                return back.model_copy(
                    update={"data": {"left": "nothing was written; its deployment had failed before"}}
                )
            return (yield from self._register("rollback", copy_of(job, None, f"{release.release_id}-back", task), job))
        if not self._ours(job, release, handle):
            raise self._drift(
                f"version {job['Version']} runs {image_of(job, task)}, of neither this release nor the snapshot"
            )
        # https://developer.hashicorp.com/nomad/api-docs/jobs#revert-to-older-job-version
        body = {"JobID": self.config.job, "JobVersion": snapshot.data["version"], "EnforcePriorVersion": job["Version"]}
        label = None if snapshot.data.get("label") is None else str(snapshot.data["label"])
        try:
            yield from self._call("POST", "job", self.config.job, "revert", body=body)
        except _NoVersion:  # what the release changed in it is known
            return (yield from self._register("rollback", copy_of(job, snapshot.image, label, task), job))
        return (yield from self._written("rollback", snapshot.image, label))

    def _unmake(self, release: Release, snapshot: Snapshot, job: Json | None, handle: Handle | None) -> Steps[Handle]:
        """The way back from a first-ever release.

        https://developer.hashicorp.com/nomad/api-docs/jobs#stop-a-job
        """
        removed = Handle(action="rollback", changed=False, data={"removed": True})
        if job is None or job.get("Stop"):
            return removed
        if not self._ours(job, release, handle):
            raise self._drift(f"version {job['Version']} is not of this release")
        purge = "false" if snapshot.data.get("stopped") else "true"
        yield from self._call("DELETE", "job", self.config.job, purge=purge)
        return removed.model_copy(update={"changed": True})

    # --- decisions

    def _same(self, snapshot: Snapshot, job: Json) -> bool:
        task = self.config.task
        return (image_of(job, task), rest_of(job, task)) == (snapshot.image, snapshot.data.get("rest"))

    def _ours(self, job: Json, release: Release, handle: Handle | None) -> bool:
        """Whether it carries this release's label and image, and is as the release left it, as far as that is known."""
        marked = label_of(job) == release.release_id and image_of(job, self.config.task) == release.image
        left = handle.data.get("rest") if handle else None
        return marked and left in (None, rest_of(job, self.config.task))

    def _still(self, snapshot: Snapshot, job: Json | None) -> None:
        """:raises Drift: the job is not what the snapshot says."""
        runs = job is not None and not job.get("Stop")
        if runs != snapshot.exists:
            raise self._drift(f"somebody else {'started' if runs else 'stopped'} the job since the snapshot")
        if job is not None and runs and not self._same(snapshot, job):
            image = image_of(job, self.config.task)
            raise self._drift(
                f"somebody else changed the job since the snapshot: version {job['Version']} runs {image}"
            )

    def _handle(self, action: Literal["deploy", "rollback"], job: Json, *, changed: bool = True) -> Handle:
        task, version = self.config.task, job.get("Version")
        data: dict[str, JsonValue] = {
            "image": image_of(job, task),
            "rest": rest_of(job, task),
            "label": label_of(job),
            "version": version,
        }
        return Handle(action=action, revision=None if version is None else str(version), changed=changed, data=data)

    def _drift(self, what: str) -> Drift:
        return Drift(f"{self._name}: {what}; nothing was touched. Look at it, then release again", target=self.name)
