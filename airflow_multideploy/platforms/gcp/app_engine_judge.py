"""What the documents of the App Engine Admin API say: traffic, artifacts, and how a rollout goes. Without I/O."""

from __future__ import annotations

from airflow_multideploy.platforms.gcp.calls import failure
from airflow_multideploy.platforms.rest import Json
from airflow_multideploy.release.contract import Handle, Observation, State


def allocations(service: Json | None) -> dict[str, float]:
    """Share of the traffic by version."""
    split = (service or {}).get("split", {}).get("allocations", {})
    return {version: round(float(share), 3) for version, share in split.items() if share}


def main(shares: dict[str, float]) -> str | None:
    """The version with the largest share."""
    return max(shares, key=lambda version: shares[version]) if shares else None


def artifact_of(version: Json | None) -> str | None:
    """What a version was made from: ``gs://…`` or an image."""
    made = (version or {}).get("deployment", {})
    url, image = made.get("zip", {}).get("sourceUrl"), made.get("container", {}).get("image")
    return f"gs://{url.split('/', 3)[-1]}" if url else image


def judge(  # noqa: PLR0911  # one return per case
    service: Json | None, versions: dict[str, Json | None], operation: Json | None, handle: Handle
) -> Observation:
    """Whether the handle's versions, and nothing else, have the traffic, and serve.

    :param service: None when it does not exist.
    :param versions: the ones that the handle wants, None where one does not exist.
    :param operation: the handle's last write, None when it is not known (any more).
    """
    now, target, revision = allocations(service), handle.data.get("allocations"), main(allocations(service))
    running = operation is not None and not operation.get("done")
    if operation and (why := failure(operation)) and (now != target or handle.data.get("removed")):
        return Observation(state=State.FAILED, reason=why, revision=revision)
    if handle.data.get("removed"):
        if service is None:
            return Observation(state=State.HEALTHY, reason="the service is removed")
        reason = "the service is being deleted" if running else "the service was created again"
        return Observation(state=State.PROGRESSING if running else State.SUPERSEDED, reason=reason, revision=revision)
    if service is None:
        return Observation(state=State.FAILED, reason="the service does not exist: somebody deleted it")
    said = ", ".join(f"{version} {share:.1%}" for version, share in now.items()) or "nothing"
    if now != target:
        if now == handle.data.get("from") and (running or operation is None):
            return Observation(state=State.PROGRESSING, reason=f"the traffic still goes to {said}", revision=revision)
        reason = f"somebody else changed the traffic: it now goes to {said}"
        return Observation(state=State.SUPERSEDED, reason=reason, revision=revision)
    for name, version in versions.items():
        if (status := (version or {}).get("servingStatus", "gone")) != "SERVING":
            return Observation(state=State.FAILED, reason=f"version {name} is {status}", revision=revision)
    if running:
        return Observation(state=State.PROGRESSING, reason="the traffic is being moved", revision=revision)
    return Observation(state=State.HEALTHY, reason=f"the traffic goes to {said}", revision=revision)
