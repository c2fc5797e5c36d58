"""Azure Web Apps that run one image (Linux, Web App for Containers): config, adapter and operator.

A release is one ``PATCH`` of the site's configuration: ``linuxFxVersion`` with the image, and in the same write a
marker of ours in the site's ``metadata`` (where Azure's own deployment tools leave theirs). App settings are never
touched. See `airflow_multideploy.platforms.azure.site` for what counts as healthy.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from airflow_multideploy.catalog.target import TargetConfig
from airflow_multideploy.clients.azure import Call, Steps
from airflow_multideploy.platforms.azure.site import AzureSite, AzureSiteConfig, Told
from airflow_multideploy.platforms.azure.site_judge import Live, Marker, fx_version, image_of, shown_fx, write_marker
from airflow_multideploy.release.contract import Capabilities, Manual, Release


class AzureWebAppConfig(AzureSiteConfig):
    """One site."""

    platform: Literal["azure_web_app"] = "azure_web_app"


class AzureWebApp(AzureSite[AzureWebAppConfig]):
    """Releases an image into a site, and back.

    A site counts as never deployed (``snapshot.exists`` False) while its ``linuxFxVersion`` is empty or holds the
    portal's placeholder. To remove such a first-ever release means to restore exactly that; the site is not ours.
    """

    linux: ClassVar[bool] = True
    kind: ClassVar[str] = "azure_web_app"
    config_type: ClassVar[type[TargetConfig]] = AzureWebAppConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        snapshot="linuxFxVersion, our release marker, the site's state, its containers, the version that the app told",
        early_failure="a failed container start in the site's container log, in its words; a stopped site",
        restores="linuxFxVersion; not app settings, and not the bits of a tag that was moved meanwhile",
        tested_against="a simulator of Resource Manager held to azure-mgmt-web's models, with the real login flow",
    )
    manual: ClassVar[Manual | None] = Manual(
        extra="azure",
        connection="Type `multideploy_azure` or `azure`: login = client id, password = client secret, extra "
        "`tenantId` and `subscriptionId`. Without a secret: managed or workload identity.",
        protocol="One PATCH of the site's configuration, `linuxFxVersion` and our marker. Resource Manager's success "
        "does not mean started: the container log and the app's own answer decide. Back: the same with the old value.",
        permissions="The role *Website Contributor* on the site, or `Microsoft.Web/sites/read`, `sites/config/read`, "
        "`sites/config/write`, `sites/config/list/action`, `sites/instances/read`, `sites/containerlogs/*`, "
        "`sites/restart/action`.",
        not_undone="app settings, and the bits of a tag that was moved meanwhile.",
        example="azure: {platform: azure_web_app, conn_id: azure_prod, resource_group: rg, site: shop}",
    )

    def _wanted(self, release: Release) -> str:
        return fx_version(release.image)

    def _read(self) -> Steps[Told]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/get-configuration and .../list-metadata"""
        answer = yield Call("get_configuration")
        metadata = (yield Call("list_metadata")).value
        config = answer.value["properties"]
        fx = config.get("linuxFxVersion") or ""
        if fx and image_of(fx) is None:
            self._api.refuse(f"runs {shown_fx(fx)!r}, not one image; make it a site for containers first")
        windows = bool(config.get("windowsFxVersion"))
        return Told(fx, metadata.get("properties") or {}, answer.at, config.get("numberOfWorkers"), windows)

    def _glance(self) -> Steps[tuple[str, datetime]]:
        answer = yield Call("get_configuration")
        return shown_fx(answer.value["properties"].get("linuxFxVersion") or ""), answer.at

    def _write(self, live: Live, marker: Marker) -> Steps[None]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/update-configuration"""
        metadata = [{"name": key, "value": value} for key, value in write_marker(live.metadata, marker).items()]
        yield Call("update_configuration", ({"properties": {"linuxFxVersion": marker.fx, "metadata": metadata}},))
