"""What a site's documents mean, without any I/O: the marker of a release, and whether its container is what serves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from airflow_multideploy.clients.azure import Health
from airflow_multideploy.release.contract import Handle, Observation, State
from airflow_multideploy.secrets import MOST_WORDS, redact

MARKER = "MULTIDEPLOY_RELEASE"
"""Name of our entry in the site's metadata."""

_FAILED = re.compile(
    r"failing site start|failed during startup|Image pull failed|Pulling docker image .* failed|DockerApiException"
    r"|Site startup probe failed|terminated during site startup|Failed to start site|LastError: (?!None)\w+",
    re.I,
)
"""How App Service's container log says that a start failed, in its older and in its newer wording."""
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d(?:\.\d+)?)")
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_ERROR = re.compile(r"^\S+(?: [\d:.]+)?Z? +(?:ERROR|\[ERROR\]) *-? *", re.I)

Json = dict[str, Any]


@dataclass(frozen=True)
class Marker:
    """What we last did to a site, as it stands in the site's own metadata.

    :param since: the platform's clock directly before the write; None when nothing was written.
    :param old: containers that must be gone before the action counts as done.
    :param log: time stamp of the container log's last line before the write; None when it cannot be read.
    """

    release_id: str
    action: Literal["deploy", "rollback"]
    fx: str
    since: str | None
    old: tuple[str, ...]
    log: str | None

    def dump(self) -> Json:
        """As JSON."""
        return {**vars(self), "old": list(self.old)}


@dataclass(frozen=True)
class Live:
    """What the site is now. ``metadata`` may hold other people's secrets: it stays in memory and out of ``repr``."""

    fx: str
    marker: Marker | None
    metadata: Mapping[str, str] = field(repr=False)
    state: str
    host: str
    subscription: str
    workers: int | None
    at: str


class Looks(NamedTuple):
    """All that one observation looked at.

    :param fx: what the site is told to run: a ``linuxFxVersion``, or a package's address.
    :param log: the container log; None when it cannot be read.
    :param at: the platform's clock.
    :param serves: whether that is something that answers requests.
    """

    fx: str
    state: str
    instances: Sequence[Json]
    health: Health
    log: str | None
    at: datetime
    serves: bool = True


class Rules(NamedTuple):
    """The part of the config that judging depends on."""

    version_json_path: str | None
    version_header: str | None
    settle: float

    @property
    def tells_version(self) -> bool:
        """Whether the app's answer is said to tell what runs."""
        return bool(self.version_json_path or self.version_header)

    def told(self, health: Health) -> str | None:
        """What the app says that it runs; None when it does not, or is not asked to."""
        if not health.ok or not self.tells_version:
            return None
        if self.version_header:
            told = {key.lower(): value for key, value in health.headers.items()}.get(self.version_header.lower())
            return told and told[:MOST_WORDS]
        try:
            value = json.loads(health.text)
            for key in (self.version_json_path or "").removeprefix("$").strip(".").split("."):
                value = value[int(key)] if isinstance(value, list) else value[key]
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            return None
        return None if isinstance(value, dict | list) or value is None else str(value)[:MOST_WORDS]


def disagrees(told: str | None, fx: str) -> bool:
    """Whether the app tells a version that is not among those in what the site is told to run.

    Names without a version in them, such as the tag ``latest``, say nothing.
    """
    name = fx.partition("@")[0].partition("?")[0].rpartition("/")[2]
    wanted, said = set(_VERSION.findall(name)), set(_VERSION.findall(told or ""))
    return bool(wanted and said and not wanted & said)


def fx_version(image: str) -> str:
    """The ``linuxFxVersion`` of an image."""
    return f"DOCKER|{image}"


def image_of(fx: str) -> str | None:
    """The image in a ``linuxFxVersion``; None when it holds none, or more than one."""
    kind, _, image = fx.partition("|")
    return image or None if kind.upper() == "DOCKER" else None


def shown_fx(fx: str) -> str:
    """A ``linuxFxVersion`` fit to be shown: ``COMPOSE|`` is followed by a whole file, with its passwords."""
    if not fx or image_of(fx) is not None:
        return fx
    kind = fx.partition("|")[0]
    return f"{kind}|…" if re.fullmatch(r"\w{1,20}", kind, re.ASCII) else "something unknown"


