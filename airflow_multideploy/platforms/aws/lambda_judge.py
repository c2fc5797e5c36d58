"""What the documents of the Lambda API say about a release: pure functions, the same for boto3 and aiobotocore."""

from __future__ import annotations

from typing import Any

from airflow_multideploy.release.contract import Handle, Observation, Release, Snapshot, State
from airflow_multideploy.secrets import redact

Json = dict[str, Any]


def judge(handle: Handle, alias: Json | None, version: Json) -> Observation:
    """How an action looks in these documents.

    :param version: configuration of the handle's version, while the alias points there.
    """
    live = str(alias["FunctionVersion"]) if alias else None
    if failed := handle.data.get("failed"):
        return Observation(state=State.FAILED, reason=str(failed), revision=live)
    if alias is None or handle.revision is None:
        return _judge_absent(handle, live)
    now = led(alias)
    if now["version"] != handle.revision or now["weights"] != handle.data.get("weights", {}):
        words = f"the alias points to {now['version']}, weights {now['weights']}"
        return Observation(state=State.SUPERSEDED, reason=words, revision=live)
    return _judge_version(version, live)


def _judge_absent(handle: Handle, live: str | None) -> Observation:
    """There is no alias, or there is to be none."""
    if live is not None:
        return Observation(state=State.PROGRESSING, reason="the alias is still there", revision=live)
    if handle.revision is None:
        return Observation(state=State.HEALTHY, reason="the alias does not exist, as before the release")
    return Observation(state=State.SUPERSEDED, reason="the alias was removed")


def _judge_version(version: Json, live: str | None) -> Observation:
    if words := failure(version):
        return Observation(state=State.FAILED, reason=words, revision=live)
    if busy(version):
        return Observation(state=State.PROGRESSING, reason=version.get("StateReason", "Pending"), revision=live)
    return Observation(state=State.HEALTHY, revision=live, progress=1.0)


def mark(release: Release, version: str) -> str:
    return f"{release.release_id} at version {version}"


def ours(alias: Json, release: Release) -> bool:
    """Whether this release led the alias where it is; somebody who leads it elsewhere leaves the description."""
    return bool(alias.get("Description") == mark(release, alias["FunctionVersion"]))


def led(alias: Json) -> Json:
    """What an alias serves, and how it is described."""
    weights = (alias.get("RoutingConfig") or {}).get("AdditionalVersionWeights") or {}
    return {"version": alias["FunctionVersion"], "weights": weights, "description": alias.get("Description", "")}


def as_before(alias: Json | None, snapshot: Snapshot) -> bool:
    """Whether it serves what the snapshot has; how it is described does not matter."""
    before: Any = snapshot.data["alias"]
    if alias is None or before is None:
        return alias is before
    return all(led(alias)[what] == before[what] for what in ("version", "weights"))


def code(function: Json) -> Json:
    return {"sha256": function["CodeSha256"], "modified": function.get("LastModified")}


def busy(function: Json) -> bool:
    return function.get("State") == "Pending" or function.get("LastUpdateStatus") == "InProgress"


def failure(function: Json) -> str:
    """Lambda's reason why a function or version does not do, or nothing."""
    for what in ("State", "LastUpdateStatus"):
        if function.get(what) == "Failed":
            why = f"{function.get(f'{what}ReasonCode', '')}: {function.get(f'{what}Reason', '')}"
            return f"{what} Failed: {why}"
    return ""


def given_up(words: str) -> Handle:
    """The alias was not touched, and nothing is on its way."""
    return Handle(action="deploy", data={"failed": redact(words)})
