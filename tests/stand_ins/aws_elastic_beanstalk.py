"""Stand-in for AWS Elastic Beanstalk: environments whose updates take time and can fail.

Held to botocore's model of the API. What is ours, because a model says nothing about behaviour:

- an update shows the new label and health Grey at once, is ``Updating`` for the scripted time, refuses every other, and
  can be aborted; the old version serves until it is done;
- an update that fails tells so in its events, and leaves the environment ``Ready`` and Green with the old version;
  where the stand-in is ``sticky``, Red with the new one, as after an all-at-once deployment;
- an environment without version runs the sample application.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_multideploy.sandbox.world import Course, Live, World
from tests.stand_ins.aws_wire import ACCOUNT, REGION, AwsError, AwsStandIn, Json

KIND, APPLICATION = "aws_elastic_beanstalk", "shop"


@dataclass
class Update:
    """One change of an environment."""

    began: float
    course: Course
    label: str
    aborted: bool = False
    told: bool = False


@dataclass
class Environment:
    """One environment."""

    name: str
    label: str | None
    made: float
    status: str = "Ready"
    health: str = "Green"
    shown: str | None = None
    update: Update | None = None
    updates: list[str] = field(default_factory=list)
    events: list[Json] = field(default_factory=list)


class AwsElasticBeanstalkStandIn(AwsStandIn):
    """Elastic Beanstalk on loopback."""

    kind = KIND
    services = ("elasticbeanstalk",)
    unauthorized = ("InvalidClientTokenId", "SignatureDoesNotMatch")
    statuses = {"InvalidClientTokenId": 403, "SignatureDoesNotMatch": 403}
    injected = {400: "ValidationError", 429: "Throttling"}

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        super().__init__(world, port=port, secret=secret)
        self.sticky = False
        self.at_rest = "Green"
        """Health after an update that ended well."""
        self.versions: dict[str, Json] = {}
        self._known: dict[str, Environment] = {}
        self.operations = {
            "DescribeEnvironments": self._describe_environments,
            "DescribeApplicationVersions": self._describe_application_versions,
            "CreateApplicationVersion": self._create_application_version,
            "UpdateEnvironment": self._update_environment,
            "AbortEnvironmentUpdate": self._abort_environment_update,
            "DescribeEvents": self._describe_events,
        }

    def target(self, resource: str) -> Json:
        """The catalog entry of a target on this environment, without ``conn_id``."""
        package = f"s3://releases/{resource}-${{version}}.zip"
        return {"platform": KIND, "application": APPLICATION, "environment": resource, "package": package}

    def seed(self, resource: str, image: str | None) -> None:
        """The environment with this version; None: with the sample application."""
        with self._lock:
            label = None if image is None else self._made("infrastructure-1", image)
            self._known[resource] = Environment(resource, label, self.world.now(), shown=label)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else deploys this image's bundle, and waits."""
        with self._lock:
            found = self._known[resource]
            found.label = found.shown = self._made(f"by-hand-{len(self.versions)}", image)
            found.status, found.health, found.update = "Ready", "Green", None

    def live(self, resource: str) -> Live:
        """What it serves, read from the state."""
        with self._lock:
            found = self._known[resource]
            self._advance(found)
            image = None
            if found.label is not None:
                name, _, version = self.versions[found.label]["SourceBundle"]["S3Key"][:-4].rpartition("-")
                image = f"registry.example.com/{name}:{version}"
            return Live(image=image, revision=found.label, settled=found.status == "Ready")

    def revisions(self, resource: str) -> list[str]:
        """Labels to which API calls updated it, oldest first."""
        return self._known[resource].updates

    def _made(self, label: str, image: str) -> str:
        name, _, version = image.rpartition("/")[2].partition(":")
        self.versions[label] = self._document(label, {"S3Bucket": "releases", "S3Key": f"{name}-{version}.zip"}, "")
        return label

    def _document(self, label: str, source: Json, description: str) -> Json:
        return {
            "ApplicationVersionArn": f"arn:aws:elasticbeanstalk:{REGION}:{ACCOUNT}:applicationversion/shop/{label}",
            "ApplicationName": APPLICATION,
            "VersionLabel": label,
            "Description": description,
            "SourceBundle": source,
            "DateCreated": _moment(self.world.now()),
            "Status": "Unprocessed",
        }

    # --- state -------------------------------------------------------------------------------------------------------

    def _environment(self, name: str) -> Environment:
        if name not in self._known:
            raise AwsError("InvalidParameterValue", f"No Environment found for EnvironmentName = '{name}'.")
        self._advance(self._known[name])
        return self._known[name]

    def _advance(self, found: Environment) -> None:
        update = found.update
        if update is None:
            return
        elapsed = self.world.now() - update.began
        if update.aborted:
            if elapsed >= self.world.seconds / 2:
                found.status, found.shown, found.health, found.update = "Ready", found.label, "Green", None
            return
        if update.course.failed(elapsed) and not update.told:
            update.told, found.health = True, "Red"
            for words in (
                update.course.reason,
                "Unsuccessful command execution on instance id(s) 'i-0a'. Aborting the operation.",
            ):
                self._tell(found, words, "ERROR")
        if not update.course.done(elapsed) or (update.told and elapsed < 2 * update.course.seconds):
            return
        found.status, found.update = "Ready", None
        if update.told:
            self._tell(found, "Failed to deploy application.", "ERROR")
            found.label = update.label if self.sticky else found.label
            found.shown, found.health = found.label, "Red" if self.sticky else "Green"
        else:
            self._tell(found, "Environment update completed successfully.", "INFO")
            found.label, found.health = update.label, self.at_rest

    def _tell(self, found: Environment, words: str, severity: str) -> None:
        event = {"EventDate": _moment(self.world.now()), "Message": words, "Severity": severity}
        found.events.insert(0, {**event, "ApplicationName": APPLICATION, "EnvironmentName": found.name})

    # --- operations --------------------------------------------------------------------------------------------------

    def _describe_environments(self, params: Json) -> Json:
        wanted = params.get("EnvironmentNames", [])
        for found in self._known.values():
            self._advance(found)
        known = [f for f in self._known.values() if f.name in wanted and params["ApplicationName"] == APPLICATION]
        return {"Environments": [self._shown(found) for found in known]}

    def _shown(self, found: Environment) -> Json:
        document: Any = {
            "EnvironmentName": found.name,
            "EnvironmentId": f"e-{found.name}",
            "ApplicationName": APPLICATION,
            "CNAME": f"{found.name}.{REGION}.elasticbeanstalk.com",
            "DateCreated": _moment(found.made),
            "DateUpdated": _moment(self.world.now()),
            "Status": found.status,
            "AbortableOperationInProgress": found.status == "Updating",
            "Health": found.health,
            "Tier": {"Name": "WebServer", "Type": "Standard", "Version": "1.0"},
        }
        return {**document, "VersionLabel": found.shown} if found.shown else document

    def _describe_application_versions(self, params: Json) -> Json:
        return {"ApplicationVersions": [self.versions[v] for v in params["VersionLabels"] if v in self.versions]}

    def _create_application_version(self, params: Json) -> Json:
        label = params["VersionLabel"]
        if label in self.versions:
            raise AwsError("InvalidParameterValue", f"Application Version {label} already exists.")
        self.versions[label] = self._document(label, params["SourceBundle"], params.get("Description", ""))
        return {"ApplicationVersion": self.versions[label]}

    def _update_environment(self, params: Json) -> Json:
        found, label = self._environment(params["EnvironmentName"]), params["VersionLabel"]
        if found.status != "Ready":
            words = f"Environment named {found.name} is in an invalid state for this operation. Must be Ready."
            raise AwsError("InvalidParameterValue", words)
        if label not in self.versions:
            raise AwsError("InvalidParameterValue", f"No Application Version named '{label}' found.")
        found.update = Update(self.world.now(), self.world.course(KIND, found.name), label)
        found.status, found.health, found.shown = "Updating", "Grey", label
        found.updates.append(label)
        self._tell(found, "Environment update is starting.", "INFO")
        return self._shown(found)

    def _abort_environment_update(self, params: Json) -> Json:
        found = self._environment(params["EnvironmentName"])
        if found.update is None or found.update.aborted:
            raise AwsError("InvalidParameterValue", "Environment is in an invalid state for this operation.")
        found.update.aborted, found.update.began, found.status = True, self.world.now(), "Aborting"
        return {}

    def _describe_events(self, params: Json) -> Json:
        found, since = self._environment(params["EnvironmentName"]), params.get("StartTime")
        least = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL").index(params.get("Severity", "TRACE"))
        told = [e for e in found.events if ("INFO", "ERROR").index(e["Severity"]) * 2 + 2 >= least]
        if since is not None:
            told = [e for e in told if e["EventDate"] >= since.replace(tzinfo=UTC)]
        return {"Events": told[: params.get("MaxRecords", 1000)]}


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
