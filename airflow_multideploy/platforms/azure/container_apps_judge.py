"""What a container app's documents mean, without any I/O: its traffic, what a release writes, and how it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from airflow_multideploy.release.contract import Handle, Observation, Release, State

RESTARTS = 3
"""Restarts of a container after which its revision counts as failed."""

_AT_REST = ("Running", "RunningAtMaxScale", "ScaledToZero", "Stopped")
"""Running states of a revision that nothing ails; the two in the middle are those that the portal shows."""

Json = dict[str, Any]


class App(NamedTuple):
    """What the app says of itself.

    :param traffic: as it stands there, with entries that follow the latest revision.
    :param latest: the revision that was made last, whether or not it ever became ready.
    :param ready: the last one that did: to it goes what follows the latest.
    """

    name: str
    id: str
    location: str
    provisioning: str
    traffic: list[Json]
    latest: str
    ready: str

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> App:
        """From its document."""
        properties, name = document["properties"], str(document["name"])
        configuration, suffix = properties["configuration"], (properties["template"] or {}).get("revisionSuffix")
        ready = str(properties.get("latestReadyRevisionName") or "")
        traffic = (configuration.get("ingress") or {}).get("traffic")
        if traffic is None or str(configuration.get("activeRevisionsMode")).lower() != "multiple":
            traffic = [{"latestRevision": True, "weight": 100}]
        return cls(
            name=name,
            id=str(document.get("id") or ""),
            location=str(document.get("location") or ""),
            provisioning=str(properties.get("provisioningState") or ""),
            traffic=[dict(entry) for entry in traffic],
            # The revision of a PATCH that was just accepted may not be listed yet.
            latest=f"{name}--{suffix}" if suffix else str(properties.get("latestRevisionName") or ""),
            ready=ready,
        )

    def pinned(self, latest: str) -> list[Json]:
        """The traffic by names alone, with this revision for what follows the latest."""
        named = [
            {
                "revisionName": latest if entry.get("latestRevision") else str(entry.get("revisionName")),
                "weight": entry.get("weight") or 0,
                **({"label": entry["label"]} if entry.get("label") else {}),
            }
            for entry in self.traffic
        ]
        return sorted(
            (e for e in named if e["weight"] or "label" in e), key=lambda e: (-e["weight"], e["revisionName"])
        )

    @property
    def serving(self) -> list[Json]:
        """Where requests go now."""
        return self.pinned(self.ready) if self.ready else []

    def all_to(self, revision: str) -> bool:
        """Whether all requests go to this revision, or will as soon as it is ready."""
        return [entry["revisionName"] for entry in self.pinned(self.latest) if entry["weight"]] == [revision]


def repository(image: str) -> str:
    """The image without tag and digest."""
    name = image.partition("@")[0]
    return name.rpartition(":")[0] if ":" in name.rsplit("/", 1)[-1] else name


def untouched(app: App, data: Mapping[str, Any]) -> bool:
    """Whether the app is as a snapshot's data say."""
    return (app.traffic, app.latest) == (data["traffic"], data["latest"])


def patch(app: App, configuration: Json, **properties: Any) -> Json:
    """https://learn.microsoft.com/rest/api/containerapps/container-apps/update"""
    return {"location": app.location, "properties": {"configuration": configuration, **properties}}


def released(app: App, template: Json, container: Json, release: Release) -> Json:
    """The write of a release."""
    containers = []
    for one in template["containers"]:
        resources = {k: v for k, v in (one.get("resources") or {}).items() if k != "ephemeralStorage"}  # read-only
        changes: Json = {"resources": resources} if resources else {}
        containers.append({**one, **changes, **({"image": release.image} if one is container else {})})
    label = next((e["label"] for e in app.traffic if e.get("latestRevision") and e.get("label")), None)
    labelled = [e for e in app.pinned(app.latest) if "label" in e and e["label"] != label]
    latest = {"latestRevision": True, "weight": 100, **({"label": label} if label else {})}
    traffic = [latest, *({**entry, "weight": 0} for entry in labelled)]
    return patch(
        app,
        {"activeRevisionsMode": "Multiple", "ingress": {"traffic": traffic}},
        template={**template, "containers": containers, "revisionSuffix": release.release_id},
    )


