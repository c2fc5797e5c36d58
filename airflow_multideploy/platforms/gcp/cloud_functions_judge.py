"""What the documents of the Cloud Functions API say: sources, operations, and how a rollout goes. Without I/O."""

from __future__ import annotations

import json
from typing import cast

from airflow_multideploy.platforms.gcp.calls import failure
from airflow_multideploy.platforms.rest import Json
from airflow_multideploy.release.contract import Handle, Observation, State

RELEASE_LABEL = "multideploy-release"
"""The label that carries a release's id."""


def source_of(function: Json) -> Json:
    """The source that a function shows, pinned: with the generation or commit that it was resolved to."""
    build = function.get("buildConfig", {})
    asked, resolved = build.get("source", {}), build.get("sourceProvenance", {})
    known: Json = {
        "storageSource": resolved.get("resolvedStorageSource"),
        "repoSource": resolved.get("resolvedRepoSource"),
    }
    for kind, place in known.items():
        want = asked.get(kind)
        if (
            want
            and place
            and all(place.get(key) == want[key] for key in ("bucket", "object", "repoName") if key in want)
        ):
            # A generation that was asked for counts: what was resolved may still be the build's before this one.
            return {kind: {**place, **want}}
    return dict(asked)


def named(source: Json) -> str | None:
    """A source in one line: ``gs://bucket/object#generation``."""
    if stored := source.get("storageSource"):
        pin = f"#{stored['generation']}" if stored.get("generation") else ""
        return f"gs://{stored.get('bucket')}/{stored.get('object')}{pin}"
    return json.dumps(source, sort_keys=True) if source else None


def label_of(function: Json) -> str | None:
    return cast("str | None", function.get("labels", {}).get(RELEASE_LABEL))


def asked_by(operation: Json) -> Json:
    """The function as the operation's request wanted it."""
    return cast(Json, operation.get("metadata", {}).get("requestResource", {}))


def revision_of(function: Json) -> str | None:
    return cast("str | None", function.get("serviceConfig", {}).get("revision"))


def _why(function: Json | None, operation: Json | None) -> str:
    """Why it failed, in the platform's words: the operation's, its stages', the function's; each once."""
    stages = (operation or {}).get("metadata", {}).get("stages", [])
    messages = [m for stage in stages for m in stage.get("stateMessages", [])] + (function or {}).get(
        "stateMessages", []
    )
    said = (operation and failure(operation)) or ""
    for message in messages:
        words = message.get("message", "")
        if message.get("severity") != "INFO" and words and words not in said:
            said = f"{said}; {message.get('type', '')}: {words}".lstrip("; ")
    return said or "the function's state is FAILED"


def _under_way(operation: Json, serves: str | None) -> Observation:
    stages = operation.get("metadata", {}).get("stages", [])
    now = [f"{s.get('name')} {s.get('message') or s.get('state')}" for s in stages if s.get("state") == "IN_PROGRESS"]
    done = sum(s.get("state") == "COMPLETE" for s in stages) / len(stages) if stages else None
    reason = "; ".join(now) or operation.get("metadata", {}).get("statusDetail") or "the operation is under way"
    return Observation(state=State.PROGRESSING, reason=reason, revision=serves, progress=done)


def judge(function: Json | None, operation: Json | None, handle: Handle) -> Observation:  # noqa: PLR0911  # one per case
    """Whether the handle's source is what the function serves.

    :param function: None when it does not exist.
    :param operation: the handle's, None when it is not known (any more).
    """
    serves = named(source_of(function)) if function else None
    if operation and (why := failure(operation)):
        return Observation(state=State.FAILED, reason=_why(function, operation) or why, revision=serves)
    if operation and not operation.get("done"):
        return _under_way(operation, serves)
    state = function.get("state") if function else None
    if handle.data.get("removed"):
        if function is None:
            return Observation(state=State.HEALTHY, reason="the function is removed")
        gone = state == "DELETING"
        reason = "the function is being deleted" if gone else "the function was created again"
        return Observation(state=State.PROGRESSING if gone else State.SUPERSEDED, reason=reason, revision=serves)
    if function is None:
        return Observation(state=State.FAILED, reason="the function does not exist: somebody deleted it")
    if source_of(function) != handle.data.get("source"):
        reason = f"somebody else deployed: the function now shows {serves}"
        return Observation(state=State.SUPERSEDED, reason=reason, revision=serves)
    if state == "FAILED":
        return Observation(state=State.FAILED, reason=_why(function, operation), revision=serves)
    if state == "DEPLOYING":
        return Observation(state=State.PROGRESSING, reason="the function is being deployed", revision=serves)
    if state != "ACTIVE":
        return Observation(state=State.UNKNOWN, reason=f"the function's state is {state}", revision=serves)
    if not function.get("serviceConfig", {}).get("allTrafficOnLatestRevision"):
        reason = "not all traffic goes to the function's latest revision"
        return Observation(state=State.PROGRESSING, reason=reason, revision=serves)
    if handle.data.get("was") and handle.data["was"] == revision_of(function):
        return Observation(state=State.PROGRESSING, reason=f"revision {revision_of(function)} is still the old one")
    return Observation(state=State.HEALTHY, reason=f"revision {revision_of(function)} serves {serves}", revision=serves)
