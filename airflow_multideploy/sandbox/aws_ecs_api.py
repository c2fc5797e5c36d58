"""The operations of the ECS stand-in that moto does not have, or not like this: parameters in, documents out."""

from __future__ import annotations

import json
from collections.abc import Callable

from airflow_multideploy.sandbox.aws_ecs_rollouts import Deployment, Json, Service
from airflow_multideploy.sandbox.world import World

REGION, CLUSTER = "eu-central-1", "sandbox"


class ApiError(Exception):
    """An error of the ECS API, in its wire form."""

    def __init__(self, code: str, message: str) -> None:
        self.body = json.dumps({"__type": code, "message": message}).encode()
        super().__init__(f"{code}: {message}")


class EcsApi:
    """One account's services.

    :param ask_moto: makes the same call to moto and returns its document.
    """

    def __init__(self, account: str, world: World, ask_moto: Callable[[str, Json], Json]) -> None:
        self.account, self.world, self.ask_moto = account, world, ask_moto
        self.services: dict[str, Service] = {}
        self.operations: dict[str, Callable[[Json], Json]] = {
            "DescribeServices": self.describe_services,
            "UpdateService": self.update_service,
            "ListTasks": self.list_tasks,
            "DescribeTasks": self.describe_tasks,
            "ListServiceDeployments": self.list_service_deployments,
            "DescribeServiceDeployments": self.describe_service_deployments,
            "DescribeServiceRevisions": self.describe_service_revisions,
            "StopServiceDeployment": self.stop_service_deployment,
        }

    def describe_services(self, params: Json) -> Json:
        answer = self.ask_moto("DescribeServices", params)
        answer["services"] = [self._overlay(document) for document in answer["services"]]
        return answer

    def update_service(self, params: Json) -> Json:
        service = self._service(params)
        service.advance()
        if "deploymentConfiguration" in params:
            service.breaker = params["deploymentConfiguration"].get("deploymentCircuitBreaker", service.breaker)
        definition = service.primary.definition
        if "taskDefinition" in params:
            known = self.ask_moto("DescribeTaskDefinition", {"taskDefinition": params["taskDefinition"]})
            definition = known["taskDefinition"]["taskDefinitionArn"]
            if known["taskDefinition"]["status"] != "ACTIVE":
                raise ApiError("ClientException", "TaskDefinition is inactive")
        if params.get("desiredCount") is not None:
            service.scale(params["desiredCount"])
        if definition != service.primary.definition or params.get("forceNewDeployment"):
            service.start(definition)
        described = self.describe_services({"cluster": params.get("cluster", "default"), "services": [service.name]})
        return {"service": described["services"][0]}

    def list_tasks(self, params: Json) -> Json:
        tasks = self._tasks(params, params.get("desiredStatus", "RUNNING"))
        return {"taskArns": [task["taskArn"] for task in tasks]}

    def describe_tasks(self, params: Json) -> Json:
        known = {}
        for status in ("RUNNING", "STOPPED"):
            known.update({task["taskArn"]: task for task in self._tasks({"cluster": params.get("cluster")}, status)})
        missing = [{"arn": arn, "reason": "MISSING"} for arn in params["tasks"] if arn not in known]
        return {"tasks": [known[arn] for arn in params["tasks"] if arn in known], "failures": missing}

    def list_service_deployments(self, params: Json) -> Json:
        service = self._service(params)
        service.advance()
        wanted = params.get("status") or []
        found = [d for d in reversed(service.history) if not wanted or d.status in wanted]
        brief = (
            "serviceDeploymentArn",
            "serviceArn",
            "clusterArn",
            "startedAt",
            "createdAt",
            "finishedAt",
            "status",
            "statusReason",
        )
        documents = []
        for deployment in found:
            full = self._service_deployment(service, deployment)
            short = {name: full[name] for name in brief if name in full}
            documents.append({**short, "targetServiceRevisionArn": full["targetServiceRevision"]["arn"]})
        return {"serviceDeployments": documents}

    def describe_service_deployments(self, params: Json) -> Json:
        documents, failures = [], []
        for arn in params["serviceDeploymentArns"]:
            try:
                documents.append(self._service_deployment(*self._find(arn)))
            except ApiError:
                failures.append({"arn": arn, "reason": "MISSING"})
        return {"serviceDeployments": documents, "failures": failures}

    def describe_service_revisions(self, params: Json) -> Json:
        documents = []
        for arn in params["serviceRevisionArns"]:
            service, deployment = self._find(arn)
            documents.append(
                {
                    "serviceRevisionArn": arn,
                    "serviceArn": self._arn("service", service),
                    "clusterArn": self._arn("cluster"),
                    "taskDefinition": deployment.definition,
                    "createdAt": deployment.started,
                }
            )
        return {"serviceRevisions": documents, "failures": []}

    def stop_service_deployment(self, params: Json) -> Json:
        arn = params.get("serviceDeploymentArn", "")
        if params.get("stopType", "ROLLBACK") != "ROLLBACK":
            raise ApiError("InvalidParameterException", "stopType: the only supported value is ROLLBACK")
        service, deployment = self._find(arn)
        try:
            service.stop(deployment.number)
        except ValueError as error:
            raise ApiError("ConflictException", f"Cannot stop {arn}: {error}") from None
        return {"serviceDeploymentArn": arn}

    # --- documents ---------------------------------------------------------------------------------------------------

    def _service(self, params: Json) -> Service:
        described = self.ask_moto(
            "DescribeServices", {"cluster": params.get("cluster", "default"), "services": [params.get("service", "")]}
        )
        if not described["services"]:
            raise ApiError("ServiceNotFoundException", "Service not found.")
        return self._state(described["services"][0])

    def _state(self, document: Json) -> Service:
        """The rollouts of one of moto's services; one that CreateService has just made runs at once."""
        name = str(document["serviceName"])
        if name not in self.services:
            self.services[name] = Service(name, self.world, document["desiredCount"])
            self.services[name].settle(document["taskDefinition"])
        return self.services[name]

    def _find(self, arn: str) -> tuple[Service, Deployment]:
        name, _, key = arn.rpartition("/")
        service = self.services.get(name.rpartition("/")[2])
        for deployment in service.history if service else ():
            if service and deployment.key == key:
                service.advance()
                return service, deployment
        raise ApiError("ServiceDeploymentNotFoundException", f"{arn} does not exist")

    def _arn(self, what: str, service: Service | None = None, key: str = "") -> str:
        path = "/".join(part for part in (CLUSTER, service.name if service else "", key) if part)
        return f"arn:aws:ecs:{REGION}:{self.account}:{what}/{path}"

    def _overlay(self, document: Json) -> Json:
        """moto's static document of a service with what its tasks do now."""
        service = self._state(document)
        service.advance()
        count = {"desiredCount": service.desired, "runningCount": sum(d.running for d in service.deployments)}
        return {
            **document,
            **count,
            "pendingCount": sum(d.pending for d in service.deployments),
            "taskDefinition": service.primary.definition,
            "deploymentConfiguration": {
                "deploymentCircuitBreaker": service.breaker,
                "maximumPercent": 200,
                "minimumHealthyPercent": 100,
            },
            "deployments": [_deployment(d, d is service.primary) for d in service.deployments],
            "events": [
                {"id": f"{service.name}-{at:.6f}", "createdAt": at, "message": message}
                for at, message in service.events
            ],
        }

    def _service_deployment(self, service: Service, deployment: Deployment) -> Json:
        service.advance()

        def revision(of: Deployment) -> Json:
            counts = {"requestedTaskCount": of.desired, "runningTaskCount": of.running, "pendingTaskCount": of.pending}
            return {"arn": self._arn("service-revision", service, of.key), **counts}

        document: Json = {
            "serviceDeploymentArn": self._arn("service-deployment", service, deployment.key),
            "serviceArn": self._arn("service", service),
            "clusterArn": self._arn("cluster"),
            "createdAt": deployment.started,
            "startedAt": deployment.started,
            "updatedAt": deployment.updated,
            "sourceServiceRevisions": [revision(source) for source in deployment.sources],
            "targetServiceRevision": revision(deployment),
            "status": deployment.status,
            "statusReason": deployment.status_reason,
        }
        return document if deployment.finished is None else {**document, "finishedAt": deployment.finished}

    def _tasks(self, params: Json, status: str) -> list[Json]:
        documents = []
        for service in self.services.values():
            if params.get("serviceName") in (None, service.name, self._arn("service", service)):
                service.advance()
                for deployment in service.history:
                    if status == "STOPPED":
                        documents += [self._task(service, deployment, t["id"], t) for t in deployment.stopped]
                    elif deployment in service.deployments:
                        names = [f"{deployment.key}{n:013d}" for n in range(deployment.running)]
                        documents += [self._task(service, deployment, name, None) for name in names]
        return documents

    def _task(self, service: Service, deployment: Deployment, name: str, stopped: Json | None) -> Json:
        status = "STOPPED" if stopped else "RUNNING"
        container: Json = {"name": "app", "lastStatus": status}
        document: Json = {
            "taskArn": self._arn("task", None, name),
            "clusterArn": self._arn("cluster"),
            "taskDefinitionArn": deployment.definition,
            "startedBy": deployment.id,
            "group": f"service:{service.name}",
            "desiredStatus": status,
            "lastStatus": status,
            "launchType": "FARGATE",
            "createdAt": deployment.started,
            "containers": [container],
        }
        if stopped:
            container.update({"exitCode": 1, "reason": stopped["reason"]})
            reason = "Essential container in task exited"
            document.update(stoppedReason=reason, stopCode="EssentialContainerExited", stoppedAt=stopped["at"])
        return document


def _deployment(deployment: Deployment, primary: bool) -> Json:
    return {
        "id": deployment.id,
        "status": "PRIMARY" if primary else "ACTIVE",
        "taskDefinition": deployment.definition,
        "desiredCount": deployment.desired,
        "pendingCount": deployment.pending,
        "runningCount": deployment.running,
        "failedTasks": deployment.failed,
        "createdAt": deployment.started if deployment.rollback_of is None else deployment.updated,
        "updatedAt": deployment.updated,
        "launchType": "FARGATE",
        "rolloutState": deployment.state,
        "rolloutStateReason": deployment.reason,
    }