def read_marker(metadata: Mapping[str, str]) -> Marker | None:
    """Our marker, or None when there is none that we understand."""
    try:
        document = json.loads(metadata.get(MARKER) or "null")
        return Marker(**{**document, "old": tuple(document["old"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def write_marker(metadata: Mapping[str, str], marker: Marker) -> dict[str, str]:
    """The metadata with our marker in it, and everything else as it was."""
    return {**metadata, MARKER: json.dumps(marker.dump(), separators=(",", ":"))}


def containers(instances: Sequence[Json]) -> list[str]:
    """Names of the containers on all instances, as far as Azure lists them."""
    return sorted({name for item in instances for name in (item.get("properties") or {}).get("containers") or {}})


def last_stamp(log: str) -> str:
    """Time stamp of the newest line of a container log; empty when it has none."""
    return max(map(_stamp, log.splitlines()), default="")


def failure(log: str, since: str, old: Sequence[str]) -> str | None:
    """Why a container did not start, in the log's last error lines after a time stamp; None: it does not say so.

    :param old: containers whose end is no news.
    """
    lines = [line[:MOST_WORDS] for line in log.splitlines()]
    fresh = [line for line in lines if _stamp(line) > since and not any(name in line for name in old)]
    if not any(_FAILED.search(line) for line in fresh):
        return None
    lines = [line for line in fresh if _ERROR.match(line) or _FAILED.search(line)]
    return "; ".join(dict.fromkeys(redact(_ERROR.sub("", line).strip(), 300) for line in lines[-3:]))


def _stamp(line: str) -> str:
    found = _STAMP.match(line)
    return f"{found[1]}T{found[2]}" if found else ""


def judge(handle: Handle, looks: Looks, rules: Rules) -> Observation:
    """Documents in, observation out; the same for both kinds of I/O."""
    plain = _without_app(handle, looks)
    if plain is not None:
        return plain
    waiting, verified = _waiting(handle, looks, rules)
    if not waiting:
        said = rules.told(looks.health)
        reason = looks.health.words() + (f" and tells {said!r}" if said else "")
        if not verified:
            reason += "; nothing tells old and new container apart: set version_json_path or version_header"
        return Observation(state=State.HEALTHY, reason=reason, revision=looks.fx, verified=verified)
    mark = handle.data.get("log")
    words = failure(looks.log, str(mark), _strings(handle.data["old"])) if looks.log and mark is not None else None
    stopped = [i for i in looks.instances if _state(i) == "STOPPED"]
    if words is None and looks.log is None and stopped and len(stopped) == len(looks.instances) and not looks.health.ok:
        words = f"all instances are STOPPED and the app {looks.health.words()}"
    return Observation(state=State.FAILED if words else State.PROGRESSING, reason=words or "; ".join(waiting))


def _without_app(handle: Handle, looks: Looks) -> Observation | None:
    """What Resource Manager's answer alone decides."""
    if looks.fx != handle.data["fx"]:
        reason = f"the site runs {looks.fx!r}, not {handle.data['fx']!r}"
        return Observation(state=State.SUPERSEDED, reason=reason, revision=looks.fx or None)
    if not looks.serves:
        return Observation(state=State.HEALTHY, reason="the site is told to run nothing, as before")
    if looks.state.lower() == "running":
        return None
    if looks.state == handle.data.get("state"):
        reason = f"the site is {looks.state}, as it was before"
        return Observation(state=State.HEALTHY, reason=reason, revision=looks.fx, verified=False)
    reason = f"the site is {looks.state or 'in no known state'}"
    return Observation(state=State.FAILED, reason=reason, revision=looks.fx)


def _waiting(handle: Handle, looks: Looks, rules: Rules) -> tuple[list[str], bool]:
    """What is still missing, and whether what is there tells our container from the old one."""
    waiting: list[str] = []
    old = set(_strings(handle.data["old"]))
    if not looks.health.ok:
        waiting.append(f"the app {looks.health.words()}")
    elif rules.tells_version:
        said = rules.told(looks.health)
        expect, reject = _strings(handle.data["expect"]), _strings(handle.data["reject"])
        if (expect and said not in expect) or said is None or said in reject:
            waiting.append(f"the app tells {said!r}" + (f", not {expect[0]!r}" if expect else ""))
    lagging = [i for i in looks.instances if old & set(containers([i])) or _state(i) == "STOPPED"]
    if lagging:
        waiting.append(f"{len(lagging)} of {len(looks.instances)} instances have not got the new container")
    listed = bool(looks.instances) and all(containers([i]) for i in looks.instances)
    verified = rules.tells_version or listed
    if not verified and not waiting:
        since = handle.data.get("since")
        age = (looks.at - datetime.fromisoformat(str(since))).total_seconds() if since else rules.settle
        if age < rules.settle:
            waiting.append(f"{looks.health.words()}, old or new container; counts after {rules.settle:.0f} s")
    return waiting, verified


def _state(instance: Json) -> str:
    return str((instance.get("properties") or {}).get("state") or "").upper()


def _strings(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
