"""Static sites in an S3 bucket behind CloudFront: config, adapter and operator.

Whoever builds the site uploads each release into a folder of its own, which nobody changes afterwards. A release leads
the distribution to that folder (its origin's ``OriginPath``), so that all files change at once, and the way back leads
it to the old folder, whose files were never touched. Nothing is copied.

CloudFront keeps answers by their address, not by the folder they came from: what its edges hold is invalidated once
they all know the new folder. That is a second write after some waiting, so ``deploy`` and ``rollback`` ask to be called
again until the first has spread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from airflow_multideploy import addresses
from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.aws import code_of
from airflow_multideploy.errors import Drift, PlatformError
from airflow_multideploy.platforms.artifact import Located, located
from airflow_multideploy.platforms.aws.calls import AwsConfig, AwsPlatform, Json, Steps
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, Release, Snapshot, State
from airflow_multideploy.secrets import MOST_READ, redact

PATIENCE = 4.0
"""Seconds that one call waits for CloudFront's edges."""
AGAIN = 60.0
"""Seconds until the next call, when they were not done; they take minutes."""


def _folder(path: str) -> str:
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError("a folder starts with / and does not end with one")
    if not re.search(r"\$\{?(version|release_id|digest)\b", path):
        raise ValueError("is the same folder for each release; put ${version} into it")
    return path


class AwsS3SiteConfig(AwsConfig):
    """One static site: a CloudFront distribution with an S3 bucket as origin.

    :param distribution: id of the distribution.
    :param path: folder of a release in the bucket, such as ``/releases/${version}``; it is uploaded before the release
        and never changed after it.
    :param origin: id of the origin within the distribution; None: the only one.
    :param index: file that has to be in the folder of a release.
    :param invalidate: addresses whose cached answers are dropped, with ``*`` at the end only; an empty list drops none
        and saves some minutes, for sites whose pages are not cached.
    :param url: the site's own address, fetched when CloudFront is done: an answer of 4xx is a failed release; None
        takes CloudFront's word.
    """

    platform: Literal["aws_s3_site"] = "aws_s3_site"
    distribution: Annotated[str, Field(min_length=1)]
    path: Annotated[Located, AfterValidator(_folder)]
    origin: Annotated[str, Field(min_length=1)] | None = None
    index: Annotated[str, Field(pattern=r"^[^/].*$")] = "index.html"
    invalidate: Annotated[tuple[Annotated[str, Field(pattern="^/")], ...], Field(strict=False)] = ("/*",)
    url: Annotated[str, AfterValidator(addresses.written)] | None = None


