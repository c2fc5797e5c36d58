"""Stand-in for a static site: a bucket, a CloudFront distribution over it, and the site as its visitors get it.

Held to botocore's models of CloudFront and S3. What is ours, because a model says nothing about behaviour:

- a changed distribution is ``InProgress`` for the scripted time, in which the edges answer from the old folder, and a
  change of it begins that time anew; an invalidation takes as long;
- an edge keeps the page that it has until an invalidation of it is completed, whatever the origin path says;
- writes with another ETag than the latest are refused with ``PreconditionFailed``;
- a rollout that fails leads to a folder that CloudFront may not read: visitors get S3's ``AccessDenied``.
"""

from __future__ import annotations

import copy
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from airflow_multideploy.sandbox.server import Receive, Scope, Send
from airflow_multideploy.sandbox.world import Course, Live, World
from tests.stand_ins.aws_wire import ACCOUNT, REGION, AwsError, AwsStandIn, Json

KIND = "aws_s3_site"
BUCKET = "sites.example"


@dataclass
class Change:
    """Something that spreads to the edges."""

    began: float
    course: Course

    def done(self, now: float) -> bool:
        return self.course.done(now - self.began)


@dataclass
class Invalidation:
    """One invalidation."""

    id: str
    batch: Json
    change: Change
    applied: bool = False


@dataclass
class Distribution:
    """One distribution."""

    name: str
    config: Json
    tag: str = field(default_factory=lambda: uuid.uuid4().hex)
    change: Change | None = None
    edge: str = ""
    """The folder that the edges fetch from."""
    cached: str | None = None
    """The page that they hold."""
    denied: dict[str, str] = field(default_factory=dict)
    """Folders that CloudFront may not read, with S3's words."""
    invalidations: list[Invalidation] = field(default_factory=list)
    switched: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        return str(self.config["Origins"]["Items"][0]["OriginPath"])

    @path.setter
    def path(self, value: str) -> None:
        self.config["Origins"]["Items"][0]["OriginPath"] = value


