"""What is told of a release that ended well: by the event of its service's asset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_multideploy.release.contract import Document
from airflow_multideploy.release.journal import GOOD, Journal, Phase
from airflow_multideploy.release.status import Status


class Released(Document):
    """A release that ended well; the ``extra`` of an asset's event.

    :param image: with the digest, where it is known.
    :param targets: where the rollout on each target ended.
    :param left_out: targets that the run was not asked for.
    :param rollback: an earlier release was released again.
    :param at: epoch seconds of the event, as Airflow keeps it.
    """

    service: str
    environment: str | None = None
    status: Status
    version: str
    image: str
    digest: str | None = None
    dag_id: str
    run_id: str
    release_id: str
    reason: str = ""
    targets: dict[str, Phase]
    left_out: tuple[str, ...] = ()
    rollback: bool = False
    at: float = 0.0

    @property
    def said(self) -> str:
        """Where a promoted release comes from, as its reason."""
        return f"promoted from {self.service}, run {self.run_id}" + (f": {self.reason}" if self.reason else "")

    def unfit(self, *, degraded: bool) -> str:
        """Why it is not promoted; an empty text when it is.

        :param degraded: whether one is that not every target took.
        """
        if self.rollback:
            return "a rollback is not promoted"
        if self.status is not Status.SUCCEEDED and not degraded:
            return f"is {self.status}, which is promoted only with promote.degraded"
        return ""

    def image_in(self, repository: str) -> str:
        """The reference of the same bits for a service whose images are in this repository."""
        mine = self.image.partition("@")[0] if self.digest else self.image.rpartition(":")[0]
        if mine == repository or mine.endswith(f"/{repository}"):
            return self.image
        return f"{repository}@{self.digest}" if self.digest else f"{repository}:{self.version}"

    def verified(self) -> tuple[str, ...]:
        """Targets that run it, and were seen to."""
        return tuple(target for target, phase in self.targets.items() if phase in GOOD)

    def of(self, target: str) -> dict[str, Any]:
        """What the event of one target's asset says."""
        document = self.dump()
        for key in ("targets", "left_out"):
            del document[key]
        return {**document, "target": target, "status": str(self.targets[target])}

    def gone(self, journals: Mapping[str, Journal]) -> list[str]:
        """Why this is no longer what the service runs, target by target; empty while it is.

        :param journals: of all of its targets.
        """
        found = []
        for target in (*self.verified(), *self.left_out):
            live, entry = journals[target].live(), journals[target].read()
            if live is None or live.image != self.image:
                found.append(f"{self.service}/{target} runs {live.version if live else 'something unknown'}")
            elif entry is not None and entry.unsettled and entry.release.image != self.image:
                found.append(f"{self.service}/{target} is being released: {entry.release.version}")
        return found
