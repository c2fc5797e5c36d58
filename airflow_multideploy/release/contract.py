"""What a platform is: the documents that pass between a release and a platform, and the adapter's contract.

A platform holds no state of its own between calls: everything that a later call on another machine needs is in
the `Snapshot` and the `Handle`, both JSON. ``deploy`` and ``rollback`` write and return at once; waiting is done
elsewhere, once for all platforms.
"""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.errors import MultideployError, PlatformError, SpecError
from airflow_multideploy.secrets import redact


class Document(BaseModel):
    """A frozen, strict JSON document: no unknown keys, and equal after a round trip through JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def dump(self) -> dict[str, Any]:
        """The document as plain JSON types, fit for XCom and the state store."""
        return self.model_dump(mode="json")

    @classmethod
    def load(cls, document: object, *, what: str, remedy: str) -> Self:
        """The document that was kept as JSON.

        :param what: whose document it is and where it was kept.
        :param remedy: what a person does when it cannot be read.
        :raises SpecError: it has another shape; names both, and each problem's path, and shows none of its values.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            said = [f"{'.'.join(map(str, p['loc'])) or '(whole)'}: {p['msg']}" for p in found[:3]]
            raise SpecError(f"{what}: cannot be read: {redact('; '.join(said), 500)}; {remedy}") from None


class Release(Document):
    """One version of a service on its way to one target.

    :param release_id: deterministic id of this rollout (lower-case letters, digits and dashes, starts with a
        letter, at most 20 characters); every write to a platform carries it, so that a retry, and a rollback on
        another machine, recognise it.
    :param image: full image reference, pinned by digest when the digest is known.
    :param digest: ``sha256:…``, or None when it was not resolved.
    :param force: write even when the release is already live.
    :param rollback: an earlier release on demand, in the place of one that somebody does not want.
    """

    service: str
    version: str
    image: str
    digest: str | None = None
    release_id: str
    reason: str = ""
    force: bool = False
    rollback: bool = False


class Snapshot(Document):
    """What ran before the first write, enough to restore it.

    :param exists: False when the platform positively says that nothing is there (a first-ever deploy): the way back
        then removes what the release created. What an adapter does not recognise is an existing release; one that it
        could not restore is refused.
    :param revision: the platform's own id of what served, None when there was none or it cannot be known.
    :param image: the image that served, when the platform tells.
    :param data: the platform's private restore document (no secrets).
    """

    exists: bool
    revision: str | None = None
    image: str | None = None
    data: dict[str, JsonValue] = Field(default_factory=dict)


class Handle(Document):
    """What ``deploy`` or ``rollback`` did: all that ``observe`` needs to judge it.

    :param action: which of the two.
    :param revision: the revision that must serve for the action to count as done; None when the platform has none
        (a removed target, an API that tells nothing).
    :param changed: False when nothing had to be written (already live, already back).
    :param data: the platform's private document (operation name, ids; no secrets).
    """

    action: Literal["deploy", "rollback"]
    revision: str | None = None
    changed: bool = True
    data: dict[str, JsonValue] = Field(default_factory=dict)


class State(StrEnum):
    """How a rollout looks at one moment."""

    PROGRESSING = "progressing"
    HEALTHY = "healthy"
    """The handle's revision is what serves, and it is well."""
    FAILED = "failed"
    """The platform says that it will not get there."""
    SUPERSEDED = "superseded"
    """Somebody else's revision replaced ours."""
    UNKNOWN = "unknown"
    """The platform answered, but its answer does not tell."""


class Observation(Document):
    """One look at a rollout.

    :param reason: in the platform's own words, as far as they are no secret and no novel.
    :param revision: what serves now, when known.
    :param progress: 0.0 to 1.0, when the platform tells.
    :param verified: False when ``healthy`` rests on the platform's acceptance alone, because it offers no way to look.
    """

    state: State
    reason: Annotated[str, AfterValidator(redact)] = ""
    revision: str | None = None
    progress: float | None = None
    verified: bool = True

    @property
    def ended(self) -> bool:
        """Whether another look cannot change it."""
        return self.state in (State.HEALTHY, State.FAILED, State.SUPERSEDED)


