from __future__ import annotations

from airflow_multideploy.sandbox.aws_ecs import AwsEcsStandIn
from airflow_multideploy.sandbox.world import StandIn, World
from airflow_multideploy.testing.contract import PlatformContract


class TestAwsEcs(PlatformContract):
    def make_stand_in(self, world: World) -> StandIn:
        return AwsEcsStandIn(world)
