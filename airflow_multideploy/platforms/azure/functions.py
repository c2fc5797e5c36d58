"""Azure Functions that run from a package (Linux and Windows): config, adapter and operator.

As a Web App with a package, and two things more: an address that changed asks for a synchronisation of the triggers,
and the app is well only when Azure lists functions of it. A function app that runs an image is a site like any other:
release into it with `airflow_multideploy.platforms.azure.web_app`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.azure import Call, Steps
from airflow_multideploy.errors import PlatformError
from airflow_multideploy.platforms.azure.package_site import AzurePackageConfig, AzurePackageSite
from airflow_multideploy.release.contract import Capabilities, Handle, Manual, Observation, State


class AzureFunctionsConfig(AzurePackageConfig):
    """One function app that runs from a package.

    :param site: name of the function app.
    """

    platform: Literal["azure_functions"] = "azure_functions"


class AzureFunctions(AzurePackageSite[AzureFunctionsConfig]):
    """Releases a package into a function app, and back.

    A function app counts as never deployed (``snapshot.exists`` False) while it does not run from a package. To remove
    such a first-ever release means to remove the setting again.
    """

    kind: ClassVar[str] = "azure_functions"
    config_type: ClassVar[type[TargetConfig]] = AzureFunctionsConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="address of the package (without its query), our release marker, the app's state, its containers, the "
        "version that it told",
        early_failure="a failed container start in the container log, in its words; a stopped function app",
        restores="the package's address, and the triggers that are in it; not other app settings",
        tested_against="a simulator of Resource Manager held to azure-mgmt-web's models, with the real login flow",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="azure",
        connection="Type `multideploy_azure` or `azure`: login = client id, password = client secret, extra "
        "`tenantId` and `subscriptionId`. Without a secret: managed or workload identity.",
        protocol="One replacement of the app settings: `WEBSITE_RUN_FROM_PACKAGE`, and our marker "
        "`MULTIDEPLOY_RELEASE`; all others are written back as they were read. Then the triggers are synchronised. "
        "Healthy: as a site (its container log, the app's own answer), and Azure lists at least one function. Back: "
        "the same with the old address. For the plans Consumption, Premium and Dedicated; Flex Consumption does not "
        "run from an address. A function app that runs an image is a site: use `azure_web_app`.",
        permissions="The role *Website Contributor* on the function app, or `Microsoft.Web/sites/read`, "
        "`sites/config/read`, `sites/config/write`, `sites/config/list/action`, `sites/instances/read`, "
        "`sites/containerlogs/*`, `sites/restart/action`, `sites/functions/read`, `sites/syncfunctiontriggers/action`.",
        not_undone="app settings that somebody changed meanwhile, and what functions did while they ran.",
        example="azure: {platform: azure_functions, conn_id: azure_prod, resource_group: rg, site: shop-jobs, "
        'package: "https://releases.blob.core.windows.net/shop/jobs-${version}.zip"}',
    )

    def _written(self) -> Steps[None]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/sync-function-triggers"""
        try:
            yield Call("sync_function_triggers")
        except PlatformError as error:
            if "HTTP 403" in str(error):
                raise
            # The host may be restarting just now, and Azure then says 400 or 404 as well.
            reason = f"the triggers are not synchronised yet: {error}"
            raise self.error(reason, retryable=True, retry_after=error.retry_after or 5.0) from None

    def _look(self, handle: Handle) -> Steps[Observation]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/list-functions"""
        seen = yield from super()._look(handle)
        if handle.action == "deploy" and seen.state is State.HEALTHY:
            names = [str(item.get("name")) for item in (yield Call("list_functions")).value]
            if not names:
                reason = f"{seen.reason}; Azure lists no function of it yet"
                return seen.model_copy(update={"state": State.PROGRESSING, "reason": reason})
        return seen
