"""What ``airflow multideploy sandbox`` does: reads its options, serves, and says how to release to it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from airflow_multideploy.clients.connections import missing_extra
from airflow_multideploy.errors import SpecError
from airflow_multideploy.sandbox import Sandbox
from airflow_multideploy.sandbox.world import PLATFORMS

SEED = "shop=registry.example.com/shop:1.0.0"
"""What there is when nothing was asked for."""


@contextmanager
def serve(
    *, seconds: float, ports: Sequence[str], base_port: int | None, seeds: Sequence[str], folder: Path | None
) -> Iterator[Sandbox]:
    """The sandbox, seeded.

    :raises SpecError: an option does not fit.
    :raises MissingExtra: a test server that the stand-ins use is not installed.
    """
    numbers = _ports(ports, base_port)
    places = [place for text in seeds or [SEED] for place in _places(text)]
    if not seconds > 0:
        raise SpecError(f"--seconds: {seconds:g} is no duration; give a number above 0")
    running = Sandbox(seconds=seconds, ports=numbers, folder=folder)
    with ExitStack() as exits:
        try:
            exits.enter_context(running)
        except ImportError as error:
            raise missing_extra("sandbox", error) from error
        except OSError as error:
            asked = ", ".join(f"{kind}={port}" for kind, port in numbers.items()) or "free ports"
            raise SpecError(f"the sandbox ({asked}): {error.strerror or error}; choose others with --port") from error
        for kind, resource, image in places:
            running.seed(kind, resource, image)
        yield running


def _ports(options: Sequence[str], base: int | None) -> dict[str, int]:
    """Ports by kind, and ``control``; what is not asked for takes a free one.

    :raises SpecError: no such kind, or no port.
    """
    served = ("control", *PLATFORMS)
    ports = {} if base is None else {kind: base + index for index, kind in enumerate(served)}
    for option in options:
        kind, _, port = option.partition("=")
        if kind not in served or not port.isdecimal():
            raise SpecError(f"--port {option}: is not KIND=PORT; there are {', '.join(served)}")
        ports[kind] = int(port)
    for kind, number in ports.items():
        if not 0 <= number <= 65_535:
            raise SpecError(f"{kind}: {number} is no port; take one from 0 (any that is free) to 65535")
    return ports


def _places(option: str) -> list[tuple[str, str, str | None]]:
    """(kind, resource, image or None) for each stand-in that a ``--seed`` means.

    :raises SpecError: it is not ``[KIND/]RESOURCE=[IMAGE]``.
    """
    place, equals, image = option.partition("=")
    kind, slash, resource = place.rpartition("/")
    if not equals or not resource or (slash and kind not in PLATFORMS):
        kinds = ", ".join(PLATFORMS)
        raise SpecError(f"--seed {option}: is not RESOURCE=IMAGE or KIND/RESOURCE=IMAGE; kinds are {kinds}")
    return [(each, resource, image or None) for each in ([kind] if slash else PLATFORMS)]


def document(sandbox: Sandbox) -> dict[str, Any]:
    """How to reach it, for machines."""
    return {
        "control_url": sandbox.control_url,
        "connections": sandbox.connections(),
        "environment": sandbox.environment(),
        "catalog": sandbox.catalog(),
    }


def guide(sandbox: Sandbox, script: Path) -> str:
    """How to release to it, for people.

    :param script: what `write_laptop` wrote.
    """
    services = list(sandbox.catalog())
    return f"""# Stand-ins of the platforms serve: {", ".join(services)}. To release to them, in another terminal:
source {shlex.quote(str(script))}
airflow db migrate
airflow dags test {services[0]} -c '{{"version": "1.1.0"}}'
curl $CONTROL/state
# The catalog: {script.with_name("catalog.yaml")}
# The control API: {sandbox.control_url}
# Ctrl-C stops it"""