def judge(handle: Handle, app: App, revisions: Sequence[Json | None], replicas: Sequence[Json] | None) -> Observation:
    """Documents in, observation out; the same for both kinds of I/O.

    :param revisions: those that the handle is about; None: Azure does not know it (yet).
    :param replicas: of the first of them; None: not asked for yet.
    """
    if handle.data.get("left"):
        return Observation(
            state=State.HEALTHY, reason="no revision had traffic before: left as it is", revision=app.ready or None
        )
    now = app.serving[0]["revisionName"] if app.serving else None
    back = handle.action == "rollback"
    if back:
        there = app.pinned(app.latest) == handle.data["serving"] or untouched(app, handle.data)
    else:
        there = app.all_to(str(handle.revision))
    if not there:
        reason = f"the traffic is not that of {handle.revision}; latest revision {app.latest}"
        return Observation(state=State.SUPERSEDED, reason=reason, revision=now)
    words = _failure(revisions, replicas or [])
    if not back and app.provisioning == "Failed" and not words:
        words = "Azure could not provision the revision (provisioningState Failed)"
    if words:
        return Observation(state=State.FAILED, reason=words, revision=now)
    served = [entry["revisionName"] for entry in app.serving if entry["weight"]]
    waiting = [_state(revision) for revision in revisions if not _healthy(revision, served)]
    if not back and now != handle.revision and not waiting:
        waiting.append(f"the traffic still goes to {now}")
    if waiting:
        return Observation(state=State.PROGRESSING, reason="; ".join(waiting), revision=now)
    return Observation(state=State.HEALTHY, reason="; ".join(map(_state, revisions)), revision=now)


def _healthy(revision: Json | None, served: Sequence[str]) -> bool:
    """Whether it can serve; one that is scaled to zero has nobody to say so but Azure, which gave it the traffic."""
    about = (revision or {}).get("properties") or {}
    states = tuple(about.get(name) for name in ("provisioningState", "healthState"))
    rests = states == ("Provisioned", "None") and about.get("runningState") in _AT_REST
    asleep = rests and revision is not None and revision["name"] in served
    return bool(about.get("active")) and (about.get("healthState") == "Healthy" or asleep)


def _state(revision: Json | None) -> str:
    if revision is None:
        return "Azure does not know the revision yet"
    about = revision["properties"]
    states = (about.get("provisioningState"), about.get("healthState"), about.get("runningState"))
    return f"revision {revision['name']}: {', '.join(str(state) for state in states if state)}"


def _failure(revisions: Sequence[Json | None], replicas: Sequence[Json]) -> str | None:
    """Why a revision does not start, in Azure's words; None: it does not say so."""
    containers = [c for replica in replicas for c in replica["properties"].get("containers") or []]
    crashed = [c for c in containers if (c.get("restartCount") or 0) >= RESTARTS and not c.get("ready")]
    bad = [r for r in revisions if r is not None and _is_bad(r["properties"])]
    if not bad and not crashed:
        return None
    words = [str(r["properties"].get("provisioningError") or _state(r)) for r in bad]
    words += [str(c["runningStateDetails"]) for c in containers if c.get("runningStateDetails") and not c.get("ready")]
    return "; ".join(dict.fromkeys(words)) or f"container {crashed[0].get('name')} restarts again and again"


def _is_bad(about: Mapping[str, Any]) -> bool:
    """Before it is provisioned, a revision that starts may look unhealthy."""
    failed = "Failed" in (about.get("provisioningState"), about.get("runningState"))
    unwell = about.get("healthState") == "Unhealthy" or about.get("runningState") == "Degraded"
    return failed or (unwell and about.get("provisioningState") == "Provisioned")
