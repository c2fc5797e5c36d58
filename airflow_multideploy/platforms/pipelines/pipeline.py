"""Pipelines of others: how a release is handed to one, and what its runs tell about what is live.

What is live is what the youngest successful run was given; there is nothing else to ask. None of these systems has a
concurrency token: a run's deterministic key is what makes a repeated write harmless, and any run that is not ours, is
younger and succeeded or is under way, is somebody else's change.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import JsonValue

from airflow_multideploy.errors import Drift
from airflow_multideploy.platforms.image_names import completed, inverted, repository_of
from airflow_multideploy.platforms.pipelines.run import DelegateConfig, Run, filled
from airflow_multideploy.platforms.rest import Json, RestPlatform, Steps
from airflow_multideploy.release.contract import Handle, Observation, Release, Snapshot, State
from airflow_multideploy.secrets import secret_paths

STOPPING = 8.0
"""Seconds between two looks at a run that was told to stop."""
D = TypeVar("D", bound=DelegateConfig)


class Delegate(RestPlatform[D]):
    """Base of the platforms that hand a release to another system's pipeline and follow its run."""

    stop_words: ClassVar[str]
    """How a person stops a run there."""

    # --- what a system adds: calls, without decisions ----------------------------------------------------------------

    @abstractmethod
    def _find(self, pipeline: str, key: str) -> Steps[Run | None]:
        """Our run of this key, or None."""

    @abstractmethod
    def _recent(self, pipeline: str) -> Steps[list[Run]]:
        """The latest successful runs, and all that are under way, whoever started them."""

    @abstractmethod
    def _check(self, pipeline: str) -> Steps[None]:
        """Return when the pipeline is there and takes runs.

        :raises PlatformError: it is not, or does not.
        """

    @abstractmethod
    def _submit(self, pipeline: str, key: str, parameters: Json, release: Release) -> Steps[Run]:
        """Start a run; with a key that was used before: that run, and no second one."""

    @abstractmethod
    def _stop(self, run: Run) -> Steps[None]:
        """Tell a run to stop."""

    @abstractmethod
    def _why(self, run: Run) -> Steps[str]:
        """Why a run failed, in the system's words."""

    def _key(self, name: str) -> str:
        """A run's key; the target belongs to it, as all targets of a release share its id."""
        return f"{name}.{self.target}"

    # --- the contract ------------------------------------------------------------------------------------------------

    def snapshot(self, previous: Release | None = None) -> Snapshot:
        """See `Platform.snapshot`. When no successful run is kept any more, it is what the journal says."""
        return self._run(self._snapshot(previous))

    def deploy(self, release: Release, snapshot: Snapshot) -> Handle:
        """See `Platform.deploy`."""
        return self._run(self._deploy(release, snapshot))

    def observe(self, handle: Handle) -> Observation:
        """See `Platform.observe`."""
        return self._run(self._look(handle))

    async def aobserve(self, handle: Handle) -> Observation:
        """See `Platform.aobserve`."""
        return await self._arun(self._look(handle))

    def rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Handle:
        """See `Platform.rollback`. A run of ours that is under way is stopped first, and its end is waited for."""
        return self._run(self._rollback(release, snapshot, handle))

    # --- decisions ---------------------------------------------------------------------------------------------------

    def _snapshot(self, previous: Release | None) -> Steps[Snapshot]:
        for pipeline in self._pipelines():  # a rollback is no time to learn that its pipeline is not there
            yield from self._check(pipeline)
        runs = yield from self._history()
        if busy := next((run for run in runs if run.state == "active"), None):
            raise self.error(
                f"{self.api}: {busy} is still under way: waiting for its end, as what is live is half-deployed; "
                f"if it hangs, {self.stop_words}",
                retryable=True,
            )
        live = self._live(runs, "")
        exists = live is not None and live.pipeline != self.config.pipelines[2]
        parameters: Json | None = dict(live.parameters) if live and exists else None
        if live is None and previous is not None:
            exists, parameters = True, self._filled(previous)
        image = self._image(parameters, previous)
        if any(secret_paths(parameters)):
            parameters = None  # read again from the run itself when they are needed
        return Snapshot(
            exists=exists,
            revision=live.id if live and exists else None,
            image=image,
            data={
                "last": live.id if live else None,
                "key": live.key if live else None,
                "pipeline": live.pipeline if live else None,
                "parameters": parameters,
            },
        )

    def _deploy(self, release: Release, snapshot: Snapshot) -> Steps[Handle]:
        deploys, key = self.config.pipelines[0], self._key(release.release_id)
        mine = yield from self._find(deploys, key)
        if mine is not None:
            return self._handle("deploy", mine, release, over=snapshot.data["last"])
        runs, parameters = (yield from self._history()), self._filled(release)
        live, busy = self._live(runs, release.release_id), [run for run in runs if run.state == "active"]
        if not release.force:
            if live and not busy and live.pipeline != self.config.pipelines[2] and self._same(live, parameters):
                return self._handle("deploy", live, release, changed=False)
            self._check_drift(live, busy, release, snapshot)
        for run in busy:
            if self._rank(run, release.release_id):
                yield from self._halt(run)
        mine = yield from self._submit(deploys, key, parameters, release)
        return self._handle("deploy", mine, release, over=live.id if live else None)

    def _look(self, handle: Handle) -> Steps[Observation]:
        """One look; the same judgement in worker and triggerer."""
        data: dict[str, Any] = handle.data
        run = (yield from self._find(data["pipeline"], data["key"])) if data["key"] else None
        if run is not None and run.state == "active":
            reason = f"{run}: {run.words}".rstrip(": ")
            return Observation(state=State.PROGRESSING, reason=reason, progress=run.progress)
        if run is not None and run.state == "failed":
            why = yield from self._why(run)
            return Observation(state=State.FAILED, reason=f"{run} failed: {why or run.words}".rstrip(": "))
        if run is None and handle.changed:
            gone = f"{self.api} no longer knows run {data['key']}: keep runs for longer than a release takes"
            return Observation(state=State.UNKNOWN, reason=gone)
        runs = yield from self._history()
        if handle.action == "rollback":
            late = yield from self._find(self.config.pipelines[0], self._key(data["of"]))
            runs += [late] if late and late.state == "failed" else []
        return self._judged(handle, run, runs)

    def _judged(self, handle: Handle, run: Run | None, runs: list[Run]) -> Observation:
        """The judgement on a run that succeeded (None: on nothing), by all others that are not older."""
        of = str(handle.data["of"])
        mine = run.id if run else handle.revision
        others = [other for other in runs if other.id not in (mine, handle.data["over"])]
        newest = self._newest([*others, *([run] if run else [])], of)
        if newest is not None and newest != run:
            if newest.state == "active" and self._rank(newest, of) is None:
                return Observation(state=State.PROGRESSING, reason=f"since then {newest} is under way")
            reason = f"since then there is {newest}, which {newest.state}"
            return Observation(state=State.SUPERSEDED, reason=reason, revision=newest.id)
        if run is None:
            said = "no successful run is kept, and none of ours was made"
            return Observation(state=State.HEALTHY, reason=said, verified=bool(handle.data["gone"]))
        return Observation(state=State.HEALTHY, reason=f"{run} succeeded", revision=run.id)

    def _rollback(self, release: Release, snapshot: Snapshot, handle: Handle | None) -> Steps[Handle]:
        of, (deploys, rollbacks, removes) = release.release_id, self.config.pipelines
        wrote: list[Run] = []
        for name in _rollouts(of):
            if found := (yield from self._find(deploys, self._key(name))):
                wrote.append(found)
        back, number = yield from self._last_back(release, rollbacks if snapshot.exists else removes)
        runs = yield from self._history()
        live = self._live(runs, of)
        self._check_drift(live, [run for run in runs if run.state == "active"], release, snapshot)
        for run in wrote:
            if run.state == "active":
                yield from self._halt(run)
        newest = self._newest([*wrote, *([back] if back else []), *([live] if live else [])], of)
        if back is not None and newest == back and back.state != "failed":
            return self._handle("rollback", back, release, gone=not snapshot.exists, over=snapshot.data["last"])
        nothing = not wrote and back is None and not (handle is not None and handle.changed)
        if nothing or (live is not None and newest == live and (self._rank(live, of) or (0, 0))[1] > 0):
            return self._unchanged(live, release, snapshot)
        if not snapshot.exists and removes is None:
            raise self.error(
                "cannot roll back a first-ever deploy: nothing is known to go back to, and no pipeline removes it; "
                "configure one, or first_deploy: leave"
            )
        parameters = (yield from self._restorable(snapshot)) if snapshot.exists else self._filled(release)
        key = self._key(_back(of, number))
        run = yield from self._submit(rollbacks if snapshot.exists else str(removes), key, parameters, release)
        return self._handle("rollback", run, release, gone=not snapshot.exists, over=snapshot.data["last"])

    def _unchanged(self, live: Run | None, release: Release, snapshot: Snapshot) -> Handle:
        gone = not snapshot.exists
        if live is not None:
            return self._handle("rollback", live, release, changed=False, gone=gone)
        data: dict[str, JsonValue] = {"key": None, "pipeline": None, "of": release.release_id, "over": None}
        data["gone"] = gone
        return Handle(action="rollback", changed=False, data=data)

    def _last_back(self, release: Release, pipeline: str | None) -> Steps[tuple[Run | None, int]]:
        """Our latest way back, and the number of the next one: a failed run is gone again under another key."""
        back, number = None, 1
        while pipeline is not None:
            found = yield from self._find(pipeline, self._key(_back(release.release_id, number)))
            if found is None:
                break
            back, number = found, number + 1
        return back, number

    def _restorable(self, snapshot: Snapshot) -> Steps[Json]:
        parameters: Any = snapshot.data["parameters"]
        if parameters is None:
            pipeline, key = str(snapshot.data["pipeline"]), str(snapshot.data["key"])
            before = yield from self._find(pipeline, key)
            if before is None:
                raise self.error(
                    f"cannot roll back: run {key} of {pipeline} is gone, and some of its parameters look like secrets, "
                    "so they were not kept; start the run that is wanted by hand"
                )
            parameters = before.parameters
        return dict(parameters)

    def _halt(self, run: Run) -> Steps[None]:
        """Return when it has ended.

        :raises PlatformError: it was told to stop and has not yet: call again.
        """
        if not run.stopping:
            yield from self._stop(run)
        seen = yield from self._find(run.pipeline, run.key)
        if seen is not None and seen.state == "active":
            raise self.error(
                f"{self.api}: {seen} was told to stop and has not ended yet ({seen.words}); nothing else is started "
                f"before; if it hangs, {self.stop_words}",
                retryable=True,
                retry_after=STOPPING,
            )

    # --- runs --------------------------------------------------------------------------------------------------------

    def _history(self) -> Steps[list[Run]]:
        runs: dict[str, Run] = {}
        for pipeline in self._pipelines():
            for run in (yield from self._recent(pipeline)):
                if all(run.parameters.get(name) == value for name, value in self.config.scope.items()):
                    runs[run.id] = run
        return list(runs.values())

    def _pipelines(self) -> list[str]:
        return list(dict.fromkeys(name for name in self.config.pipelines if name is not None))

    def _live(self, runs: list[Run], of: str) -> Run | None:
        """The youngest successful run: what it was given is live."""
        return self._newest([run for run in runs if run.state == "succeeded"], of)

    def _newest(self, runs: Iterable[Run], of: str) -> Run | None:
        """The youngest; of those that began at the same time somebody else's, or the last step of one release."""

        def age(run: Run) -> tuple[float, bool, tuple[int, int]]:
            return run.since, self._rank(run, of) is None, self._rank(run, None) or (0, 0)

        return max(runs, key=age, default=None)

    def _rank(self, run: Run, of: str | None) -> tuple[int, int] | None:
        """Its place among this release's runs (None: any release's), rollout and way back; None: it is none of them."""
        before, after = (re.escape(text) for text in self._key("|").split("|"))
        whose = r"\w+" if of is None else re.escape(of.partition("-")[0])
        match = re.fullmatch(rf"{before}{whose}(?:-(\d+))?(?:-back(\d*))?{after}", run.key) if whose else None
        if match is None:
            return None
        return int(match[1] or 1), 0 if match[2] is None else int(match[2] or 1)

    def _check_drift(self, live: Run | None, busy: list[Run], release: Release, snapshot: Snapshot) -> None:
        strangers = [run for run in busy if self._rank(run, release.release_id) is None]
        if live and live.id != snapshot.data["last"] and self._rank(live, release.release_id) is None:
            strangers.append(live)
        if strangers:
            raise Drift(
                f"{self.api}: {strangers[0]} is neither this release's nor what ran before it "
                f"({snapshot.data['key'] or 'nothing'}): somebody else deploys here; nothing was touched; look at it, "
                "then decide what is to run",
                target=self.name,
            )

    def _filled(self, release: Release) -> Json:
        parameters: Any = filled(self.config.given, release)
        return dict(parameters)

    def _same(self, live: Run, parameters: Json) -> bool:
        """Whether a run deployed the same, whoever started it and why."""
        for name, wanted in parameters.items():
            ours = re.search(r"\$\{?(release_id|reason)\b", str(self.config.given[name]))
            if not ours and live.parameters.get(name) != wanted:
                return False
        return True

    def _image(self, parameters: Json | None, previous: Release | None) -> str | None:
        values: dict[str, str] = {}
        for name, text in self.config.given.items():
            given = (parameters or {}).get(name)
            if isinstance(text, str) and isinstance(given, str):
                values = {**inverted(text, given), **values}
        return completed(values, repository_of(previous.image) if previous else "").get("image")

    def _handle(
        self,
        action: Literal["deploy", "rollback"],
        run: Run,
        release: Release,
        *,
        changed: bool = True,
        gone: bool = False,
        over: JsonValue = None,
    ) -> Handle:
        """The handle of a run; ``over`` one that was known to be there before it."""
        data: dict[str, JsonValue] = {"key": run.key, "pipeline": run.pipeline, "of": release.release_id}
        data |= {"gone": gone, "over": over}
        return Handle(action=action, revision=run.id, changed=changed, data=data)


def _rollouts(of: str) -> list[str]:
    """The ids of this rollout and of those before it in the same run, the first one first."""
    first, _, number = of.partition("-")
    return [first, *(f"{first}-{n}" for n in range(2, int(number) + 1))] if number.isdecimal() else [of]


def _back(of: str, number: int) -> str:
    return f"{of}-back" + (str(number) if number > 1 else "")