class AwsS3Site(AwsPlatform[AwsS3SiteConfig]):
    """Leads a CloudFront distribution to the folder of a release in its bucket, and back.

    The folder is the release: what is live is this release's when the distribution's origin path is the folder of its
    version. A folder without its index file is refused before anything is written, on the way back as well.

    A site whose origin path leads to no index file counts as never deployed; rolling back the first-ever release leads
    it there again.

    CloudFront takes minutes to spread a change. While it does, the deploy task's worker waits (unless ``invalidate`` is
    empty): ``deploy`` fails with a retryable error until the invalidation could be made.
    """

    kind: ClassVar[str] = "aws_s3_site"
    client_type: ClassVar[str] = "cloudfront"
    answers: ClassVar[Mapping[str, str]] = {
        "get_distribution": "Distribution",
        "update_distribution": "ETag",
        "create_invalidation": "Invalidation",
        "get_invalidation": "Invalidation",
        "s3:head_object": "ETag",
    }
    config_type: ClassVar[type[TargetConfig]] = AwsS3SiteConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="the origin path, and the ETag of the distribution's configuration",
        early_failure="a folder without index file is refused; with `url`, the site's own answer of 4xx",
        restores="the origin path, and so every file as it was; edges drop what they hold of the release",
        tested_against="a simulator held to botocore's service models",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="aws",
        connection="Type `aws`: access key and secret, or a role to assume (`role_arn` in extra), and `region_name`.",
        protocol="""
1. `GetDistribution`: the origin path that is live. Changed by somebody else since the snapshot: refused.
2. `HeadObject`: the index file of the release's folder.
3. `UpdateDistribution` with the same configuration, the new origin path, and `If-Match` with its ETag.
4. When the distribution's status is `Deployed`: `CreateInvalidation`, with the release id in its reference, so that a
   retry makes no second one.
5. Healthy when the distribution is `Deployed` with this path, the invalidation is `Completed`, and the site answers at
   `url`.

Back: the same with the snapshot's origin path.""",
        permissions="""
```json
{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Effect": "Allow",
      "Action": [
        "cloudfront:GetDistribution", "cloudfront:UpdateDistribution", "cloudfront:CreateInvalidation",
        "cloudfront:GetInvalidation"
      ],
      "Resource": "arn:aws:cloudfront::ACCOUNT:distribution/ID"
    },
    {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::BUCKET/*"},
    {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::BUCKET"}
  ]
}
```

Without `s3:ListBucket` a missing file is told as `403 Forbidden`.""",
        not_undone="The release's folder stays in the bucket. What browsers keep by the site's own `Cache-Control`, no "
        "invalidation reaches.",
        example="site: {platform: aws_s3_site, conn_id: aws_prod, distribution: E2QWRUHAPOMQZL, "
        'path: "/releases/${version}"}',
    )

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        return self._run(self._snapshot())

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`; retryable as well until the invalidation could be made."""
        return self._run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        import httpx

        seen = self._run(self._look(handle))
        if self.config.url is None or not _is_asked(handle, seen):
            return seen
        try:
            return answered(seen, httpx.get(self.config.url, timeout=30.0, follow_redirects=True))
        except httpx.HTTPError as error:
            raise self.error(f"GET {self.config.url}: {type(error).__name__}: {error}", retryable=True) from error

    async def aobserve(self, handle: Handle) -> Observation:
        import httpx

        seen = await self._arun(self._look(handle))
        if self.config.url is None or not _is_asked(handle, seen):
            return seen
        try:
            async with httpx.AsyncClient(timeout=30.0, follow_redirects=True) as client:
                return answered(seen, await client.get(self.config.url))
        except httpx.HTTPError as error:
            raise self.error(f"GET {self.config.url}: {type(error).__name__}: {error}", retryable=True) from error

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """See `Platform.rollback`; retryable as well until the invalidation could be made."""
        return self._run(self._rollback(release, snapshot))

    def console_url(self, handle: Handle | None = None) -> str | None:
        return f"https://console.aws.amazon.com/cloudfront/v4/home#/distributions/{self.config.distribution}"

    # --- steps: decisions and calls, without I/O ---------------------------------------------------------------------

    def _distribution(self) -> Steps[tuple[Json, str, str]]:
        """The distribution, its ETag and its origin path.

        https://docs.aws.amazon.com/cloudfront/latest/APIReference/API_GetDistribution.html
        """
        answer = yield "get_distribution", {"Id": self.config.distribution}
        found: Json = answer["Distribution"]
        return found, str(answer["ETag"]), str(self._origin(found["DistributionConfig"]).get("OriginPath", ""))

    def _origin(self, config: Json) -> Json:
        origins: list[Json] = config["Origins"]["Items"]
        fits = [o for o in origins if self.config.origin in (None, o["Id"])]
        if len(fits) != 1:
            names = ", ".join(origin["Id"] for origin in origins)
            raise self.error(f"CloudFront: the distribution has the origins {names}: name one in the target's 'origin'")
        return fits[0]

    def _present(self, found: Json, path: str) -> Steps[bool]:
        """Whether the folder holds its index file.

        https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
        """
        domain = self._origin(found["DistributionConfig"])["DomainName"]
        bucket = re.match(r"(.+?)\.s3[.-]", domain)
        if bucket is None:
            raise self.error(f"CloudFront: the origin {domain} is no S3 bucket")
        try:
            yield "s3:head_object", {"Bucket": bucket[1], "Key": f"{path}/{self.config.index}".lstrip("/")}
        except PlatformError as error:
            if code_of(error) not in ("404", "NoSuchKey"):
                raise
            return False
        return True

    def _snapshot(self) -> Steps[Snapshot]:
        found, tag, path = yield from self._distribution()
        exists = yield from self._present(found, path)
        return Snapshot(exists=exists, revision=path if exists else None, data={"path": path, "etag": tag})

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        found, tag, live = yield from self._distribution()
        path = located(self.config.path, release)
        handle = Handle(action="deploy", revision=path, data={"path": path})
        if live == path == snapshot.data["path"] and not release.force:
            return handle.model_copy(update={"changed": False})
        if live not in (path, snapshot.data["path"]) and not release.force:
            raise self._drift(live, snapshot)
        if live != path:
            tag = yield from self._lead(found, tag, path)
        return (yield from self._dropped(handle, f"{release.release_id}-{tag}"))

    def _lead(self, found: Json, tag: str, path: str) -> Steps[str]:
        """ETag of the distribution that now goes for this folder.

        https://docs.aws.amazon.com/cloudfront/latest/APIReference/API_UpdateDistribution.html
        """
        if not (yield from self._present(found, path)):
            raise self.error(f"S3: {path}/{self.config.index} is not in the bucket; upload the site to {path} first")
        return (yield from self._update(found, tag, path))

    def _update(self, found: Json, tag: str, path: str) -> Steps[str]:
        config = found["DistributionConfig"]
        ours = self._origin(config)
        items = [{**o, "OriginPath": path} if o is ours else o for o in config["Origins"]["Items"]]
        change = {**config, "Origins": {**config["Origins"], "Items": items}}
        try:
            answer = yield (
                "update_distribution",
                {"Id": self.config.distribution, "IfMatch": tag, "DistributionConfig": change},
            )
        except PlatformError as error:
            if code_of(error) not in ("PreconditionFailed", "InvalidIfMatchVersion"):
                raise
            raise self.error(f"{error}; looking again", retryable=True) from error
        return str(answer["ETag"])

    def _dropped(self, handle: Handle, reference: str) -> Steps[Handle]:
        """The handle, with the invalidation in it; the same reference again gives the same invalidation.

        https://docs.aws.amazon.com/cloudfront/latest/APIReference/API_CreateInvalidation.html
        """
        if not self.config.invalidate:
            return handle
        until = time.monotonic() + PATIENCE
        # Before all edges know the new folder, they would fetch from the old one again what they have dropped.
        while (yield "get_distribution", {"Id": self.config.distribution})["Distribution"]["Status"] != "Deployed":
            if time.monotonic() > until:
                words = f"CloudFront: the edges do not all know {handle.data['path'] or '/'} yet"
                raise self.error(f"{words}; waiting for them", retryable=True, retry_after=AGAIN)
            time.sleep(0.2)
        paths = {"Quantity": len(self.config.invalidate), "Items": list(self.config.invalidate)}
        batch = {"Paths": paths, "CallerReference": reference}
        asked = {"DistributionId": self.config.distribution, "InvalidationBatch": batch}
        try:
            answer = yield "create_invalidation", asked
        except PlatformError as error:
            if code_of(error) != "TooManyInvalidationsInProgress":
                raise
            raise self.error(f"{error}; waiting for their end", retryable=True, retry_after=AGAIN) from error
        return handle.model_copy(update={"data": {**handle.data, "invalidation": answer["Invalidation"]["Id"]}})

    def _look(self, handle: Handle) -> Steps[Observation]:
        found, _, live = yield from self._distribution()
        invalidation: Json | None = None
        if known := handle.data.get("invalidation"):
            # https://docs.aws.amazon.com/cloudfront/latest/APIReference/API_GetInvalidation.html
            answer = yield "get_invalidation", {"DistributionId": self.config.distribution, "Id": known}
            invalidation = answer["Invalidation"]
        return judge(handle, found, live, invalidation)

    def _rollback(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        found, tag, live = yield from self._distribution()
        path = str(snapshot.data["path"])
        back = Handle(action="rollback", revision=snapshot.revision, changed=False, data={"path": path})
        if live == path and tag == snapshot.data["etag"]:
            return back
        if live not in (path, located(self.config.path, release)):
            raise self._drift(live, snapshot)
        if live != path:
            tag = yield from (self._lead if snapshot.exists else self._update)(found, tag, path)
        back = yield from self._dropped(back, f"{release.release_id}-back-{tag}")
        return back.model_copy(update={"changed": True})

    def _drift(self, live: str, snapshot: Snapshot) -> Drift:
        return Drift(
            f"CloudFront: distribution {self.config.distribution} goes for {live or '/'}, which is neither "
            f"{snapshot.data['path'] or '/'} nor this release's folder: somebody else changed it; nothing was written. "
            "Check it, then release again",
            target=self.name,
        )


def judge(handle: Handle, found: Json, live: str, invalidation: Json | None) -> Observation:
    """How an action looks in these documents.

    :param live: the origin path.
    """
    if live != handle.data["path"]:
        words = f"the distribution goes for {live or '/'}"
        return Observation(state=State.SUPERSEDED, reason=words, revision=live)
    if not found["DistributionConfig"]["Enabled"]:
        return Observation(state=State.FAILED, reason="the distribution is disabled", revision=live)
    if found["Status"] != "Deployed":
        return Observation(state=State.PROGRESSING, reason=f"distribution {found['Status']}", revision=live)
    if invalidation is not None and invalidation["Status"] != "Completed":
        return Observation(state=State.PROGRESSING, reason=f"invalidation {invalidation['Status']}", revision=live)
    return Observation(state=State.HEALTHY, revision=live, progress=1.0)


def _is_asked(handle: Handle, seen: Observation) -> bool:
    """Whether the site has to answer: CloudFront is done, and there is a site."""
    return seen.state is State.HEALTHY and seen.verified and handle.revision is not None


def answered(seen: Observation, answer: Any) -> Observation:
    """What the site's own answer makes of CloudFront's word; a server's trouble (5xx) may pass."""
    if answer.is_success:
        return seen
    state = State.FAILED if answer.status_code < 500 else State.PROGRESSING
    words = f"the site answers {answer.status_code}: {redact(' '.join(answer.text[:MOST_READ].split()), 300)}"
    return seen.model_copy(update={"state": state, "reason": words, "progress": None})
