"""Whether what a Cloud Run service says means that a rollout is done: pure, the same for REST and gRPC."""

from __future__ import annotations

from typing import Any

from airflow_multideploy.clients.google_run import main, routed, serving, wanted, words
from airflow_multideploy.release.contract import Handle, Observation, State

Json = dict[str, Any]


def judge(document: Json | None, handle: Handle) -> Observation:  # noqa: PLR0911  # one return per case
    """Whether the handle's revisions, and nothing else, are what the service serves.

    :param document: the service in the API's JSON form, None when it does not exist.
    """
    if "left" in handle.data:
        return Observation(state=State.HEALTHY, reason=str(handle.data["left"]), revision=handle.revision)
    if handle.data.get("removed"):
        if document is None:
            return Observation(state=State.HEALTHY, reason="the service is removed")
        if document.get("deleteTime"):
            return Observation(state=State.PROGRESSING, reason="the service is being deleted")
        return Observation(state=State.SUPERSEDED, reason="the service was created again", revision=None)
    if document is None or document.get("deleteTime"):
        return Observation(state=State.FAILED, reason="the service does not exist: somebody deleted it")
    target, serves, asked = handle.data.get("serves"), serving(document), wanted(document)
    revision = main(serves)
    if asked != target:
        said = ", ".join(f"{name} {share} %" for name, share in asked.items()) or "nothing"
        reason = f"somebody else changed the traffic: it now goes to {said}"
        return Observation(state=State.SUPERSEDED, reason=reason, revision=revision)
    # After a rollback the service may go on reconciling the undone revision, without traffic, for minutes.
    reconciling = bool(document.get("reconciling"))
    if serves == target and routed(document) and (not reconciling or handle.action == "rollback"):
        return Observation(state=State.HEALTHY, reason=f"{handle.revision} serves", revision=revision)
    if reconciling:
        reason = words(document, "CONDITION_RECONCILING") or words(document, "CONDITION_PENDING")
        return Observation(state=State.PROGRESSING, reason=reason or "reconciling", revision=revision)
    if failed := words(document, "CONDITION_FAILED"):
        return Observation(state=State.FAILED, reason=failed, revision=revision)
    return Observation(state=State.UNKNOWN, reason="neither reconciling nor served nor failed", revision=revision)
