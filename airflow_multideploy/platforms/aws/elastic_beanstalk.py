"""AWS Elastic Beanstalk environments: config, adapter and operator.

A release is an application version, labelled with the release id, whose source bundle somebody uploaded before, and one
``UpdateEnvironment`` to it. The environment itself is made by the infrastructure's own tool.

Beanstalk has no concurrency token, but takes one change of an environment at a time. A change that fails leaves the
environment ``Ready``, often with the old version and in good health: only the label and the events tell.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.aws import code_of
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.artifact import Located, located
from airflow_multideploy.platforms.aws.calls import AwsConfig, AwsPlatform, Json, Steps
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State

PATIENCE = 4.0
"""Seconds that one call waits for another change of the environment to end."""
AGAIN = 30.0
"""Seconds until the next call, when it did not."""
_DOCS = "create the environment once with your infrastructure tool; releases go into an existing one"
_GIVEN_UP = ("Failed to deploy application", "Aborting the operation")
"""Words of events after which an update still under way does not get there any more."""


def _own(package: str) -> str:
    if not re.search(r"\$\{?(version|release_id|digest)\b", package):
        raise ValueError("is the same bundle for each release; put ${version} into it")
    return package


class AwsElasticBeanstalkConfig(AwsConfig):
    """One Elastic Beanstalk environment.

    :param application: name of the application.
    :param environment: name of the environment.
    :param package: where the source bundle of a release lies, such as ``s3://releases/shop-${version}.zip``, in the
        environment's region.
    """

    platform: Literal["aws_elastic_beanstalk"] = "aws_elastic_beanstalk"
    application: Annotated[str, Field(min_length=1)]
    environment: Annotated[str, Field(min_length=1)]
    package: Annotated[Located, Field(pattern=r"^s3://[^/]+/.+"), AfterValidator(_own)]


class AwsElasticBeanstalk(AwsPlatform[AwsElasticBeanstalkConfig]):
    """Releases a source bundle into an Elastic Beanstalk environment, and back.

    A release is healthy when the environment is ``Ready``, runs the release's label, and its health is Green. An update
    under way is aborted by a rollback; Beanstalk then goes back by itself.

    An environment that runs Beanstalk's sample application counts as never deployed. Nothing leads back to that: a
    first-ever release that was completed is left in place, and said to be.
    """

    kind: ClassVar[str] = "aws_elastic_beanstalk"
    client_type: ClassVar[str] = "elasticbeanstalk"
    answers: ClassVar[Mapping[str, str]] = {
        "describe_environments": "Environments",
        "describe_application_versions": "ApplicationVersions",
        "create_application_version": "ApplicationVersion",
        "update_environment": "EnvironmentId",
        "abort_environment_update": "ResponseMetadata",
        "describe_events": "Events",
    }
    config_type: ClassVar[type[TargetConfig]] = AwsElasticBeanstalkConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="label of the version that runs, the environment's health and CNAME",
        early_failure="an error event that ends the deployment, or another label after it; with the error events",
        restores="the application version; not the sample application that a new environment runs",
        tested_against="a simulator held to botocore's service model",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="aws",
        connection="Type `aws`: access key and secret, or a role to assume (`role_arn` in extra), and `region_name`.",
        protocol="""
1. `DescribeEnvironments`: the label that runs. Changed by somebody else since the snapshot: refused.
2. `CreateApplicationVersion` with the release id as label, unless it is there already.
3. `UpdateEnvironment` to that label.
4. Healthy when the environment is `Ready` with this label and health `Green` (on the way back: no worse than before).
   `DescribeEvents` tells of errors.

