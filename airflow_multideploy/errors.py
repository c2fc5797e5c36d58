"""The error tree. Every message names the place, what happened in the platform's words, and the next action."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_multideploy.secrets import redact


class MultideployError(Exception):
    """Root of every error that this package raises on purpose."""


class SpecError(MultideployError, ValueError):
    """A catalog, a service or a run's conf is not what it has to be.

    :param problems: one line per problem, each ``path: reason; remedy``. Never holds a secret's value.
    :param service: the service it is about, or None for the catalog as a whole.
    """

    def __init__(self, problems: Sequence[str] | str, *, service: str | None = None) -> None:
        said = (problems,) if isinstance(problems, str) else tuple(problems)
        self.problems: tuple[str, ...] = tuple(map(redact, said))
        self.service = service
        where = redact(f"service {service!r}", 110) + ": " if service is not None else ""
        super().__init__(where + "; ".join(self.problems))


class Unreadable(SpecError):
    """A source did not answer, so nobody knows what it holds, or whether it is there. Another try may get an answer."""


class UnknownPlatform(MultideployError, LookupError):
    """No platform of that kind is installed, or its plugin cannot be loaded."""


class MissingExtra(MultideployError, ImportError):
    """A platform's SDK is not installed; the message names the extra to install."""


class PlatformError(MultideployError):
    """A platform answered with an error, or did not answer.

    :param target: ``service/target`` it is about.
    :param retryable: True when the same call may succeed later (throttling, 5xx, a lost connection);
        False when it cannot heal by itself (authentication, validation, not found).
    :param retry_after: seconds the platform asked to wait, when it did.

    ``no_effect`` is set by a platform that refused a write at its door, so that it certainly changed nothing.
    """

    def __init__(self, message: str, *, target: str, retryable: bool = False, retry_after: float | None = None) -> None:
        self.no_effect = False
        self.target = target
        self.retryable = retryable
        self.retry_after = retry_after
        super().__init__(f"{target}: {redact(message)}")


class Drift(PlatformError):
    """Somebody else changed the target since we last wrote it; nothing was touched."""

    def __init__(self, message: str, *, target: str) -> None:
        super().__init__(message, target=target, retryable=False)


class InDoubt(MultideployError):
    """Another run left an unsettled rollout on this target."""


class KnownBad(MultideployError):
    """The version was rolled back on this target before; deploying it again asks for ``force``."""


class RolloutFailed(MultideployError):
    """A rollout ended, and the target does not run the release."""


class RollbackFailed(MultideployError):
    """A target that should be back on its snapshot is not, or cannot be seen to be."""


class ReleaseFailed(MultideployError):
    """The release as a whole did not reach its policy; the message is the overall status with its reasons."""


class BuildFailed(MultideployError):
    """The image could not be built, pushed or resolved."""
