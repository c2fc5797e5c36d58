"""For authors of platforms: the conformance suite `PlatformContract` (needs pytest and the ``sandbox`` extra)."""

from airflow_multideploy.testing.contract import PlatformContract

__all__ = ["PlatformContract"]
