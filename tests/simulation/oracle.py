"""What a release's status has to be, from what the platforms hold in the end: by the table of the statuses alone.

It shares no code with `airflow_multideploy.core`. It reads no verdict, and of the journals only which writes were
announced. Where a process died, or a person stopped the run, more than one answer can be true: it gives all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from tests.simulation.play import Step, Story, selected
from tests.simulation.runs import Run
from tests.simulation.schedules import GRAPHS, deploy_task, rollback_task

Outcomes = dict[str, str]
"""By target: ``good``, ``failed``, ``unknown``, ``never`` (it waited for one that failed), ``skip`` (not counted)."""


class Oracle:
    """One run of a story."""

    def __init__(self, story: Story, run: Run) -> None:
        self.story, self.run = story, run
        self.schedule = story.schedule
        self.steps = self._own()
        self.targets = self.schedule.targets
        self.selected = tuple(run.conf["targets"])
        self.graph = GRAPHS[self.schedule.graph]

    def _own(self) -> list[Step]:
        marks = self.story.marks
        begin = marks[self.run.run_id]
        later = [mark for name, mark in marks.items() if mark > begin and name != "clear" and "over" not in name]
        mine = ("", self.run.run_id)
        return [step for step in self.story.steps[begin : min(later, default=None)] if step.run in mine]

    def of(self, target: str, what: str | None = None) -> list[Step]:
        """What happened on a target in this run."""
        return [s for s in self.steps if s.target == target and what in (None, s.what)]

    def troubled(self, task: str) -> bool:
        """Whether its process died or was killed, so that what it saw may not have been said."""
        return (
            self.run.cancelled
            or self.run.clear_number > 0
            or any(trouble.task == task for trouble in self.schedule.troubles)
        )

    def touched(self) -> Iterator[set[str]]:
        """Where a write was announced, and the platform did not answer that it had nothing to write.

        Where all attempts were told so, and one was thought dead, whether it counts depends on who was heard last.
        """
        ways = []
        for target in self.selected:
            counts = self._touched(target)
            wrote = any(step.what == "wrote" and step.run == self.run.run_id for step in self.of(target))
            ways.append((True, False) if counts and not wrote and self.troubled(deploy_task(target)) else (counts,))
        for way in itertools.product(*ways):
            yield {target for target, counts in zip(self.selected, way, strict=True) if counts}

    def _touched(self, target: str) -> bool:
        if self._resolved(target):
            return False
        sure = announced = back = False
        changed = True
        for step in self.of(target):
            if step.what == "answered":
                changed = step.value
            elif step.what != "journal" or step.value["run_id"] != self.run.run_id:
                continue
            elif step.value["phase"] == "rolled_back":
                back = True
            elif step.value["phase"] == "deploying":  # once more: nobody knows what became of the one before
                sure, announced, changed, back = (sure or announced) and not back, True, True, False
            elif step.value["phase"] == "verifying":
                sure, announced = sure or changed, False
        return sure or announced

    def _resolved(self, target: str) -> bool:
        """Whether it was cleared, and skipped this time, and nothing of what was there before is left."""
        skipped = self.run.tasks[deploy_task(target)].state == "skipped" and not self.run.stopped
        live, well = self.story.ends[self.run.run_id][target]
        gone = live == self.goal(target) or self._stays(target)
        return skipped and self.run.clear_number > 0 and well and gone

    def outcomes(self) -> Iterator[Outcomes]:
        """How the deploys may have ended, each way that can be argued."""
        ways = [self._outcome(target) for target in self.targets]
        for combination in itertools.product(*ways):
            outcomes = dict(zip(self.targets, combination, strict=True))
            waited = [target for target in self.targets if outcomes[target] == "waited"]
            for target in waited:  # in the order of their dependencies
                outcomes[target] = self._waited(target, outcomes)
            yield outcomes
            for target in waited:  # what it waited for may have looked otherwise then
                if any(self.troubled(deploy_task(other)) for other in self.targets):
                    yield {**outcomes, target: "never"}

    def _outcome(self, target: str) -> tuple[str, ...]:  # noqa: PLR0911 - a table
        if target not in self.selected:
            return ("skip",)
        task = self.run.tasks[deploy_task(target)]
        if task.state == "success":
            return ("failed",) if self._gone(target) else ("good",)
        if self._resolved(target):  # of a look that was cut short before, it may still say that it cannot tell
            return ("waited", "unknown") if self.of(target, "deploy:before") else ("waited",)
        if not self.of(target, "snapshot") and not self.of(target, "deploy:before"):
            if task.state == "skipped":
                return ("waited",) if "running" in task.came else ("never",)
            return ("failed", "waited") if self.troubled(task.name) else ("failed",)
        seen = [step.value[1] for step in self.of(target, "seen") if step.value[0] == "deploy"]
        last = seen[-1] if seen else None
        if self.troubled(task.name):
            return ("good", "failed", "unknown") if last == "healthy" else ("failed", "unknown")
        sure = {"healthy": "failed", "failed": "failed", "superseded": "failed", "unknown": "unknown"}
        return (sure[last],) if last in sure else ("failed", "unknown")

    def _gone(self, target: str) -> bool:
        """Whether it went back before others were cleared, and was not released again."""
        begin = self.story.marks[self.run.run_id]
        before = self.story.marks.get("clear", 0) - begin
        phases = [
            (at, step.value["phase"])
            for at, step in enumerate(self.story.steps[begin:])
            if step.target == target and step.what == "journal" and step.value["run_id"] == self.run.run_id
        ]
        back = [at for at, phase in phases if phase == "rolled_back" and at < before]
        return bool(back) and not any(phase == "deploying" and at > back[-1] for at, phase in phases)

    def _waited(self, target: str, outcomes: Mapping[str, str]) -> str:
        for edge in self.graph[target]:
            name, when = (edge, "succeeded") if isinstance(edge, str) else (edge["target"], edge["when"])
            if name in self.selected and when == "succeeded" and outcomes[name] in ("failed", "unknown", "never"):
                return "never"
        return "skip"

    def met(self, outcomes: Outcomes) -> bool:
        """Whether the policy is."""
        counting = {target: outcome for target, outcome in outcomes.items() if outcome != "skip"}
        marks = {target: self.schedule.of(self.schedule.marks, target, None) for target in self.targets}
        if self.schedule.policy == "critical" and all(mark is False for mark in marks.values()):
            marks[self.targets[0]] = None
        any_marked = any(mark is True for mark in marks.values())
        critical = {t for t, mark in marks.items() if (mark is True if any_marked else mark is not False)}
        good = {target for target, outcome in counting.items() if outcome == "good"}
        if self.schedule.policy == "at_least":
            return len(good) >= (selected(self.schedule) + 1) // 2 and (
                not any_marked or critical & counting.keys() <= good
            )
        if self.schedule.policy == "critical" and critical & counting.keys():
            return critical & counting.keys() <= good
        return counting.keys() <= good

    def restore(self, outcomes: Outcomes, touched: set[str], *, cancelled: bool) -> set[str]:
        """What has to go back."""
        touched = {target for target in touched if not self._stays(target)}
        failed = {target for target, outcome in outcomes.items() if outcome not in ("good", "skip")}
        if cancelled:
            return set() if self.schedule.keep else touched
        if self.schedule.strategy == "none" or (self.schedule.strategy == "manual" and self.met(outcomes)):
            return set()  # with manual, nobody answers here: all go back by default
        if self.met(outcomes) or self.schedule.strategy == "failed":
            return failed & touched
        return self._above(failed) & touched if self.schedule.strategy == "dependents" else touched

    def _above(self, targets: set[str]) -> set[str]:
        found = set(targets)
        for name, edges in self.graph.items():
            if any((edge if isinstance(edge, str) else edge["target"]) in found for edge in edges):
                found.add(name)
        return found

    def back(self, target: str) -> tuple[bool, ...]:
        """Whether it may count as verified back."""
        live, well = self.story.ends[self.run.run_id][target]
        if not well or live != self.goal(target):
            return (False,)
        if self.run.tasks[rollback_task(target)].state == "success":
            return (True,)
        return (True, False) if self._verified(target) else (False,)

    def goal(self, target: str) -> str | None:
        """What ran before this run, or before an earlier one that nobody answered for.

        A target that was none of the run's business any more when tasks were cleared begins anew, from what ran then.
        """
        mark, cleared = self.story.marks[self.run.run_id], self.story.marks.get("clear", 0)
        start = mark
        earlier = [at for name, at in self.story.marks.items() if name.startswith("run") and "over" not in name]
        for at in sorted((at for at in earlier if at < mark), reverse=True):
            if not self._doubt(target, start):
                break
            start = at
        if cleared > mark and self._let_go(target, cleared):
            start = cleared
        first = next((s for s in self.story.steps[start:] if s.target == target), None)
        if first is None:  # nothing has happened there since
            return next((s.live for s in reversed(self.story.steps[:start]) if s.target == target), None)
        return first.value[0] if first.what == "wrote" else first.live

    def _let_go(self, target: str, mark: int) -> bool:
        kept = [s.value for s in self.story.steps[:mark] if s.target == target and s.what == "journal"]
        own = bool(kept) and kept[-1]["run_id"] == self.run.run_id
        return own and kept[-1]["settled"] and not kept[-1]["touched"]

    def _doubt(self, target: str, mark: int) -> bool:
        kept = [s.value for s in self.story.steps[:mark] if s.target == target and s.what == "journal"]
        return bool(kept) and kept[-1]["touched"] and not kept[-1]["settled"]

    def _stays(self, target: str) -> bool:
        """Whether nothing was there before, and what is there now is left, whatever becomes of the release."""
        return self.schedule.of(self.schedule.places, target, "old") == "first_left" and self.goal(target) is None

    def _verified(self, target: str) -> bool:
        steps = self.of(target)
        last = max((i for i, step in enumerate(steps) if step.what == "wrote"), default=-1)
        return any(step.what == "seen" and step.value == ("rollback", "healthy") for step in steps[last + 1 :])

    def statuses(self) -> set[str]:
        """Every status that is true."""
        if self.run.tasks["plan"].state != "success":
            return {"not_started"}
        found = set[str]()
        for outcomes in self.outcomes():
            for touched, cancelled in itertools.product(self.touched(), self._cancelled()):
                found.update(self._statuses(outcomes, touched, cancelled=cancelled))
        return found

    def _cancelled(self) -> tuple[bool, ...]:
        """Whether the run counts as stopped: exactly when it was marked failed before its deploys had ended.

        In the moment after the last one both are true; and once tasks are cleared it depends on which.
        """
        if self.run.cancelled and (self.run.clear_number or not self.run.cut):
            return (False, True)
        return (self.run.cancelled,)

    def _in_vain(self, target: str) -> bool:
        return self.run.clear_number > 0 and bool(self.of(target, "rollback:before")) and True not in self.back(target)

    def _statuses(self, outcomes: Outcomes, touched: set[str], *, cancelled: bool) -> Iterator[str]:
        restore = sorted(self.restore(outcomes, touched, cancelled=cancelled))
        left_unknown = any(outcomes[target] == "unknown" for target in set(self.selected).difference(restore))
        met = self.met(outcomes) and not cancelled
        for ways in itertools.product(*(self.back(target) for target in restore)):
            if not all(ways):
                yield "rollback_failed"
                continue
            if any(self._in_vain(target) for target in set(self.selected).difference(restore)):
                yield from ("rollback_failed", "unknown")  # of a way back that was tried before tasks were cleared
            if left_unknown:
                yield "unknown"
            elif met:
                yield "succeeded" if set(outcomes.values()) <= {"good", "skip"} else "degraded"
            elif not touched:
                yield "not_started"
            else:
                gone = {target for target in touched if outcomes[target] != "good"}
                before = {target for target in gone if self.run.clear_number and True in self.back(target)}
                back = before | set(restore)
                yield "rolled_back" if touched == back else "partially_rolled_back" if back else "failed"