Back: `AbortEnvironmentUpdate` while the update is under way, else `UpdateEnvironment` to the snapshot's label.""",
        permissions="""
```json
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Action": [
        "elasticbeanstalk:DescribeEnvironments", "elasticbeanstalk:DescribeApplicationVersions",
        "elasticbeanstalk:DescribeEvents", "elasticbeanstalk:CreateApplicationVersion",
        "elasticbeanstalk:UpdateEnvironment", "elasticbeanstalk:AbortEnvironmentUpdate"
      ],
      "Resource": [
        "arn:aws:elasticbeanstalk:REGION:ACCOUNT:application/APPLICATION",
        "arn:aws:elasticbeanstalk:REGION:ACCOUNT:applicationversion/APPLICATION/*",
        "arn:aws:elasticbeanstalk:REGION:ACCOUNT:environment/APPLICATION/ENVIRONMENT"
      ]
    },
    {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::BUCKET/*"}
  ]
}
```

Beanstalk works with the caller's own rights: add those of the managed policy `AdministratorAccess-AWSElasticBeanstalk`
that the environment's resources need (Auto Scaling, EC2, CloudFormation, S3).""",
        not_undone="The application version stays in the application's list. What `.ebextensions` and hooks of the "
        "bundle did to instances that were not replaced.",
        example="app: {platform: aws_elastic_beanstalk, conn_id: aws_prod, application: shop, environment: shop-prod, "
        'package: "s3://releases/shop-${version}.zip"}',
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
        return self._run(self._rollback(release, snapshot))

    def console_url(self, handle: Handle | None = None) -> str | None:
        region, place = self.config.region, f"{self.config.application}&environmentName={self.config.environment}"
        if region is None:
            return None
        home = f"https://{region}.console.aws.amazon.com/elasticbeanstalk/home?region={region}"
        return f"{home}#/environment/dashboard?applicationName={place}"

    # --- steps: decisions and calls, without I/O ---------------------------------------------------------------------

    @property
    def _place(self) -> Json:
        return {"ApplicationName": self.config.application, "EnvironmentName": self.config.environment}

    def _environment(self) -> Steps[Json]:
        """https://docs.aws.amazon.com/elasticbeanstalk/latest/api/API_DescribeEnvironments.html"""
        asked = {"ApplicationName": self.config.application, "EnvironmentNames": [self.config.environment]}
        answer = yield "describe_environments", {**asked, "IncludeDeleted": False}
        for found in answer["Environments"]:
            if found["Status"] not in ("Terminating", "Terminated"):
                return dict(found)
        name = f"{self.config.application}/{self.config.environment}"
        raise self.error(f"Beanstalk DescribeEnvironments: no environment {name}; {_DOCS}")

    def _ready(self, found: Json) -> Steps[Json]:
        """The environment once no change of it is under way."""
        until = time.monotonic() + PATIENCE
        while found["Status"] != "Ready":
            if time.monotonic() > until:
                words = f"Beanstalk: the environment is {found['Status']}, and takes no other change until that ends"
                raise self.error(f"{words}; waiting for it", retryable=True, retry_after=AGAIN)
            time.sleep(0.2)
            found = yield from self._environment()
        return found

    def _version(self, label: str) -> Steps[Json | None]:
        """https://docs.aws.amazon.com/elasticbeanstalk/latest/api/API_DescribeApplicationVersions.html"""
        asked = {"ApplicationName": self.config.application, "VersionLabels": [label]}
        answer = yield "describe_application_versions", asked
        return next(iter(answer["ApplicationVersions"]), None)

    def _snapshot(self) -> Steps[Snapshot]:
        found = yield from self._ready((yield from self._environment()))
        label = found.get("VersionLabel")
        data = {"label": label, "cname": found.get("CNAME"), "health": found.get("Health")}
        return Snapshot(exists=bool(label), revision=label, data=data)

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        found = yield from self._environment()
        label, live = release.release_id, found.get("VersionLabel")
        version = yield from self._version(label)
        under_way = found["Status"] != "Ready" and live == snapshot.data["label"]
        if version is not None and (live == label or under_way):
            return self._started(version, snapshot)
        if live != snapshot.data["label"] and not release.force:
            raise self._drift(found, snapshot)
        if found["Status"] != "Ready":
            yield from self._ready(found)
            raise self.error("Beanstalk: a change has just ended; looking again", retryable=True)
        bucket, _, key = located(self.config.package, release).removeprefix("s3://").partition("/")
        source = {"S3Bucket": bucket, "S3Key": key}
        if live and not release.force and found.get("Health") == "Green":
            served = yield from self._version(live)
            if served is not None and served.get("SourceBundle") == source:
                return Handle(action="deploy", revision=live, changed=False)
        if version is None:
            # https://docs.aws.amazon.com/elasticbeanstalk/latest/api/API_CreateApplicationVersion.html
            words = f"{release.service} {release.version}: {release.reason}".rstrip(": ")
            made = {"VersionLabel": label, "Description": words[:200], "SourceBundle": source}
            answer = yield "create_application_version", {"ApplicationName": self.config.application, **made}
            version = answer["ApplicationVersion"]
        yield from self._update(label)
        return self._started(version, snapshot)

    def _started(self, version: Json, snapshot: Snapshot) -> Handle:
        data = {"since": _text(version.get("DateCreated")), "from": snapshot.data["label"]}
        return Handle(action="deploy", revision=version["VersionLabel"], data=data)

    def _update(self, label: str) -> Steps[Json]:
        """https://docs.aws.amazon.com/elasticbeanstalk/latest/api/API_UpdateEnvironment.html"""
        return (yield from self._changing("update_environment", {**self._place, "VersionLabel": label}))

    def _changing(self, operation: str, parameters: Json) -> Steps[Json]:
        """A write, or a retryable error when a change of the environment came before it: look again, then decide."""
        try:
            return (yield operation, parameters)
        except PlatformError as error:
            if code_of(error) != "InvalidParameterValue" or "invalid state" not in str(error):
                raise
            raise self.error(f"{error}; looking again", retryable=True, retry_after=5) from error

    def _look(self, handle: Handle) -> Steps[Observation]:
        if left := handle.data.get("left"):
            return Observation(state=State.HEALTHY, reason=str(left), verified=False)
        found = yield from self._environment()
        good = found["Status"] == "Ready" and _well(handle, found)
        if good and found.get("VersionLabel") == handle.revision:
            return judge(handle, found, [])
        # https://docs.aws.amazon.com/elasticbeanstalk/latest/api/API_DescribeEvents.html
        since = handle.data.get("since")
        asked = {**self._place, "Severity": "ERROR", "MaxRecords": 20, **({"StartTime": since} if since else {})}
        answer = yield "describe_events", asked
        return judge(handle, found, answer["Events"] if since else [])

    def _rollback(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        found = yield from self._environment()
        label, live = snapshot.data["label"], found.get("VersionLabel")
        data: Json = {"from": release.release_id, "health": snapshot.data.get("health")}
        back = Handle(action="rollback", revision=snapshot.revision, changed=False, data=data)
        if live == label or found["Status"] == "Aborting":
            return back.model_copy(update={"changed": found["Status"] != "Ready"})
        if live != release.release_id:
            raise self._drift(found, snapshot)
        if found["Status"] != "Ready" and found.get("AbortableOperationInProgress"):
            # https://docs.aws.amazon.com/elasticbeanstalk/latest/api/API_AbortEnvironmentUpdate.html
            yield from self._changing("abort_environment_update", {"EnvironmentName": self.config.environment})
            return back.model_copy(update={"changed": True})
        if found["Status"] != "Ready":
            yield from self._ready(found)
            raise self.error("Beanstalk: a change has just ended; looking again", retryable=True)
        if label is None:
            words = (
                "first-ever release: left in place; Beanstalk has no way back to its sample application: terminate the "
                "environment if it has to go"
            )
            return back.model_copy(update={"data": {"left": words}})
        answer = yield from self._update(str(label))
        data = {**data, "since": _text(answer.get("DateUpdated"))}
        return back.model_copy(update={"changed": True, "data": data})

    def _drift(self, found: Json, snapshot: Snapshot) -> Drift:
        return Drift(
            f"Beanstalk: environment {self.config.environment!r} runs {found.get('VersionLabel')}, which is neither "
            f"{snapshot.data['label']} nor this release: somebody else deployed; nothing was written. Check it, then "
            "release again",
            target=self.name,
        )


def judge(handle: Handle, found: Json, events: Sequence[Json]) -> Observation:
    """How an action looks in these documents.

    :param events: of severity ERROR and above since the action began, the latest first.
    """
    live, status, health = found.get("VersionLabel"), found["Status"], found.get("Health")
    errors = "; ".join(dict.fromkeys(str(event.get("Message", "")) for event in events[:5]))
    words = f"{status}, health {health} ({found.get('HealthStatus', 'basic')}): {errors}".rstrip(": ")
    if status != "Ready":
        # A way back that fails can be gone again only when this one is over.
        over = handle.action == "deploy" and status != "Aborting" and any(sign in errors for sign in _GIVEN_UP)
        return Observation(state=State.FAILED if over else State.PROGRESSING, reason=words, revision=live)
    if live != handle.revision:
        if live == handle.data.get("from"):
            words = f"Beanstalk went back to {live}: {words}" if handle.action == "deploy" else f"still {live}: {words}"
            return Observation(state=State.FAILED, reason=words, revision=live)
        return Observation(state=State.SUPERSEDED, reason=f"{live} replaced {handle.revision}", revision=live)
    if _well(handle, found):
        words = "" if health == "Green" else f"{words}: no worse than before"
        return Observation(state=State.HEALTHY, reason=words, revision=live, progress=1.0)
    failed = health == "Red" and bool(errors)
    return Observation(state=State.FAILED if failed else State.PROGRESSING, reason=words, revision=live)


def _well(handle: Handle, found: Json) -> bool:
    """Whether the health is Green or, on the way back, at least as good as it was."""
    grades, before = ("Green", "Yellow", "Red"), handle.data.get("health")
    return found.get("Health") in grades[: grades.index(before) + 1 if before in grades else 1]


def _text(moment: object) -> str | None:
    return moment.isoformat() if isinstance(moment, datetime) else None
