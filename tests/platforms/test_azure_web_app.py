from __future__ import annotations

import azure.identity.aio
import azure.mgmt.web.aio  # noqa: F401 - its 130,000 lines take longer to import than a rollout here may take
from airflow.providers.microsoft.azure.hooks.base_azure import AzureBaseHook  # noqa: F401

from airflow_multideploy.sandbox.azure_web_app import AzureWebAppStandIn
from airflow_multideploy.sandbox.world import StandIn, World
from airflow_multideploy.testing.contract import PlatformContract


class TestAzureWebApp(PlatformContract):
    def make_stand_in(self, world: World) -> StandIn:
        return AzureWebAppStandIn(world)
