"""AWS App Runner services that run an image: config, adapter and operator.

A release is one ``UpdateService`` with a copy of the live source configuration: the new image, and the release id in an
environment variable, by which a retry and a rollback know their own work. The service itself is made by the
infrastructure's own tool.

App Runner has no concurrency token, and an update under way can be neither stopped nor overtaken: what comes next
waits.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.aws import code_of
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.aws.calls import AwsConfig, AwsPlatform, Json, Steps
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State

MARK = "MULTIDEPLOY_RELEASE"
PATIENCE = 4.0
"""Seconds that one call waits for another operation of the service to end."""
AGAIN = 30.0
"""Seconds until the next call, when it did not; App Runner's operations take minutes."""
_BUSY, _UNDER_WAY = "OPERATION_IN_PROGRESS", ("PENDING", "IN_PROGRESS")
_DOCS = "create the service once with your infrastructure tool; releases go into an existing service"


class AwsAppRunnerConfig(AwsConfig):
    """One App Runner service that runs an image.

    :param service: name or ARN; with a name, the account's services are listed to find it.
    """

    platform: Literal["aws_app_runner"] = "aws_app_runner"
    service: Annotated[str, Field(min_length=1)]


class AwsAppRunner(AwsPlatform[AwsAppRunnerConfig]):
    """Releases an image into an App Runner service, and back.

    App Runner puts a service back by itself when its new image does not come up, and then says ``RUNNING``: only the
    operation that the release started tells that it failed. Why, it writes into the service's deployment log, from
    which the reason is taken where the Connection may read it.

    While an operation of the service is under way, no other can begin: a rollback in the middle of a rollout, and a
    release behind somebody's change, wait for its end (they fail with a retryable error until then). A rollout that
    fails takes App Runner up to twenty minutes to give up: raise the target's ``timeout`` and ``rollback_timeout``.

    A service whose creation failed counts as never deployed; rolling back the first-ever release into it pauses it. A
    paused service is refused, as nothing of a release could be seen running there.

    AWS no longer opens App Runner to new customers; existing services go on.
    """

    kind: ClassVar[str] = "aws_app_runner"
    client_type: ClassVar[str] = "apprunner"
    answers: ClassVar[Mapping[str, str]] = {
        "list_services": "ServiceSummaryList",
        "describe_service": "Service",
        "update_service": "OperationId",
        "pause_service": "Service",
        "list_operations": "OperationSummaryList",
        "logs:get_log_events": "events",
    }
    config_type: ClassVar[type[TargetConfig]] = AwsAppRunnerConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="image and release id of the service, and a fingerprint of the rest of its source configuration",
        early_failure="the release's own operation fails or is rolled back by App Runner; with its deployment log",
        restores="the image, and the release id in the environment; the service is paused when it had never run",
        tested_against="a simulator held to botocore's service model",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="aws",
        connection="Type `aws`: access key and secret, or a role to assume (`role_arn` in extra), and `region_name`.",
        protocol=f"""
1. `DescribeService`: the image that runs. Changed by somebody else since the snapshot: refused.
2. `UpdateService` with the same source configuration, the new image, and the release id in `{MARK}`.
3. `ListOperations` until the operation that this started has succeeded. `ROLLBACK_IN_PROGRESS` and the like: failed.
4. Healthy when the service is `RUNNING` and its image and release id are the release's.

Back: `UpdateService` with the live source configuration and the snapshot's image and release id, once no operation is
under way; nothing when App Runner went back by itself.""",
        permissions="""
```json
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Action": [
        "apprunner:DescribeService", "apprunner:UpdateService", "apprunner:ListOperations", "apprunner:PauseService"
      ],
      "Resource": "arn:aws:apprunner:REGION:ACCOUNT:service/NAME/*"
    },
    {"Effect": "Allow", "Action": "apprunner:ListServices", "Resource": "*"},
    {
      "Effect": "Allow",
      "Action": "logs:GetLogEvents",
      "Resource": "arn:aws:logs:REGION:ACCOUNT:log-group:/aws/apprunner/NAME/*"
    },
    {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "ARN of the service's access role and instance role"}
  ]
}
```

`apprunner:ListServices` only when the service is given by name, `apprunner:PauseService` only for first-ever releases,
`logs:GetLogEvents` only for the reasons of failures.""",
        not_undone="What the new image did to data; the pulled images and logs.",
        example="web: {platform: aws_app_runner, conn_id: aws_prod, service: shop, timeout: 1500}",
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
        """See `Platform.rollback`; retryable as well while another operation of the service is under way."""
        return self._run(self._rollback(release, snapshot))

    def console_url(self, handle: Handle | None = None) -> str | None:
        arn = self.config.service
        if not arn.startswith("arn:aws:"):
            return None
        region = arn.split(":")[3]
        return f"https://{region}.console.aws.amazon.com/apprunner/home?region={region}#/services/dashboard?service_arn={arn}"

    # --- steps: decisions and calls, without I/O ---------------------------------------------------------------------

    def _arn(self) -> Steps[str]:
        """https://docs.aws.amazon.com/apprunner/latest/api/API_ListServices.html"""
        if self.config.service.startswith("arn:"):
            return self.config.service
        page: Json = {}
        while True:
            answer = yield "list_services", page
            for brief in answer["ServiceSummaryList"]:
                if brief["ServiceName"] == self.config.service:
                    return str(brief["ServiceArn"])
            if not answer.get("NextToken"):
                raise self.error(f"App Runner ListServices: no service {self.config.service!r}; {_DOCS}")
            page = {"NextToken": answer["NextToken"]}

    def _service(self, arn: str) -> Steps[Json]:
        """https://docs.aws.amazon.com/apprunner/latest/api/API_DescribeService.html"""
        try:
            answer = yield "describe_service", {"ServiceArn": arn}
        except PlatformError as error:
            if code_of(error) == "ResourceNotFoundException":
                raise self.error(f"{error}; {_DOCS}") from None
            raise
        service: Json = answer["Service"]
        if "ImageRepository" not in service["SourceConfiguration"]:
            raise self.error(
                f"App Runner: {arn} is built from a repository's source; a release needs one with an image"
            )
        if service["Status"] in ("DELETED", "DELETE_FAILED"):
            raise self.error(f"App Runner: {arn} is {service['Status']}; {_DOCS}")
        return service

    def _quiet(self, arn: str, service: Json) -> Steps[Json]:
        """The service once no operation is under way."""
        until = time.monotonic() + PATIENCE
        while service["Status"] == _BUSY:
            if time.monotonic() > until:
                words = "App Runner: an operation of the service is in progress, and none can begin before it ends"
                raise self.error(f"{words}; waiting for it", retryable=True, retry_after=AGAIN)
            time.sleep(0.2)
            service = yield from self._service(arn)
        return service

    def _newest(self, arn: str) -> Steps[str | None]:
        """Id of the service's latest update.

        https://docs.aws.amazon.com/apprunner/latest/api/API_ListOperations.html
        """
        answer = yield "list_operations", {"ServiceArn": arn, "MaxResults": 20}
        found = (o["Id"] for o in answer["OperationSummaryList"] if o["Type"] == "UPDATE_SERVICE")
        return next(found, None)

    def _snapshot(self) -> Steps[Snapshot]:
        arn = yield from self._arn()
        service = yield from self._quiet(arn, (yield from self._service(arn)))
        if service["Status"] == "PAUSED":
            raise self.error("App Runner: the service is paused; resume it before a release")
        source, exists = service["SourceConfiguration"], service["Status"] == "RUNNING"
        image = source["ImageRepository"]["ImageIdentifier"]
        data: Json = {"image": image, "mark": mark_of(source), "rest": fingerprint(source)}
        revision = revision_of(source) if exists else None
        return Snapshot(exists=exists, revision=revision, image=image if exists else None, data=data)

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        arn = yield from self._arn()
        service = yield from self._service(arn)
        source = service["SourceConfiguration"]
        if _ours(source, release):
            operation = yield from self._newest(arn)
            return Handle(action="deploy", revision=revision_of(source), data={"arn": arn, "operation": operation})
        if not _as_before(source, snapshot) and not release.force:
            raise self._drift(source, snapshot)
        if service["Status"] == _BUSY:
            yield from self._quiet(arn, service)
            raise self.error("App Runner: an operation has just ended; looking again", retryable=True)
        image = source["ImageRepository"]["ImageIdentifier"]
        same = image == release.image and "@sha256:" in image and service["Status"] == "RUNNING"
        if same and not release.force:
            return Handle(action="deploy", revision=revision_of(source), changed=False, data={"arn": arn})
        return (yield from self._update(arn, "deploy", changed_to(source, release.image, release.release_id)))

    def _update(self, arn: str, action: Literal["deploy", "rollback"], source: Json) -> Steps[Handle]:
        """https://docs.aws.amazon.com/apprunner/latest/api/API_UpdateService.html"""
        answer = yield from self._begun("update_service", {"ServiceArn": arn, "SourceConfiguration": source})
        data: Json = {"arn": arn, "operation": answer["OperationId"]}
        return Handle(action=action, revision=revision_of(source), data=data)

    def _begun(self, operation: str, parameters: Json) -> Steps[Json]:
        try:
            return (yield operation, parameters)
        except PlatformError as error:
            if code_of(error) != "InvalidStateException":
                raise
            raise self.error(f"{error}; waiting for it", retryable=True, retry_after=AGAIN) from error

    def _look(self, handle: Handle) -> Steps[Observation]:
        if left := handle.data.get("left"):
            return Observation(state=State.HEALTHY, reason=str(left), verified=False)
        arn, wanted = str(handle.data["arn"]), handle.data.get("operation")
        service = yield from self._service(arn)
        operation: Json | None = None
        if wanted:
            answer = yield "list_operations", {"ServiceArn": arn, "MaxResults": 20}
            operation = next((o for o in answer["OperationSummaryList"] if o["Id"] == wanted), None)
        words = ""
        if operation and operation["Status"] not in (*_UNDER_WAY, "SUCCEEDED"):
            words = yield from self._log(service, str(wanted))
        return judge(handle, service, operation, words)

    def _log(self, service: Json, operation: str) -> Steps[str]:
        """The last words of an operation's log, or nothing when the Connection may not read it.

        https://docs.aws.amazon.com/apprunner/latest/dg/monitor-cwl.html
        """
        group = f"/aws/apprunner/{service['ServiceName']}/{service['ServiceId']}/service"
        asked = {"logGroupName": group, "logStreamName": f"deployment/{operation}", "limit": 3}
        try:
            answer = yield "logs:get_log_events", asked
        except PlatformError as error:
            if error.retryable:
                raise
            return f"its log {group} cannot be read ({code_of(error)})"
        return "; ".join(event["message"].strip() for event in answer["events"])

    def _rollback(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        arn = yield from self._arn()
        service = yield from self._service(arn)
        back = Handle(action="rollback", revision=snapshot.revision, changed=False, data={"arn": arn})
        if not _as_before(service["SourceConfiguration"], snapshot):
            service = yield from self._quiet(arn, service)
        source = service["SourceConfiguration"]
        if _as_before(source, snapshot):
            # App Runner went, or goes, back by itself, or an earlier attempt's way back is under way.
            left = "" if snapshot.exists else "nothing was written; the service had never run"
            return back.model_copy(update={"data": {"left": left}}) if left else back
        if not _ours(source, release):
            raise self._drift(source, snapshot)
        if snapshot.exists:
            before = changed_to(source, str(snapshot.data["image"]), snapshot.data["mark"])
            return (yield from self._update(arn, "rollback", before))
        if service["Status"] == "RUNNING":
            # https://docs.aws.amazon.com/apprunner/latest/api/API_PauseService.html
            yield from self._begun("pause_service", {"ServiceArn": arn})
        return back.model_copy(update={"changed": service["Status"] == "RUNNING"})

    def _drift(self, source: Json, snapshot: Snapshot) -> Drift:
        what = revision_of(source)
        if what == (snapshot.revision or what):
            what = "another configuration"
        return Drift(
            f"App Runner: service {self.config.service!r} has {what}, which is neither the snapshot's "
            f"({snapshot.data['image']}) nor this release's: somebody else changed it; nothing was written. Check it, "
            "then release again",
            target=self.name,
        )


def judge(handle: Handle, service: Json, operation: Json | None, words: str) -> Observation:
    """How an action looks in these documents.

    :param operation: the one that the handle's write started, when it did one.
    :param words: of that operation's log, when it failed.
    """
    live, status = revision_of(service["SourceConfiguration"]), service["Status"]
    if operation is not None and operation["Status"] not in (*_UNDER_WAY, "SUCCEEDED"):
        reason = f"operation {operation['Id']}: {operation['Status']}: {words}".rstrip(": ")
        return Observation(state=State.FAILED, reason=reason, revision=live)
    if status == _BUSY or (operation is not None and operation["Status"] in _UNDER_WAY):
        return Observation(state=State.PROGRESSING, reason=status, revision=live)
    if handle.revision is None:
        gone = status != "RUNNING"
        return Observation(state=State.HEALTHY if gone else State.SUPERSEDED, reason=f"the service is {status}")
    if live != handle.revision:
        return Observation(state=State.SUPERSEDED, reason=f"{live} replaced {handle.revision}", revision=live)
    if status != "RUNNING":
        return Observation(state=State.FAILED, reason=f"the service is {status}", revision=live)
    return Observation(state=State.HEALTHY, revision=live, progress=1.0)


def mark_of(source: Json) -> str | None:
    """The release id in a source configuration."""
    image = source["ImageRepository"].get("ImageConfiguration", {})
    mark = image.get("RuntimeEnvironmentVariables", {}).get(MARK)
    return None if mark is None else str(mark)


def revision_of(source: Json) -> str:
    """Image and release id: App Runner has no revisions of its own."""
    image, mark = source["ImageRepository"]["ImageIdentifier"], mark_of(source)
    return image if mark is None else f"{image} of {mark}"


def changed_to(source: Json, image: str, mark: object) -> Json:
    """The same source configuration with another image and release id (None: without one)."""
    repository = source["ImageRepository"]
    configuration = dict(repository.get("ImageConfiguration", {}))
    variables = {k: v for k, v in configuration.get("RuntimeEnvironmentVariables", {}).items() if k != MARK}
    configuration["RuntimeEnvironmentVariables"] = variables if mark is None else {**variables, MARK: mark}
    return {**source, "ImageRepository": {**repository, "ImageIdentifier": image, "ImageConfiguration": configuration}}


def fingerprint(source: Json) -> str:
    """A hash of all that a release does not change: it may hold secrets, so it is not kept itself."""
    rest = json.dumps(changed_to(source, "", None), sort_keys=True, default=str)
    return hashlib.sha256(rest.encode()).hexdigest()


def _ours(source: Json, release: Release) -> bool:
    """Somebody who changes the image by hand leaves the environment as it is, so both count."""
    return mark_of(source) == release.release_id and source["ImageRepository"]["ImageIdentifier"] == release.image


def _as_before(source: Json, snapshot: Snapshot) -> bool:
    image = source["ImageRepository"]["ImageIdentifier"]
    return {"image": image, "mark": mark_of(source), "rest": fingerprint(source)} == snapshot.data
