"""Azure Web Apps that run from a package (Linux and Windows): config, adapter and operator.

A release is one replacement of the app settings: ``WEBSITE_RUN_FROM_PACKAGE`` with the package's address, and our
marker. Azure restarts the site and mounts the package; nothing is copied, so the way back is the old address.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.platforms.azure.package_site import AzurePackageConfig, AzurePackageSite
from airflow_multideploy.release.contract import Capabilities, Manual


class AzureWebAppPackageConfig(AzurePackageConfig):
    """One site that runs from a package."""

    platform: Literal["azure_web_app_package"] = "azure_web_app_package"


class AzureWebAppPackage(AzurePackageSite[AzureWebAppPackageConfig]):
    """Releases a package into a site, and back.

    A site counts as never deployed (``snapshot.exists`` False) while it does not run from a package. To remove such a
    first-ever release means to remove the setting again: what was copied into the site before is served once more.
    """

    kind: ClassVar[str] = "azure_web_app_package"
    config_type: ClassVar[type[TargetConfig]] = AzureWebAppPackageConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="address of the package (without its query), our release marker, the site's state, its containers, "
        "the version that the app told",
        early_failure="a failed container start in the site's container log, in its words; a stopped site",
        restores="the package's address; not other app settings, and not the bits behind an address that was reused",
        tested_against="a simulator of Resource Manager held to azure-mgmt-web's models, with the real login flow",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="azure",
        connection="Type `multideploy_azure` or `azure`: login = client id, password = client secret, extra "
        "`tenantId` and `subscriptionId`. Without a secret: managed or workload identity.",
        protocol="One replacement of the app settings: `WEBSITE_RUN_FROM_PACKAGE`, and our marker "
        "`MULTIDEPLOY_RELEASE`; all others are written back as they were read. Azure restarts the site. The container "
        "log and the app's own answer decide. Back: the same with the old address. Azure App Service on Linux runs "
        "from a package's address only where its runtime supports that; on Windows all do.",
        permissions="The role *Website Contributor* on the site, or `Microsoft.Web/sites/read`, `sites/config/read`, "
        "`sites/config/write`, `sites/config/list/action`, `sites/instances/read`, `sites/containerlogs/*`, "
        "`sites/restart/action`. Whoever may write app settings can read them.",
        not_undone="app settings that somebody changed meanwhile, and files that the app itself wrote.",
        example="azure: {platform: azure_web_app_package, conn_id: azure_prod, resource_group: rg, site: shop, "
        'package: "https://releases.blob.core.windows.net/shop/shop-${version}.zip"}',
    )
