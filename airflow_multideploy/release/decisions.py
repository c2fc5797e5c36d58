"""What decides a run, kept in the record by our own tasks: its plan, what was built for it, who approved what, and what
was judged.

XCom shows the same to people, and others may write it: where the two differ, the record is right.
"""

from __future__ import annotations

from collections.abc import Sequence

from airflow_multideploy.release.contract import Document
from airflow_multideploy.release.journal import D, Store
from airflow_multideploy.release.ledger import Approval
from airflow_multideploy.release.plan import Plan
from airflow_multideploy.release.verdict import Verdict


class Built(Document):
    """The image that was built for a run, or was found built.

    :param image: full reference, pinned by digest when the digest is known.
    """

    image: str
    digest: str | None = None


class _Answers(Document):
    clear: float
    approvals: tuple[Approval, ...]


class Decisions:
    """The decisions of one run, over the `Store` of its service.

    :param release_id: of the run.
    """

    def __init__(self, store: Store, service: str, release_id: str) -> None:
        self._store, self._service, self._id = store, service, release_id

    def plan(self) -> Plan | None:
        """The plan that the run froze, or None.

        :raises SpecError: what is kept is no plan.
        """
        return self._read(Plan, f"plan.{self._id}")

    def keep_plan(self, plan: Plan | None) -> None:
        """Keep the plan; None: this run is being planned, or was refused."""
        self._keep(f"plan.{self._id}", plan)

    def built(self) -> Built | None:
        """What was built, or None.

        :raises SpecError: what is kept says something else.
        """
        return self._read(Built, f"built.{self._id}")

    def keep_built(self, built: Built | None) -> None:
        """Keep what was built; None: nothing yet."""
        self._keep(f"built.{self._id}", built)

    def answers(self, gate: str, clear: float | None = None) -> tuple[Approval, ...]:
        """What was answered at a gate, in order.

        :param gate: id of the task that asked.
        :param clear: only answers since the run's tasks had been cleared so often; None: the last ones, whenever given.
        :raises SpecError: what is kept holds no answers.
        """
        kept = self._read(_Answers, f"approval.{self._id}.{gate}")
        return () if kept is None or clear not in (None, kept.clear) else kept.approvals

    def keep_answers(self, gate: str, approvals: Sequence[Approval], clear: float) -> None:
        """Keep what was answered at a gate so far."""
        self._keep(f"approval.{self._id}.{gate}", _Answers(clear=clear, approvals=tuple(approvals)))

    def verdict(self, task_id: str) -> Verdict | None:
        """The verdict of one of the tasks that judge, or None.

        :raises SpecError: what is kept is none.
        """
        return self._read(Verdict, f"verdict.{self._id}.{task_id}")

    def keep_verdict(self, task_id: str, verdict: Verdict | None) -> None:
        """Keep what a task judged; None: it is about to judge."""
        self._keep(f"verdict.{self._id}.{task_id}", verdict)

    def forget(self, tasks: Sequence[str]) -> None:
        """Forget all of it: nobody goes back to a release of so long ago.

        :param tasks: ids of the tasks that ask or judge in this service's runs.
        """
        keys = [f"{kind}.{self._id}.{task_id}" for kind in ("approval", "verdict") for task_id in tasks]
        for key in (f"plan.{self._id}", f"built.{self._id}", *keys):
            self._store.delete(key)

    def _read(self, kind: type[D], key: str) -> D | None:
        document = self._store.get(key)
        what = f"{self._service}: the record (key {key!r})"
        remedy = f"delete that key of the asset multideploy://{self._service}/journal and release again"
        return None if document is None else kind.load(document, what=what, remedy=remedy)

    def _keep(self, key: str, document: Document | None) -> None:
        if document is not None:
            self._store.set(key, document.dump())
        elif self._store.get(key) is not None:
            self._store.delete(key)
