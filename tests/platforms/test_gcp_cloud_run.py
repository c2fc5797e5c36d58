"""The Cloud Run platform against its stand-in."""

from __future__ import annotations

from airflow_multideploy.sandbox.gcp_cloud_run import GcpCloudRunStandIn
from airflow_multideploy.sandbox.world import World
from airflow_multideploy.testing.contract import PlatformContract


class TestGcpCloudRun(PlatformContract):
    """The public contract."""

    def make_stand_in(self, world: World) -> GcpCloudRunStandIn:
        return GcpCloudRunStandIn(world)
