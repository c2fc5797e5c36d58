"""Amazon ECS services: config, adapter and operator.

A release is a new revision of the service's task definition: a copy of the live one with the new image, tagged with
the release id. The service itself (load balancer, network, scaling) is made by the infrastructure's own tool; we
release into it.

ECS has no concurrency token. The live task definition is read directly before each write, every revision we register
carries the release id as a tag, and what is live without that tag is not ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.aws.calls import AwsConfig, AwsPlatform, Steps
from airflow_multideploy.platforms.aws.ecs_judge import (
    AGAIN,
    ANSWERS,
    GOING_BACK,
    UNDER_WAY,
    Json,
    container_for,
    copy_of,
    deployment_of,
    images_of,
    judge,
    primary_of,
    started,
    state_of,
    wanted_by,
)
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State

RELEASE_TAG, VERSION_TAG = "multideploy:release", "multideploy:version"
_DOCS = "create the service once with your infrastructure tool; releases go into an existing service"


class AwsEcsConfig(AwsConfig):
    """One ECS service.

    :param cluster: name or ARN.
    :param service: name or ARN.
    :param container: the container of the task definition that gets the image; None: the only essential one, else the
        only one whose image comes from the release's repository.
    :param region: None takes the Connection's.
    :param desired_count: number of tasks to which the first-ever release raises a service that stands at zero; None
        leaves it at zero. A service with tasks keeps its count, which belongs to its autoscaling.
    :param failed_tasks: consecutive failed tasks after which a rollout counts as failed when the service has no
        deployment circuit breaker (without one, ECS itself tries for ever).
    """

    platform: Literal["aws_ecs"] = "aws_ecs"
    cluster: Annotated[str, Field(min_length=1)]
    service: Annotated[str, Field(min_length=1)]
    container: Annotated[str, Field(min_length=1)] | None = None
    desired_count: Annotated[int, Field(ge=1)] | None = None
    failed_tasks: Annotated[int, Field(ge=1)] = 3


class AwsEcs(AwsPlatform[AwsEcsConfig]):
    """Releases into an ECS service with a rolling deployment, and back.

    A service counts as never deployed (``snapshot.exists`` False) when none of its tasks runs, it has no steady
    deployment with a desired count above zero, and no release of ours is its task definition. Rolling back such a
    first-ever release restores the task definition and the desired count that were there. Registered revisions stay:
    they cost nothing, and a retry uses them again.

    The native blue/green, linear and canary strategies are judged by the service's deployments, as they report no
    rollout state: done when the release's is the only one left, with all its tasks.
    """

    kind: ClassVar[str] = "aws_ecs"
    client_type: ClassVar[str] = "ecs"
    answers: ClassVar[Mapping[str, str]] = ANSWERS
    config_type: ClassVar[type[TargetConfig]] = AwsEcsConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="task definition ARN, desired count, deployment configuration and load balancers of the service",
        early_failure="rolloutState FAILED, an automatic rollback of ECS, or repeated failed tasks; with stop reasons",
        restores="the task definition (image, environment, sizes); the desired count, which autoscaling owns, only "
        "after a first-ever release",
        tested_against="moto's ECS with a service-deployment state machine, held to botocore's service model",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="aws",
        connection="Type `aws`: keys, a role to assume, or the machine's own. Create the service once.",
        protocol="`RegisterTaskDefinition`: a copy of the live one with the new image, tagged with the release id; "
        "then `UpdateService`. A tag that is not pinned by digest is deployed again with `forceNewDeployment`; an "
        "image pinned by digest that is live and healthy is left alone. Back: `StopServiceDeployment(ROLLBACK)` while "
        "in progress, else `UpdateService` with the old ARN. A deployment under way is waited for, up to 2.5 minutes.",
        permissions="`ecs:DescribeServices`, `DescribeTaskDefinition`, `ListTaskDefinitions`, "
        "`RegisterTaskDefinition`, `TagResource`, `UpdateService`, `ListTasks`, `DescribeTasks`, "
        "`ListServiceDeployments`, `DescribeServiceDeployments`, `DescribeServiceRevisions`; `StopServiceDeployment` "
        "(optional); `iam:PassRole` on the task's roles.",
        not_undone="the desired count. ECS has no concurrency token: between read and write there is a short gap.",
        example="aws: {platform: aws_ecs, conn_id: aws_prod, cluster: main, service: shop}",
    )

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._run(self._snapshot(previous))

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`.

        An image that is pinned by digest, live and healthy is left alone. A tag may hold other bits than yesterday: it
        is deployed again, as a new revision with this release's id and ``forceNewDeployment``, unless the live revision
        carries this release's id already.
        """
        return self._run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        return self._run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        return await self._arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return self._run(self._rollback(release, snapshot, handle))

    def console_url(self, handle: Handle | None = None) -> str | None:
        arn = (handle.revision if handle else None) or self.config.cluster
        region = self.config.region or (arn.split(":")[3] if arn.startswith("arn:aws:") else None)
        if region is None:
            return None
        cluster, service = (name.rsplit("/", 1)[-1] for name in (self.config.cluster, self.config.service))
        return (
            f"https://{region}.console.aws.amazon.com/ecs/v2/clusters/{cluster}/services/{service}"
            f"/health?region={region}"
        )

    # --- steps: decisions and calls, without I/O ---------------------------------------------------------------------

    def _service(self) -> Steps[Json]:
        """https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DescribeServices.html"""
        place = f"service {self.config.service!r} in cluster {self.config.cluster!r}"
        answer = yield "describe_services", {"cluster": self.config.cluster, "services": [self.config.service]}
        if not answer["services"]:
            words = ", ".join(str(failure.get("reason")) for failure in answer.get("failures", []))
            raise self.error(f"ECS DescribeServices: no {place} ({words or 'no answer for it'}); {_DOCS}")
        service: Json = answer["services"][0]
        if service.get("status") != "ACTIVE":
            raise self.error(f"ECS DescribeServices: {place} is {service.get('status')}; {_DOCS}")
        controller = service.get("deploymentController", {}).get("type", "ECS")
        if controller != "ECS" or not service.get("deployments"):
            raise self.error(f"ECS: {place} is deployed by {controller}; give it the deployment controller ECS")
        return service

    def _definition(self, arn: str) -> Steps[tuple[Json, dict[str, str]]]:
        """https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DescribeTaskDefinition.html"""
        answer = yield "describe_task_definition", {"taskDefinition": arn, "include": ["TAGS"]}
        return answer["taskDefinition"], {tag["key"]: tag.get("value", "") for tag in answer.get("tags", [])}

    def _snapshot(self, previous: Release | None) -> Steps[Snapshot]:
        service = yield from self._service()
        primary = serving = primary_of(service)
        state = state_of(service)
        failing = state == "FAILED" or primary.get("failedTasks", 0) > 0
        if state == "IN_PROGRESS" and not failing:
            raise self.error(
                f"ECS: deployment {primary['id']} of {primary['taskDefinition']} is still in progress; "
                "a snapshot of a half-deployed service is none: waiting for it",
                retryable=True,
                retry_after=AGAIN,
            )
        if state != "COMPLETED" and failing:
            serving = max(service["deployments"], key=lambda deployment: int(deployment.get("runningCount", 0)))
        definition, tags = yield from self._definition(serving["taskDefinition"])
        steady = service["desiredCount"] > 0 and state == "COMPLETED"
        exists = serving.get("runningCount", 0) > 0 or steady or RELEASE_TAG in tags
        container = container_for(definition, self.config.container, previous.image if previous else None)
        return Snapshot(
            exists=exists,
            revision=serving["taskDefinition"] if exists else None,
            image=container["image"] if exists and container else None,
            data={
                "taskDefinition": serving["taskDefinition"],
                "primary": primary["taskDefinition"],
                "deployment": primary["id"],
                "rolloutState": state,
                "desiredCount": service["desiredCount"],
                "deploymentConfiguration": service.get("deploymentConfiguration", {}),
                "loadBalancers": service.get("loadBalancers", []),
            },
        )

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        service = yield from self._service()
        primary = primary_of(service)
        definition, tags = yield from self._definition(primary["taskDefinition"])
        if tags.get(RELEASE_TAG) == release.release_id:
            return started(primary, snapshot)
        # An earlier attempt whose answer was lost, and which ECS has already given up: its failure is the answer.
        undisturbed = primary["taskDefinition"] == snapshot.data["primary"]
        for deployment in service["deployments"]:
            if undisturbed and deployment is not primary and deployment.get("rolloutState") == "FAILED":
                _, theirs = yield from self._definition(deployment["taskDefinition"])
                if theirs.get(RELEASE_TAG) == release.release_id:
                    return started(deployment, snapshot)
        container = self._chosen(definition, release)
        unchanged = container["image"] == release.image
        if unchanged and "@sha256:" in release.image and not release.force:
            live = Handle(action="deploy", revision=primary["taskDefinition"], changed=False, data={})
            seen = judge(live, service, [], None, self.config.failed_tasks)
            if seen.state is State.HEALTHY and seen.verified:
                return live
        if not undisturbed and not release.force:
            raise self._drift(primary["taskDefinition"], str(snapshot.data["primary"]))
        images = {container["name"]: release.image}
        marks = {RELEASE_TAG: release.release_id, VERSION_TAG: release.version}
        arn = yield from self._registered(copy_of(definition, images, {**tags, **marks}), definition["revision"])
        change: Json = {"taskDefinition": arn, "forceNewDeployment": unchanged}
        if not snapshot.exists and self.config.desired_count and service["desiredCount"] == 0:
            change["desiredCount"] = self.config.desired_count
        service = yield from self._update(change)
        mine = next((d for d in service["deployments"] if d["taskDefinition"] == arn), {"taskDefinition": arn})
        return started(mine, snapshot)

    def _update(self, change: Json) -> Steps[Json]:
        """https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_UpdateService.html"""
        place = {"cluster": self.config.cluster, "service": self.config.service}
        answer = yield "update_service", {**place, **change}
        service: Json = answer["service"]
        return service

    def _chosen(self, definition: Json, release: Release) -> Json:
        container = container_for(definition, self.config.container, release.image)
        if container is None:
            names = ", ".join(c["name"] for c in definition["containerDefinitions"])
            wanted = f"no container {self.config.container!r}" if self.config.container else "no single container"
            raise self.error(
                f"ECS: task definition {definition['taskDefinitionArn']} has {wanted} for {release.image}; "
                f"it has {names}: name one in the target's 'container'"
            )
        return container

    def _registered(self, wanted: Json, after: int) -> Steps[str]:
        """ARN of this revision: the one that an earlier attempt registered, or a new one.

        https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_RegisterTaskDefinition.html

        :param after: the revision that it is a copy of; ours is younger, and usually nothing is.
        """
        family, images = wanted["family"], images_of(wanted)
        mark = next(tag["value"] for tag in wanted["tags"] if tag["key"] == RELEASE_TAG)
        listed = yield "list_task_definitions", {"familyPrefix": family, "status": "ACTIVE", "sort": "DESC"}
        for arn in listed["taskDefinitionArns"]:
            name, _, revision = arn.rsplit("/", 1)[-1].rpartition(":")
            if name == family and int(revision) > after:
                known, tags = yield from self._definition(arn)
                if tags.get(RELEASE_TAG) == mark and images_of(known) == images:
                    return str(arn)
        answer = yield "register_task_definition", wanted
        return str(answer["taskDefinition"]["taskDefinitionArn"])

    def _look(self, handle: Handle) -> Steps[Observation]:
        if handle.data.get("left"):
            return Observation(state=State.HEALTHY, reason=str(handle.data["left"]), verified=False)
        service = yield from self._service()
        stop: Json | None = None
        if handle.data.get("serviceDeployment") and primary_of(service)["taskDefinition"] == handle.data.get("from"):
            arns = [handle.data["serviceDeployment"]]
            answer = yield "describe_service_deployments", {"serviceDeploymentArns": arns}
            stop = next(iter(answer["serviceDeployments"]), None)
        seen = judge(handle, service, [], stop, self.config.failed_tasks)
        mine = deployment_of(service, wanted_by(handle))
        if seen.state is State.FAILED or (mine and mine.get("failedTasks", 0) > 0 and not seen.ended):
            tasks = yield from self._stopped(wanted_by(handle))
            seen = judge(handle, service, tasks, stop, self.config.failed_tasks)
        return seen

    def _stopped(self, arn: str) -> Steps[list[Json]]:
        """Tasks of this revision that stopped, the latest first (ECS tells of the last hour).

        https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DescribeTasks.html
        """
        place = {"cluster": self.config.cluster}
        listed = yield "list_tasks", {**place, "serviceName": self.config.service, "desiredStatus": "STOPPED"}
        if not listed["taskArns"]:
            return []
        answer = yield "describe_tasks", {**place, "tasks": listed["taskArns"][:100]}
        mine = [task for task in answer["tasks"] if task.get("taskDefinitionArn") == arn]
        return sorted(mine, key=lambda task: str(task.get("stoppedAt", "")), reverse=True)

    def _rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Steps[Handle]:
        service = yield from self._service()
        primary = primary_of(service)
        target, live = str(snapshot.data["taskDefinition"]), primary["taskDefinition"]
        data: Json = {"taskDefinition": target, "from": live, "removed": not snapshot.exists}
        back = Handle(action="rollback", revision=snapshot.revision, changed=False, data=data)
        raised = not snapshot.exists and service["desiredCount"] == self.config.desired_count
        # A way back that itself failed is started anew; what had failed before we came is left as it was.
        broken = primary.get("rolloutState") == "FAILED" and snapshot.data["rolloutState"] != "FAILED"
        if live == target and not raised and not broken:
            return back
        if live != target:
            _, tags = yield from self._definition(live)
            mark = tags.get(RELEASE_TAG)
            if mark == _back(release) and not broken:
                return back.model_copy(update={"revision": live, "data": {**data, "taskDefinition": live}})
            if live == snapshot.data["primary"] and mark != release.release_id:
                return back.model_copy(update={"data": {"left": f"nothing was written; {live} had failed before"}})
            if mark not in (release.release_id, _back(release)):
                raise self._drift(live, target)
        if snapshot.exists and live != target and state_of(service) == "IN_PROGRESS":
            stopped = yield from self._stop(live, target)
            if stopped:
                return back.model_copy(update={"changed": True, "data": {**data, "serviceDeployment": stopped}})
        revision = yield from self._usable(release, target)
        change: Json = {"taskDefinition": revision, "forceNewDeployment": broken and live == revision}
        if not snapshot.exists:
            change["desiredCount"] = snapshot.data["desiredCount"]
        yield from self._update(change)
        way = {"revision": revision if snapshot.exists else None, "data": {**data, "taskDefinition": revision}}
        return back.model_copy(update={**way, "changed": True})

    def _usable(self, release: Release, target: str) -> Steps[str]:
        """The target, or a copy of it when somebody deregistered it meanwhile: a service cannot go back to that."""
        definition, tags = yield from self._definition(target)
        if definition.get("status", "ACTIVE") == "ACTIVE":
            return target
        copy = copy_of(definition, {}, {**tags, RELEASE_TAG: _back(release)})
        return (yield from self._registered(copy, definition["revision"]))

    def _stop(self, live: str, target: str) -> Steps[str | None]:
        """ARN of the service deployment that ECS now turns round, or None when it knows of none from target to live.

        https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_StopServiceDeployment.html
        """
        place = {"cluster": self.config.cluster, "service": self.config.service}
        try:
            listed = yield "list_service_deployments", {**place, "status": [*UNDER_WAY, *GOING_BACK]}
            arns = [brief["serviceDeploymentArn"] for brief in listed["serviceDeployments"]]
            if len(arns) != 1:
                return None
            answer = yield "describe_service_deployments", {"serviceDeploymentArns": arns}
            found = answer["serviceDeployments"][0]
            sources = [source["arn"] for source in found.get("sourceServiceRevisions", [])]
            if len(sources) != 1:
                return None
            wanted = {sources[0]: target, found["targetServiceRevision"]["arn"]: live}
            answer = yield "describe_service_revisions", {"serviceRevisionArns": list(wanted)}
            known = {r["serviceRevisionArn"]: r.get("taskDefinition") for r in answer["serviceRevisions"]}
            if known != wanted:
                return None
            if found.get("status") not in GOING_BACK:
                yield "stop_service_deployment", {"serviceDeploymentArn": arns[0], "stopType": "ROLLBACK"}
            return str(arns[0])
        except PlatformError as error:
            # No permission for it, no such API in this partition, or it ended meanwhile: UpdateService does it as well,
            # and says why when it cannot.
            if error.retryable:
                raise
            return None

    def _drift(self, live: str, expected: str) -> Drift:
        return Drift(
            f"ECS: service {self.config.service!r} in cluster {self.config.cluster!r} runs {live}, not {expected} and "
            "not this release: somebody else deployed; nothing was written. Check it, then release again",
            target=self.name,
        )


def _back(release: Release) -> str:
    return f"{release.release_id}-back"