class AwsS3SiteStandIn(AwsStandIn):
    """CloudFront and S3 on loopback; the site of a distribution is at ``/site/NAME``."""

    kind = KIND
    services = ("cloudfront", "s3")
    unauthorized = ("InvalidClientTokenId", "SignatureDoesNotMatch")
    statuses = {"InvalidClientTokenId": 403, "SignatureDoesNotMatch": 403, "404": 404}
    injected = {400: "InvalidArgument", 429: "Throttling"}

    def __init__(self, world: World, *, port: int = 0, secret: str = "sandbox-secret") -> None:
        super().__init__(world, port=port, secret=secret)
        self.objects: dict[str, str] = {}
        self._known: dict[str, Distribution] = {}
        self.operations = {
            "GetDistribution": lambda p: self._shown(self._distribution(p["Id"])),
            "UpdateDistribution": self._update_distribution,
            "CreateInvalidation": self._create_invalidation,
            "GetInvalidation": self._get_invalidation,
            "HeadObject": self._head_object,
        }

    def target(self, resource: str) -> Json:
        """The catalog entry of a target on this site, without ``conn_id``."""
        url = f"{self.url}/site/{resource}"
        return {"platform": KIND, "distribution": resource, "path": "/releases/${version}", "url": url}

    def seed(self, resource: str, image: str | None) -> None:
        """The site with three releases uploaded, on the one of this image; None: on none of them."""
        path = f"/releases/{image.rpartition(':')[2]}" if image else ""
        for version in ("1.0.0", "1.1.0", "9.9.9"):
            self.objects[f"releases/{version}/index.html"] = version
        with self._lock:
            self._known[resource] = Distribution(resource, _config(path), edge=path)
            self.visit(resource)

    def meddle(self, resource: str, image: str) -> None:
        """Somebody else leads the distribution to the folder of this image, and waits."""
        with self._lock:
            found = self._known[resource]
            found.path = found.edge = f"/releases/{image.rpartition(':')[2]}"
            found.tag, found.change, found.cached = uuid.uuid4().hex, None, None

    def live(self, resource: str) -> Live:
        """What a visitor gets."""
        with self._lock:
            status, page = self.visit(resource)
            image = f"registry.example.com/shop:{page}" if status == 200 else None
            found = self._known[resource]
            return Live(image=image, revision=found.edge, settled=found.change is None)

    def revisions(self, resource: str) -> list[str]:
        """Folders to which API calls led the distribution, oldest first."""
        return self._known[resource].switched

    def visit(self, resource: str) -> tuple[int, str]:
        """Status and body of the site's first page."""
        with self._lock:
            found = self._known[resource]
            self._advance(found)
            if found.cached is not None:
                return 200, found.cached
            if found.edge in found.denied:
                return 403, f"<Error><Code>AccessDenied</Code><Message>{found.denied[found.edge]}</Message></Error>"
            page = self.objects.get(f"{found.edge}/index.html".lstrip("/"))
            if page is None:
                return 404, "<Error><Code>NoSuchKey</Code></Error>"
            found.cached = page
            return 200, page

    # --- state -------------------------------------------------------------------------------------------------------

    def _distribution(self, name: str) -> Distribution:
        if name not in self._known:
            raise AwsError("NoSuchDistribution", "The specified distribution does not exist.")
        self._advance(self._known[name])
        return self._known[name]

    def _advance(self, found: Distribution) -> None:
        now = self.world.now()
        if found.change is not None and found.change.done(now):
            if found.change.course.failed(now - found.change.began):
                found.denied[found.path] = found.change.course.reason
            found.edge, found.change = found.path, None
        for invalidation in found.invalidations:
            if not invalidation.applied and invalidation.change.done(now):
                invalidation.applied, found.cached = True, None

    # --- operations --------------------------------------------------------------------------------------------------

    def _update_distribution(self, params: Json) -> Json:
        found = self._distribution(params["Id"])
        if params.get("IfMatch") != found.tag:
            raise AwsError("PreconditionFailed", "The request failed because it didn't meet the preconditions")
        found.config, found.tag = copy.deepcopy(params["DistributionConfig"]), uuid.uuid4().hex
        found.change = Change(self.world.now(), self.world.course(KIND, found.name))
        found.switched.append(found.path)
        return self._shown(found)

    def _create_invalidation(self, params: Json) -> Json:
        found, batch = self._distribution(params["DistributionId"]), params["InvalidationBatch"]
        for known in found.invalidations:
            if known.batch["CallerReference"] == batch["CallerReference"]:
                return self._told(known)
        change = Change(self.world.now(), Course("succeeds", self.world.seconds))
        found.invalidations.append(Invalidation(f"I{len(found.invalidations)}", batch, change))
        return self._told(found.invalidations[-1])

    def _get_invalidation(self, params: Json) -> Json:
        for known in self._distribution(params["DistributionId"]).invalidations:
            if known.id == params["Id"]:
                return self._told(known)
        raise AwsError("NoSuchInvalidation", "The specified invalidation does not exist.")

    def _told(self, known: Invalidation) -> Json:
        status = "Completed" if known.applied else "InProgress"
        moment = datetime.fromtimestamp(known.change.began, UTC)
        told = {"Id": known.id, "Status": status, "CreateTime": moment, "InvalidationBatch": known.batch}
        return {"Invalidation": told}

    def _head_object(self, params: Json) -> Json:
        if params["Bucket"] != BUCKET or params["Key"] not in self.objects:
            raise AwsError("404", "Not Found")
        return {"ETag": '"0a"', "ContentLength": 10}

    def _shown(self, found: Distribution) -> Json:
        document: Any = {
            "Id": found.name,
            "ARN": f"arn:aws:cloudfront::{ACCOUNT}:distribution/{found.name}",
            "Status": "Deployed" if found.change is None else "InProgress",
            "LastModifiedTime": datetime.now(UTC),
            "InProgressInvalidationBatches": sum(not i.applied for i in found.invalidations),
            "DomainName": "d111111abcdef8.cloudfront.net",
            "DistributionConfig": copy.deepcopy(found.config),
        }
        return {"Distribution": document, "ETag": found.tag}

    # --- the site ----------------------------------------------------------------------------------------------------

    def _describe(self, scope: Scope, body: bytes) -> tuple[str, bool]:
        return ("GET site", False) if scope["path"].startswith("/site/") else super()._describe(scope, body)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith("/site/"):
            await super()._app(scope, receive, send)
            return
        status, page = self.visit(scope["path"].removeprefix("/site/"))
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": page.encode()})


def _config(path: str) -> Json:
    origin = {
        "Id": "bucket",
        "DomainName": f"{BUCKET}.s3.{REGION}.amazonaws.com",
        "OriginPath": path,
        "CustomHeaders": {"Quantity": 1, "Items": [{"HeaderName": "X-Origin", "HeaderValue": "hunter2"}]},
        "S3OriginConfig": {"OriginAccessIdentity": ""},
    }
    return {
        "CallerReference": "infrastructure",
        "DefaultRootObject": "index.html",
        "Origins": {"Quantity": 1, "Items": [origin]},
        "DefaultCacheBehavior": {"TargetOriginId": "bucket", "ViewerProtocolPolicy": "redirect-to-https"},
        "Comment": "the shop's pages",
        "Enabled": True,
    }
