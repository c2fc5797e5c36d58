"""Stand-in for AWS Lambda: functions with numbered versions and aliases, whose updates take time and can fail.

Held to botocore's model of the API. What is ours, because a model says nothing about behaviour:

- a code update is ``InProgress`` for the scripted time, during which every write to the function is refused with
  ``ResourceConflictException``; a failing one ends as ``Failed`` and leaves the code as it was;
- a version whose code needs preparing is ``Pending`` for as long again (``prepare`` says so), and an alias that is led
  to such a version answers nobody;
- publishing unchanged code gives the version that exists, with the description that it has;
- writes with a stale RevisionId are refused with ``PreconditionFailedException``;
- an invocation of a version answers, or raises what the scripted fault ``invocation`` says.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_multideploy.sandbox.world import Course, Live, World
from tests.stand_ins.aws_wire import ACCOUNT, REGION, AwsError, AwsStandIn, Json

KIND = "aws_lambda"
PLACEHOLDER = "registry.example.com/placeholder:0"


@dataclass
class Version:
    """One numbered version, or ``$LATEST``."""

    image: str
    number: str = "$LATEST"
    description: str = ""
    token: str = field(default_factory=lambda: str(uuid.uuid4()))
    modified: float = 0.0
    ready: float = 0.0
    by_hand: bool = False

    @property
    def sha(self) -> str:
        return base64.b64encode(hashlib.sha256(self.image.encode()).digest()).decode()


@dataclass
class Update:
    """A change of ``$LATEST`` on its way."""

    began: float
    course: Course
    image: str
    settled: bool = False


@dataclass
class Function:
    """One function."""

    name: str
    latest: Version
    versions: dict[str, Version] = field(default_factory=dict)
    alias: Json | None = None
    update: Update | None = None


class AwsLambdaStandIn(AwsStandIn):
    """Lambda on loopback.

    :param package: ``Zip``, or ``Image``.
    :param prepare: a published version takes time until it is Active, as one with SnapStart does.
    """

    kind = KIND
    services = ("lambda",)
    injected = {400: "InvalidParameterValueException", 429: "TooManyRequestsException"}

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret", package: str = "Image") -> None:
        super().__init__(world, port=port, secret=secret)
        self.package, self.prepare, self.invocation = package, False, ""
        self.invoked: list[tuple[str, bytes]] = []
        self._functions: dict[str, Function] = {}
        self._ticks = itertools.count()
        self.operations = {
            "GetAlias": self._get_alias,
            "CreateAlias": self._create_alias,
            "UpdateAlias": self._update_alias,
            "DeleteAlias": self._delete_alias,
            "GetFunction": self._get_function,
            "GetFunctionConfiguration": lambda p: self._configuration(*self._qualified(p)),
            "UpdateFunctionCode": self._update_function_code,
            "PublishVersion": self._publish_version,
            "Invoke": self._invoke,
        }

    def called(self, operation: str, body: bytes) -> str:
        dry = operation == "UpdateFunctionCode" and json.loads(body or b"{}").get("DryRun")
        return f"DryRun{operation}" if dry else operation

    def target(self, resource: str) -> Json:
        """The catalog entry of a target on this function, without ``conn_id``."""
        entry = {"platform": KIND, "function": resource, "alias": "live"}
        return {**entry, "package": f"s3://releases/{resource}-${{version}}.zip"} if self.package == "Zip" else entry

    def seed(self, resource: str, image: str | None) -> None:
        """The function with its alias on a version of this image; None: a placeholder without alias."""
        with self._lock:
            function = Function(resource, Version(image or PLACEHOLDER, modified=self._now()))
            self._functions[resource] = function
            if image is not None:
                self._meddle(function, image)
                function.alias["Description"] = "what customers get"  # type: ignore[index]

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else publishes this image and leads the alias there, at once."""
        with self._lock:
            self._meddle(self._functions[resource], image)

    def _meddle(self, function: Function, image: str) -> None:
        function.update = None
        function.latest = Version(image, modified=self._now())
        version = self._published(function, "by hand", by_hand=True)
        function.alias = {**(function.alias or {"Name": "live"}), "FunctionVersion": version.number}
        function.alias.update(RevisionId=str(uuid.uuid4()), weights={})

    def live(self, resource: str) -> Live:
        """What its alias serves, read from the state."""
        with self._lock:
            function = self._functions[resource]
            self._advance(function)
            settled = function.update is None or function.update.settled
            if function.alias is None:
                return Live(image=None, revision=None, settled=settled)
            version = function.versions[function.alias["FunctionVersion"]]
            ready = version.ready <= self.world.now()
            return Live(image=version.image if ready else None, revision=version.number, settled=settled)

    def revisions(self, resource: str) -> list[str]:
        """Versions that API calls published, oldest first."""
        return [v.number for v in self._functions[resource].versions.values() if not v.by_hand]

    def hurry(self, resource: str) -> None:
        """What is under way is over."""
        function = self._functions[resource]
        if function.update is not None:
            function.update.began -= 600.0
        for version in function.versions.values():
            version.ready = 0.0

    def _now(self) -> float:
        """Epoch seconds, never twice the same."""
        return self.world.now() + next(self._ticks) / 1e3

    # --- state -------------------------------------------------------------------------------------------------------

    def _function(self, params: Json) -> Function:
        function = self._functions.get(params["FunctionName"])
        if function is None:
            arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{params['FunctionName']}"
            raise AwsError("ResourceNotFoundException", f"Function not found: {arn}")
        self._advance(function)
        return function

    def _advance(self, function: Function) -> None:
        update = function.update
        if update is None or update.settled:
            return
        elapsed = self.world.now() - update.began
        if update.course.done(elapsed):
            update.settled = True
            if not update.course.failed(elapsed):
                function.latest = Version(update.image, modified=function.latest.modified)

    def _writable(self, params: Json) -> Function:
        function = self._function(params)
        if function.update is not None and not function.update.settled:
            words = "The operation cannot be performed at this time. An update is in progress for resource"
            raise AwsError("ResourceConflictException", words)
        token = params.get("RevisionId")
        if token is not None and token != function.latest.token:
            raise AwsError("PreconditionFailedException", "The Revision Id provided does not match the latest one")
        return function

    def _published(self, function: Function, description: str, *, by_hand: bool) -> Version:
        newest = list(function.versions.values())[-1:]
        if newest and newest[0].image == function.latest.image:
            return newest[0]
        number = str(len(function.versions) + 1)
        wait = self.world.course(KIND, function.name).seconds if self.prepare and not by_hand else 0.0
        version = Version(function.latest.image, number, description, modified=self._now(), by_hand=by_hand)
        version.ready = self.world.now() + wait
        function.versions[number] = version
        return version

    def _image(self, params: Json) -> str:
        if "ImageUri" in params:
            return str(params["ImageUri"])
        name, _, version = params["S3Key"].removesuffix(".zip").rpartition("-")
        return f"registry.example.com/{name}:{version}"

    # --- operations --------------------------------------------------------------------------------------------------

    def _update_function_code(self, params: Json) -> Json:
        function = self._writable(params)
        if ("ImageUri" in params) != (self.package == "Image"):
            raise AwsError("InvalidParameterValueException", f"the function's package type is {self.package}")
        image = self._image(params)
        if params.get("DryRun"):
            return self._configuration(function, Version(image))
        function.update = Update(self.world.now(), self.world.course(KIND, function.name), image)
        function.latest.modified, function.latest.token = self._now(), str(uuid.uuid4())
        return self._configuration(function, function.latest)

    def _publish_version(self, params: Json) -> Json:
        function = self._writable(params)
        if params.get("CodeSha256") not in (None, function.latest.sha):
            raise AwsError("InvalidParameterValueException", "CodeSHA256 is different from the code in $LATEST")
        version = self._published(function, params.get("Description", ""), by_hand=False)
        return self._configuration(function, version)

    def _get_function(self, params: Json) -> Json:
        function, version = self._qualified(params)
        code: Json = {"RepositoryType": "ECR", "ImageUri": version.image, "ResolvedImageUri": version.image}
        if self.package == "Zip":
            code = {"RepositoryType": "S3", "Location": "https://sandbox.example.com/signed"}
        return {"Configuration": self._configuration(function, version), "Code": code}

    def _qualified(self, params: Json) -> tuple[Function, Version]:
        function, number = self._function(params), params.get("Qualifier", "$LATEST")
        if number == "$LATEST":
            return function, self._shown(function)
        if number not in function.versions:
            raise AwsError("ResourceNotFoundException", f"Function not found: {function.name}:{number}")
        return function, function.versions[number]

    def _shown(self, function: Function) -> Version:
        """``$LATEST`` as the API shows it while it is being changed: already the new code."""
        update, latest = function.update, function.latest
        if update is None or update.settled:
            return latest
        return Version(update.image, token=latest.token, modified=latest.modified)

    def _configuration(self, function: Function, version: Version) -> Json:
        arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function.name}"
        modified = datetime.fromtimestamp(version.modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+0000")
        document: Json = {
            "FunctionName": function.name,
            "FunctionArn": arn if version.number == "$LATEST" else f"{arn}:{version.number}",
            "Role": f"arn:aws:iam::{ACCOUNT}:role/shop",
            "CodeSize": 1024,
            "CodeSha256": version.sha,
            "Description": version.description,
            "Version": version.number,
            "RevisionId": version.token,
            "LastModified": modified,
            "PackageType": self.package,
            "Environment": {"Variables": {"PASSWORD": "hunter2"}},
            "State": "Active" if version.ready <= self.world.now() else "Pending",
            "LastUpdateStatus": "Successful",
        }
        update = function.update
        if version.number == "$LATEST" and update is not None:
            elapsed = self.world.now() - update.began
            if not update.settled:
                document["LastUpdateStatus"] = "InProgress"
            elif update.course.failed(elapsed):
                document.update(LastUpdateStatus="Failed", LastUpdateStatusReasonCode="InvalidImage")
                document["LastUpdateStatusReason"] = update.course.reason
        return document

    def _get_alias(self, params: Json) -> Json:
        return self._shown_alias(self._aliased(params))

    def _aliased(self, params: Json) -> Function:
        function = self._function(params)
        if function.alias is None or function.alias["Name"] != params["Name"]:
            raise AwsError("ResourceNotFoundException", f"Cannot find alias arn: {function.name}:{params['Name']}")
        return function

    def _shown_alias(self, function: Function) -> Json:
        alias: Json = function.alias or {}
        arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function.name}:{alias['Name']}"
        document = {"AliasArn": arn, **{name: value for name, value in alias.items() if name != "weights"}}
        if alias["weights"]:
            document["RoutingConfig"] = {"AdditionalVersionWeights": alias["weights"]}
        return document

    def _create_alias(self, params: Json) -> Json:
        function = self._function(params)
        if function.alias is not None:
            raise AwsError("ResourceConflictException", f"Alias already exists: {params['Name']}")
        function.alias = {"Name": params["Name"], "weights": {}}
        return self._led(function, params)

    def _update_alias(self, params: Json) -> Json:
        function = self._aliased(params)
        if params.get("RevisionId") not in (None, (function.alias or {})["RevisionId"]):
            raise AwsError("PreconditionFailedException", "The Revision Id provided does not match the latest one")
        return self._led(function, params)

    def _led(self, function: Function, params: Json) -> Json:
        alias: Any = function.alias
        if params.get("FunctionVersion", "1") not in function.versions:
            raise AwsError("ResourceNotFoundException", f"Function not found: {function.name}")
        alias.update({name: params[name] for name in ("FunctionVersion", "Description") if name in params})
        if "RoutingConfig" in params:
            alias["weights"] = params["RoutingConfig"].get("AdditionalVersionWeights", {})
        alias["RevisionId"] = str(uuid.uuid4())
        return self._shown_alias(function)

    def _delete_alias(self, params: Json) -> Json:
        function = self._function(params)
        function.alias = None
        return {}

    def _invoke(self, params: Json) -> Json:
        _, version = self._qualified(params)
        self.invoked.append((version.number, params.get("Payload", b"")))
        if self.invocation:
            words = json.dumps({"errorMessage": self.invocation, "errorType": "Runtime.ExitError"}).encode()
            return {"StatusCode": 200, "FunctionError": "Unhandled", "Payload": words}
        return {"StatusCode": 200, "Payload": b'{"ok": true}', "ExecutedVersion": version.number}