class Capabilities(Document):
    """What a platform can do, as ``airflow multideploy platforms`` lists it.

    :param snapshot: what the snapshot holds.
    :param early_failure: whether a failing rollout is seen before its deadline, and by what.
    :param restores: what a rollback brings back, and what it does not.
    :param tested_against: the servers that the conformance suite ran against.
    """

    snapshot: str
    early_failure: str
    restores: str
    tested_against: str
    asynchronous: bool = True


C = TypeVar("C", bound=TargetConfig)


class Manual(Document):
    """What a person has to know before the first release to a platform: with `Capabilities` and the documented config,
    its whole page, which ``airflow multideploy platforms --docs FOLDER`` writes.

    :param connection: type of the Airflow Connection, and what goes where in it.
    :param protocol: what is read and written for a release, and for the way back, in order.
    :param permissions: the smallest policy, role or set of rights that is enough.
    :param not_undone: what a rollback leaves as the release made it.
    :param example: a target of the catalog, as YAML.
    :param extra: of this distribution, which installs the SDK; empty: none is needed.
    """

    connection: str
    protocol: str
    permissions: str
    not_undone: str
    example: str
    extra: str = ""


class Platform(ABC, Generic[C]):
    """One target on one platform. Subclass it in one file, and name that class in the entry point group
    ``airflow_multideploy.platforms``.

    Methods may be called in any process, any number of times: each is idempotent for one ``release_id``.

    :param config: the target's typed entry of the catalog.
    :param service: name of the service, for messages and tags.
    :param target: name of the target within the service.
    """

    kind: ClassVar[str]
    config_type: ClassVar[type[TargetConfig]]
    capabilities: ClassVar[Capabilities]
    manual: ClassVar[Manual | None] = None

    def __init__(self, config: C, *, service: str, target: str) -> None:
        self.config = config
        self.service = service
        self.target = target

    @property
    def name(self) -> str:
        """``service/target``, as messages name it."""
        return f"{self.service}/{self.target}"

    def error(self, message: str, *, retryable: bool = False, retry_after: float | None = None) -> PlatformError:
        """A `PlatformError` that names this target."""
        return PlatformError(message, target=self.name, retryable=retryable, retry_after=retry_after)

    @contextmanager
    def understanding(self) -> Iterator[None]:
        """Whatever a platform's document makes the block stumble over comes out as a `PlatformError` of this target.

        Retryable, because a proxy's page or a cut-off answer passes. It names where we stumbled, and neither the
        document's words nor the cause, which may hold anybody's secrets.
        """
        try:
            yield
        except MultideployError:
            raise
        except Exception as error:  # noqa: BLE001 - an SDK raises anything about a body that it does not understand
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{type(error).__name__} in {PurePath(at.filename).name}, line {at.lineno}"
            raise self.error(f"a document is not what the platform's API promises ({where})", retryable=True) from None

    @abstractmethod
    def snapshot(self, previous: Release | None = None) -> Snapshot:
        """What runs now. Reads only.

        :param previous: the release that the journal last saw live here; for platforms that cannot be asked.
        :raises PlatformError: the platform refuses or does not answer.
        """

    @abstractmethod
    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """Start the rollout and return at once.

        Writes nothing, and says ``changed=False``, when the release is already live and healthy (unless
        ``release.force``) or when an earlier attempt with this ``release_id`` already wrote (then it returns that
        attempt's handle with ``changed=True``).

        :raises PlatformError: refused, or no answer. After a retryable one the same call is made again.
        :raises Drift: live state is neither the snapshot nor this release, and the release does not force.
        """

    @abstractmethod
    def observe(self, handle: Handle) -> Observation:
        """One look. Writes nothing.

        :raises PlatformError: the platform refuses or does not answer.
        """

    @abstractmethod
    async def aobserve(self, handle: Handle) -> Observation:
        """As `observe`, for the triggerer: native async I/O, the same judgement."""

    @abstractmethod
    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """Start the way back to the snapshot and return at once; ``observe`` of the returned handle verifies it.

        Nothing is removed or stopped that this release did not create. Not called for a first-ever release that the
        config leaves in place.

        :param handle: what ``deploy`` returned, or None when its answer was lost: then what is live and carries
            ``release.release_id`` is ours.
        :raises Drift: live state is neither ours nor the snapshot; nothing was written.
        :raises PlatformError: refused, or no answer.
        """

    def console_url(self, handle: Handle | None = None) -> str | None:
        """Where a person looks at this target in the platform's console, or None."""
        return None
