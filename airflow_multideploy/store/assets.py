"""The assets of services and targets, and the one whose state holds the journals."""

from __future__ import annotations

from functools import cache

from airflow.sdk import Asset

GROUP = "multideploy"


@cache
def journal_asset(service: str) -> Asset:
    """The asset whose state store holds the journals of a service; a task needs it as inlet to reach them.

    One for all targets: each asset of each task costs the DAG processor time, and a large catalog has many.
    """
    return _asset(f"{service}/journal")


@cache
def service_asset(service: str) -> Asset:
    """The asset of a service: gets an event for each release that ends well."""
    return _asset(service)


def target_asset(service: str, target: str) -> Asset:
    """The asset of one target: gets an event for each release that is live there at its end."""
    return _asset(f"{service}/{target}")


def _asset(name: str) -> Asset:
    """An asset whose URI is set past Airflow's normaliser, which would import every provider's assets and their SDKs:
    a second of CPU in every process that parses a DAG."""
    asset = Asset(name=name, group=GROUP)
    object.__setattr__(asset, "uri", f"multideploy://{name}")
    return asset
