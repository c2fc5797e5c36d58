"""Sites that run from a package: the address in ``WEBSITE_RUN_FROM_PACKAGE``, our marker in a setting beside it.

Both are written by one replacement of the app settings, which restarts the site. Settings of others are read, merged
and written back unseen.

An address that somebody else put there may carry a token. So it is shown without its query, and while a release of ours
runs, the whole of it stands in a setting of ours, in the site, where it was before: never in a document of a release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, ClassVar, TypeVar

from pydantic import AfterValidator

from airflow_multideploy import addresses
from airflow_multideploy.clients.azure import Call, Steps
from airflow_multideploy.platforms.artifact import Located, located
from airflow_multideploy.platforms.azure.site import AzureSite, AzureSiteConfig, Told
from airflow_multideploy.platforms.azure.site_judge import Live, Marker, write_marker
from airflow_multideploy.release.contract import Release

SETTING, PREVIOUS = "WEBSITE_RUN_FROM_PACKAGE", "MULTIDEPLOY_PREVIOUS_PACKAGE"


def _address(text: str) -> str:
    addresses.written(text)
    if not text.startswith("https://"):
        raise ValueError("has to be an https:// address")
    if "?" in text:
        raise ValueError("holds a query: give the site an identity that may read the package instead of a token")
    return text


class AzurePackageConfig(AzureSiteConfig):
    """A site that runs from a package.

    :param package: address of the release's package, such as
        ``https://releases.blob.core.windows.net/shop/shop-${version}.zip``. Each version needs one of its own, which
        the site may read without a token in it: it is public to the site's network, or the site has a managed identity
        for it.
    """

    package: Annotated[Located, AfterValidator(_address)]


P = TypeVar("P", bound=AzurePackageConfig)


def shown(address: str) -> str:
    """The address without its query, which may hold a token, but not the same for another query."""
    plain, mark, query = address.partition("?")
    return f"{plain}?sha256={hashlib.sha256(query.encode()).hexdigest()[:16]}" if mark else plain


class AzurePackageSite(AzureSite[P]):
    """Releases a package into one site, and back."""

    linux: ClassVar[bool] = False

    def _wanted(self, release: Release) -> str:
        return located(self.config.package, release)

    def _image(self, fx: str) -> str | None:
        return None

    def _read(self) -> Steps[Told]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/list-application-settings"""
        answer = yield Call("list_application_settings")
        settings: Mapping[str, str] = answer.value.get("properties") or {}
        return Told(shown(settings.get(SETTING) or ""), settings, answer.at)

    def _write(self, live: Live, marker: Marker) -> Steps[None]:
        """https://learn.microsoft.com/rest/api/appservice/web-apps/update-application-settings"""
        settings = dict(live.metadata)
        now, previous = settings.pop(SETTING, ""), settings.pop(PREVIOUS, "")
        if marker.action == "deploy":
            settings[SETTING] = marker.fx
            # A second write of one release must not take the release for what was there before.
            settings[PREVIOUS] = previous if live.marker and live.marker.release_id == marker.release_id else now
        elif marker.fx:
            known = [address for address in (previous, now) if shown(address) == marker.fx]
            if not known and "?" in marker.fx:
                self._api.refuse("has lost the address of the package that ran before, and only it knew it whole")
            settings[SETTING] = known[0] if known else marker.fx
        yield Call("update_application_settings", ({"properties": write_marker(settings, marker)},))
