"""AWS Lambda functions behind an alias: config, adapter and operator.

A release puts its code into the function, publishes that as a numbered version, and leads the alias there. Callers
use the alias; a version never changes, so the way back is the alias alone, and takes effect at once.

Code, version and alias are three writes with waiting between them, all of them in ``deploy``: it goes on from whatever
an earlier call left, and asks to be called again while Lambda is busy.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.aws import code_of
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.artifact import Located, located
from airflow_multideploy.platforms.aws.calls import AwsConfig, AwsPlatform, Json, Steps
from airflow_multideploy.platforms.aws.lambda_judge import (
    as_before,
    busy,
    code,
    failure,
    given_up,
    judge,
    led,
    mark,
    ours,
)
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot

PATIENCE = 4.0
"""Seconds that one call of ``deploy`` waits for Lambda; most updates are done by then."""
AGAIN = 15.0
"""Seconds until the next call, when it was not."""
_DOCS = "create the function once with your infrastructure tool; releases go into an existing function"


def _unqualified(function: str) -> str:
    """https://docs.aws.amazon.com/lambda/latest/api/API_GetAlias.html"""
    if not re.fullmatch(r"((arn:[\w-]+:lambda:[\w-]+:)?\d{12}:function:)?[\w-]+", function):
        raise ValueError("is no function's name or ARN alone; give the name without version, and the alias in 'alias'")
    return function


class AwsLambdaConfig(AwsConfig):
    """One Lambda function, called through an alias.

    :param function: name or ARN, without version or alias.
    :param alias: what callers use; made by the first release when it does not exist.
    :param package: where the zip of a release lies, such as ``s3://releases/shop-${version}.zip``, in the function's
        region; None for a function of package type Image, which gets the release's image.
    :param test_event: the payload with which a new version is invoked before any caller reaches it; when that ends
        with an error, the release fails and the alias stays where it is. Answers have to come within 30 seconds.
    """

    platform: Literal["aws_lambda"] = "aws_lambda"
    function: Annotated[str, Field(min_length=1), AfterValidator(_unqualified)]
    alias: Annotated[str, Field(pattern=r"^[0-9]*[A-Za-z_-][A-Za-z0-9_-]*$")] = "live"
    package: Annotated[Located, Field(pattern=r"^s3://[^/]+/.+")] | None = None
    test_event: dict[str, JsonValue] | None = None


