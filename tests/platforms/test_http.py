from __future__ import annotations

from airflow_multideploy.sandbox.http import HttpStandIn
from airflow_multideploy.sandbox.world import StandIn, World
from airflow_multideploy.testing.contract import PlatformContract


class TestHttp(PlatformContract):
    def make_stand_in(self, world: World) -> StandIn:
        return HttpStandIn(world)
