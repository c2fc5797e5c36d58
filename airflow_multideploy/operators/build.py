"""The build step: makes sure that the release's image is in its registry, and pins it by digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, Connection
from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_multideploy.catalog.service import Artifact, Build
from airflow_multideploy.errors import SpecError
from airflow_multideploy.images import registry
from airflow_multideploy.images.builder import ImageBuilder
from airflow_multideploy.operators.by_hand import model, templated
from airflow_multideploy.operators.run import decisions, pull_plan
from airflow_multideploy.release.decisions import Built
from airflow_multideploy.store.assets import journal_asset

if TYPE_CHECKING:
    from airflow.sdk import Context


class ImageRequest(BaseModel):
    """What the build step is asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    version: str
    build: Build | None = None
    registry_conn_id: str | None = None


class ImageResult(BaseModel):
    """What the build step hands on.

    :param image: ``host/path@sha256:…``, or ``host/path:version`` when no registry could be asked.
    :param digest: ``sha256:…``, or None when no registry could be asked.
    :param built: whether the image was built and pushed by this task.
    :param skipped_reason: why not.
    """

    image: str
    digest: str | None = None
    built: bool = False
    skipped_reason: str | None = None


def request_of_plan(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The build step's arguments out of what the plan task pushed (keys ``service`` and ``release``).

    :raises SpecError: it is no plan.
    """
    try:
        service, release = plan["service"], plan["release"]
        return {
            "image": service["artifact"]["image"],
            "registry_conn_id": service["artifact"].get("registry_conn_id"),
            "build": service.get("build"),
            "version": release["version"],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise SpecError(
            f"the plan task pushed no plan that can be built from: {error!r} is missing or wrong"
        ) from error


def make_image(request: ImageRequest, builder: ImageBuilder | None, conn: Connection | None) -> ImageResult:
    """Build and push unless the tag is already in the registry; the image, pinned by digest.

    :param builder: None: nothing is built, the tag has to be there.
    :raises BuildFailed: the image is not in its registry afterwards.
    """
    if builder is None:
        if conn is None:
            reason = "the service has no 'build' and no 'registry_conn_id'; the tag was not resolved"
            return ImageResult(image=f"{request.image}:{request.version}", skipped_reason=reason)
        digest = registry.resolve(request.image, request.version, conn)
        return ImageResult(
            image=f"{request.image}@{digest}", digest=digest, skipped_reason="the service has no 'build'"
        )
    if found := registry.find(request.image, request.version, conn):
        reason = f"{request.image}:{request.version} is already in the registry"
        return ImageResult(image=f"{request.image}@{found}", digest=found, skipped_reason=reason)
    digest = builder.run()
    return ImageResult(image=f"{request.image}@{digest}", digest=digest, built=True)


class BuildImageOperator(BaseOperator):
    """Builds an image on the worker and pushes it, unless its tag is already in the registry.

    Pushes ``{"image": "host/path@sha256:…", "digest": …, "built": …, "skipped_reason": …}`` as its return value.
    Idempotent: a retry after a lost answer finds the pushed tag. A pushed image is never removed.

    :param image: repository without tag; without a host it lives in the registry that the Connection's host names.
    :param version: the tag.
    :param build: fields of `airflow_multideploy.catalog.service.Build`; None: only resolve the tag.
    :param registry_conn_id: Connection with host, login and password of the registry; None: anonymous.
    :param plan_task_id: take the four above from what this task pushed, instead of from the arguments.
    :param service_name: take them from the record of this service instead, where ``plan_task_id`` froze them, and keep
        there what was built.
    :raises SpecError: an argument is not what it has to be; nothing was run.
    :raises BuildFailed: with the last lines of the builder's own output, or what the registry said.
    """

    template_fields: Sequence[str] = ("image", "version", "build", "registry_conn_id", "plan_task_id")
    ui_color = "#d9e8f5"

    def __init__(
        self,
        *,
        image: str | None = None,
        version: str | None = None,
        build: Mapping[str, Any] | None = None,
        registry_conn_id: str | None = None,
        plan_task_id: str | None = None,
        service_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if plan_task_id is None and (image is None or version is None):
            raise ValueError(f"{self.task_id}: give image and version, or plan_task_id")
        if plan_task_id is None and not templated(image):
            model(self.task_id, Artifact, {"image": image})
        self.image = image
        self.version = version
        self.build = build
        self.registry_conn_id = registry_conn_id
        self.plan_task_id = plan_task_id
        self.service_name = service_name
        if service_name is not None:
            self.inlets = [*self.inlets, journal_asset(service_name)]
        self._builder: ImageBuilder | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Make sure that the image is there; its reference and digest, see the class."""
        kept = None if self.service_name is None else decisions(context, self.service_name)
        if kept is not None:
            kept.keep_built(None)
        plan = self._plan(context)
        result = self._settled(plan)
        result = self._made(plan) if result is None else result
        self.log.info("%s: %s", result.image, result.skipped_reason or "built and pushed")
        if kept is not None:
            kept.keep_built(Built(image=result.image, digest=result.digest))
        return result.model_dump(mode="json")

    def _made(self, plan: Any) -> ImageResult:
        request = self._request(plan)
        conn = Connection.get(request.registry_conn_id) if request.registry_conn_id else None
        target = registry.connect(request.image, conn)
        registry.check_version(request.version)
        request = request.model_copy(update={"image": target.repository.name})
        if target.known:
            from airflow.sdk.log import mask_secret

            mask_secret(target.password)
            mask_secret(target.basic())
        if request.build is not None:
            self._builder = ImageBuilder(request.build, target, version=request.version, log=self.log.info)
        return make_image(request, self._builder, conn)

    def on_kill(self) -> None:
        """Kill the builder with all its processes."""
        if self._builder is not None:
            self._builder.cancel()

    def _plan(self, context: Context) -> Any:
        """The plan as JSON; None without one."""
        if self.plan_task_id is None:
            return None
        if self.service_name is None:
            return context["ti"].xcom_pull(task_ids=self.plan_task_id, map_indexes=-1)
        plan = pull_plan(context, self.service_name, self.plan_task_id, strict=True)
        return None if plan is None else plan.dump()

    def _settled(self, plan: Any) -> ImageResult | None:
        """What is released where there is nothing to build: in a dry run, and where the plan has the image already."""
        release = plan.get("release") if isinstance(plan, Mapping) else None
        if not release or not (plan.get("dry_run") or plan.get("rollback") or release.get("digest")):
            return None
        reason = "dry run: nothing is built" if plan.get("dry_run") else "it was built before"
        return ImageResult(image=release["image"], digest=release.get("digest"), skipped_reason=reason)

    def _request(self, plan: Any) -> ImageRequest:
        if self.plan_task_id is None:
            document = {
                "image": self.image,
                "version": self.version,
                "build": self.build,
                "registry_conn_id": self.registry_conn_id,
            }
        else:
            document = request_of_plan(plan)
        try:
            return ImageRequest.model_validate(document)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
            raise SpecError(problems) from None