class AwsLambda(AwsPlatform[AwsLambdaConfig]):
    """Releases into a Lambda function by leading its alias to a newly published version, and back.

    The alias says in its description which release led it where: that is how a retry, and a rollback on another
    machine, know their own work. A version's description is the id of the release that published it; publishing what
    is published already makes no second version.

    While Lambda prepares code or a version, ``deploy`` waits a few seconds and then fails with a retryable error: the
    deploy task's worker waits, not the triggerer. An update that Lambda refuses is a failed release, with its reason.
    A zip is compared by its hash, which Lambda computes in a dry run; an image by its reference: one that is pinned by
    digest and live already is left alone, a tag is deployed again.

    An alias that points at ``$LATEST`` is refused: every release changes what that is, so nothing could be restored.
    """

    kind: ClassVar[str] = "aws_lambda"
    client_type: ClassVar[str] = "lambda"
    answers: ClassVar[Mapping[str, str]] = {
        "get_alias": "FunctionVersion",
        "create_alias": "FunctionVersion",
        "update_alias": "FunctionVersion",
        "delete_alias": "ResponseMetadata",
        "get_function": "Configuration",
        "get_function_configuration": "Version",
        "update_function_code": "CodeSha256",
        "publish_version": "Version",
        "invoke": "StatusCode",
    }
    config_type: ClassVar[type[TargetConfig]] = AwsLambdaConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="version, weights and description of the alias; hash and time of the function's unpublished code",
        early_failure="a failed code update or version, with Lambda's reason; an error answer to the test event",
        restores="the alias: version, weights of a second version, description; the alias is removed when the first "
        "release made it",
        tested_against="a simulator held to botocore's service model",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="aws",
        connection="Type `aws`: access key and secret, or a role to assume (`role_arn` in extra), and `region_name`.",
        protocol="""
1. `GetAlias` and `GetFunction`: what is served, what lies unpublished in `$LATEST`. Changed by somebody else: refused.
2. `UpdateFunctionCode` with the function's `RevisionId`, unless the code is there already.
3. When that is done: `PublishVersion` with the code's hash and the release id as description.
4. When the version is active: `Invoke` it with the test event, if one is configured.
5. `UpdateAlias` (the first time `CreateAlias`) with the alias's `RevisionId`: all calls to this version.
6. Healthy when the alias points to this version alone and the version is active.

Back: `UpdateAlias` to the version, weights and description of the snapshot, if the alias is still where this release
led it.""",
        permissions="""
```json
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Action": [
        "lambda:GetAlias", "lambda:CreateAlias", "lambda:UpdateAlias", "lambda:DeleteAlias", "lambda:GetFunction",
        "lambda:GetFunctionConfiguration", "lambda:UpdateFunctionCode", "lambda:PublishVersion",
        "lambda:InvokeFunction"
      ],
      "Resource": ["arn:aws:lambda:REGION:ACCOUNT:function:NAME", "arn:aws:lambda:REGION:ACCOUNT:function:NAME:*"]
    },
    {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::BUCKET/*"}
  ]
}
```

`lambda:InvokeFunction` only with a test event, `s3:GetObject` only for zips. For an image, ECR's repository
policy has to allow Lambda to pull.""",
        not_undone="The published version, and the code in `$LATEST`, stay as the release made them; who calls the "
        "function without the alias is served from there, so let all callers name the alias before the first release. "
        "What the test event did is done.",
        example="fn: {platform: aws_lambda, conn_id: aws_prod, function: shop, alias: live}",
    )

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._run(self._snapshot())

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`; retryable as well while Lambda is busy with what an earlier call wrote."""
        return self._run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        return self._run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        return await self._arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        return self._run(self._rollback(release, snapshot))

    def console_url(self, handle: Handle | None = None) -> str | None:
        name, region = self.config.function, self.config.region
        if name.startswith("arn:aws:"):
            region, name = name.split(":")[3], name.split(":")[6]
        if region is None:
            return None
        place = f"https://{region}.console.aws.amazon.com/lambda/home?region={region}"
        return f"{place}#/functions/{name}/aliases/{self.config.alias}"

    # --- steps: decisions and calls, without I/O ---------------------------------------------------------------------

    @property
    def _place(self) -> Json:
        return {"FunctionName": self.config.function, "Name": self.config.alias}

    def _alias(self) -> Steps[Json | None]:
        """https://docs.aws.amazon.com/lambda/latest/api/API_GetAlias.html"""
        try:
            return (yield "get_alias", self._place)
        except PlatformError as error:
            if code_of(error) != "ResourceNotFoundException":
                raise
            return None

    def _function(self, version: str = "$LATEST") -> Steps[Json]:
        """https://docs.aws.amazon.com/lambda/latest/api/API_GetFunction.html"""
        try:
            return (yield "get_function", {"FunctionName": self.config.function, "Qualifier": version})
        except PlatformError as error:
            if code_of(error) == "ResourceNotFoundException" and version == "$LATEST":
                raise self.error(f"there is no Lambda function {self.config.function!r}; {_DOCS}") from None
            raise

    def _settled(self, version: str = "$LATEST") -> Steps[Json]:
        """The configuration once Lambda is no longer busy with it.

        https://docs.aws.amazon.com/lambda/latest/dg/functions-states.html
        """
        until, pause = time.monotonic() + PATIENCE, 0.1
        while True:
            found = yield "get_function_configuration", {"FunctionName": self.config.function, "Qualifier": version}
            if not busy(found):
                return found
            if time.monotonic() + pause > until:
                what = f"{self.config.function}:{version} is still being prepared"
                raise self.error(f"Lambda: {what}; waiting for it", retryable=True, retry_after=AGAIN)
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _snapshot(self) -> Steps[Snapshot]:
        alias = yield from self._alias()
        latest = yield from self._function()
        if busy(latest["Configuration"]):
            words = "Lambda: the function is being updated; waiting for that to end"
            raise self.error(words, retryable=True, retry_after=AGAIN)
        data: Json = {"alias": alias and led(alias), "latest": code(latest["Configuration"])}
        if alias is None:
            return Snapshot(exists=False, data=data)
        version = alias["FunctionVersion"]
        if version == "$LATEST":
            raise self.error(
                f"Lambda: alias {self.config.alias!r} points at $LATEST, which each release changes; publish a version "
                "and lead the alias there once"
            )
        served = yield from self._function(version)
        return Snapshot(exists=True, revision=version, image=served["Code"].get("ImageUri"), data=data)

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        alias = yield from self._alias()
        if alias is not None and ours(alias, release):
            return Handle(action="deploy", revision=alias["FunctionVersion"])
        if not as_before(alias, snapshot) and not release.force:
            raise self._drift(alias, snapshot)
        latest = yield from self._function()
        if busy(latest["Configuration"]):
            if words := failure((yield from self._settled())):
                return given_up(words)
            latest = yield from self._function()
        source, sha = yield from self._wanted(release)
        if alias is not None and not release.force and not alias.get("RoutingConfig"):
            served = yield from self._function(alias["FunctionVersion"])
            pinned = "@sha256:" in release.image and served["Code"].get("ImageUri") == release.image
            same = pinned if sha is None else served["Configuration"]["CodeSha256"] == sha
            if same and served["Configuration"].get("State") in ("Active", "Inactive"):
                return Handle(action="deploy", revision=alias["FunctionVersion"], changed=False)
        found = yield from self._staged(release, snapshot, latest, source, sha)
        if words := failure(found):
            return given_up(words)
        version = yield from self._published(release, found)
        if words := failure(version) or (yield from self._tested(version["Version"])):
            return given_up(f"version {version['Version']}: {words}")
        yield from self._lead(alias, version["Version"], {}, mark(release, version["Version"]))
        return Handle(action="deploy", revision=version["Version"])

    def _wanted(self, release: Release) -> Steps[tuple[Json, str | None]]:
        """Where the code comes from, and its hash, which for a zip Lambda computes without changing anything."""
        if self.config.package is None:
            return {"ImageUri": release.image}, None
        bucket, _, key = located(self.config.package, release).removeprefix("s3://").partition("/")
        source = {"S3Bucket": bucket, "S3Key": key}
        answer = yield "update_function_code", {"FunctionName": self.config.function, **source, "DryRun": True}
        return source, str(answer["CodeSha256"])

    def _staged(self, release: Release, snapshot: Snapshot, latest: Json, source: Json, sha: str | None) -> Steps[Json]:
        """Configuration of the function with this code unpublished in it, or of one that Lambda could not update.

        https://docs.aws.amazon.com/lambda/latest/api/API_UpdateFunctionCode.html
        """
        found: Json = latest["Configuration"]
        touched, failed = code(found) != snapshot.data["latest"], failure(found)
        # A tag that was there before this release may name other bits by now.
        image = latest["Code"].get("ImageUri") == release.image and (touched or "@sha256:" in release.image)
        there = image if sha is None else found["CodeSha256"] == sha
        if there and not failed:
            return found
        if touched and not failed and not release.force:
            words = f"Lambda: somebody else changed {self.config.function!r} since; nothing was written. Check its code"
            raise Drift(f"{words} and configuration, then release again", target=self.name)
        change = {"FunctionName": self.config.function, **source, "RevisionId": found["RevisionId"]}
        yield from self._current("update_function_code", change)
        return (yield from self._settled())

    def _published(self, release: Release, code: Json) -> Steps[Json]:
        """The version of this code: a new one, or the one that is there already, once it is prepared.

        https://docs.aws.amazon.com/lambda/latest/api/API_PublishVersion.html
        """
        only = {"CodeSha256": code["CodeSha256"], "RevisionId": code["RevisionId"]}
        answer = yield from self._current(
            "publish_version", {"FunctionName": self.config.function, "Description": release.release_id, **only}
        )
        return (yield from self._settled(answer["Version"]))

    def _tested(self, version: str) -> Steps[str]:
        """What went wrong with the test event, in the function's words.

        https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html
        """
        if self.config.test_event is None:
            return ""
        payload = json.dumps(self.config.test_event).encode()
        answer = yield "invoke", {"FunctionName": self.config.function, "Qualifier": version, "Payload": payload}
        if not answer.get("FunctionError"):
            return ""
        said = answer["Payload"].read(4000).decode(errors="replace")
        return f"the test event ended with {answer['FunctionError']}: {said}"

    def _lead(self, alias: Json | None, version: str, weights: Json, description: str) -> Steps[None]:
        """https://docs.aws.amazon.com/lambda/latest/api/API_UpdateAlias.html"""
        change: Json = {**self._place, "FunctionVersion": version, "Description": description}
        if alias is None:
            yield from self._current("create_alias", change)
            return
        change.update(RoutingConfig={"AdditionalVersionWeights": weights}, RevisionId=alias["RevisionId"])
        yield from self._current("update_alias", change)

    def _current(self, operation: str, parameters: Json) -> Steps[Json]:
        """A write, or a retryable error when something else was written just before it: look again, then decide."""
        try:
            return (yield operation, parameters)
        except PlatformError as error:
            if code_of(error) not in ("PreconditionFailedException", "ResourceConflictException"):
                raise
            raise self.error(f"{error}; looking again", retryable=True) from error

    def _look(self, handle: Handle) -> Steps[Observation]:
        alias = yield from self._alias()
        version: Json = {}
        if alias is not None and handle.revision == alias["FunctionVersion"]:
            asked = {"FunctionName": self.config.function, "Qualifier": handle.revision}
            version = yield "get_function_configuration", asked
        return judge(handle, alias, version)

    def _rollback(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        alias = yield from self._alias()
        before: Any = snapshot.data["alias"]
        data: Json = {"weights": before["weights"] if before else {}}
        back = Handle(action="rollback", revision=snapshot.revision, changed=False, data=data)
        mine = alias is not None and ours(alias, release)
        if not mine and as_before(alias, snapshot):
            return back
        if alias is None or not mine:
            raise self._drift(alias, snapshot)
        if before is None:
            yield from self._current("delete_alias", self._place)
        else:
            yield from self._lead(alias, before["version"], before["weights"], before["description"])
        return back.model_copy(update={"changed": True})

    def _drift(self, alias: Json | None, snapshot: Snapshot) -> Drift:
        now = f"points to {led(alias)['version']} ({alias.get('Description', '')!r})" if alias else "is gone"
        return Drift(
            f"Lambda: alias {self.config.alias!r} of {self.config.function!r} {now}, which is neither version "
            f"{snapshot.revision} nor this release's: somebody else deployed; nothing was written. Check it, then "
            "release again",
            target=self.name,
        )
