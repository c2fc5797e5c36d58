"""What Airflow learns about this provider while it imports itself.

Standard library only, or that import would be circular.
"""

from __future__ import annotations

from typing import Any

NAME = "Multi Deploy"
_PACKAGE = "airflow_multideploy"


def get_provider_info() -> dict[str, Any]:
    """Provider info, as ``airflow/provider_info.schema.json`` describes it."""
    return {
        "package-name": "airflow-provider-multideploy",
        "name": NAME,
        "description": "Release one service to many platforms at once, verified, with proven rollback.",
        "integrations": [{"integration-name": NAME, "tags": ["service"]}],
        "operators": [_modules(*_OPERATORS)],
        "hooks": [_modules("plugin.hooks")],
        "triggers": [_modules("operators.trigger")],
        "notifications": [f"{_PACKAGE}.operators.notify.ReleaseNotifier"],
        "connection-types": [_azure(), _gcp()],
        "extra-links": [f"{_PACKAGE}.operators.console.ConsoleLink"],
        "asset-uris": [{"schemes": ["multideploy"], "handler": f"{_PACKAGE}.plugin.assets.sanitize_uri"}],
        "config": {"multideploy": _config()},
        "cli": [f"{_PACKAGE}.cli.commands.get_cli_commands"],
    }


_OPERATORS = (
    "operators.aggregate",
    "operators.approval",
    "operators.aws",
    "operators.azure",
    "operators.build",
    "operators.clusters",
    "operators.decide",
    "operators.deploy",
    "operators.finalize",
    "operators.gcp",
    "operators.onprem",
    "operators.pipelines",
    "operators.plan",
    "operators.reconcile",
    "operators.rollback",
)


def _modules(*names: str) -> dict[str, Any]:
    return {"integration-name": NAME, "python-modules": [f"{_PACKAGE}.{name}" for name in names]}


def _config() -> dict[str, Any]:
    return {
        "description": "Where the service catalog is, and who looks after what dead runs left.",
        "options": {
            "catalog_file": {
                "description": "A YAML or JSON catalog file, the same on every machine that parses DAGs. Empty: the "
                "Variables ``multideploy_services`` and ``multideploy_defaults``.\n",
                "version_added": "0.1.0",
                "type": "string",
                "example": "/opt/airflow/catalog.yaml",
                "default": "",
            },
            "reconcile": {
                "description": "What the DAG ``multideploy_reconcile`` does about targets that a dead run left in "
                "doubt: ``off`` (no such DAG), ``report`` or ``rollback``.\n",
                "version_added": "0.1.0",
                "type": "string",
                "example": "rollback",
                "default": "off",
            },
            "reconcile_schedule": {
                "description": "When it looks: a cron expression in UTC.\n",
                "version_added": "0.1.0",
                "type": "string",
                "example": None,
                "default": "*/10 * * * *",
            },
            "answer": {
                "description": "What ``airflow dags test`` answers where a release asks a person. Empty: what no "
                "answer in time means.\n",
                "version_added": "0.1.0",
                "type": "string",
                "example": "approve",
                "default": "",
            },
        },
    }


def _text(label: str, description: str = "", **schema: Any) -> dict[str, Any]:
    field: dict[str, Any] = {"label": label, "schema": {"type": ["string", "null"], **schema}}
    return {**field, "description": description} if description else field


def _azure() -> dict[str, Any]:
    """The official ``azure`` form, without what our platforms do not read, and with another Resource Manager."""
    return {
        "connection-type": "multideploy_azure",
        "hook-class-name": f"{_PACKAGE}.plugin.hooks.AzureConnectionHook",
        "hook-name": "Azure (Multi Deploy)",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port", "host", "extra"],
            "relabeling": {"login": "Client ID", "password": "Client secret"},
            "placeholders": {"login": "empty: managed or workload identity"},
        },
        "conn-fields": {
            "tenantId": _text("Tenant ID"),
            "subscriptionId": _text("Subscription ID", "For targets that name none."),
            "cloud_environment": _text(
                "Cloud", enum=["AzurePublicCloud", "AzureUSGovernment", "AzureChinaCloud", None]
            ),
            "managed_identity_client_id": _text("Managed identity's client ID"),
            "workload_identity_tenant_id": _text("Workload identity's tenant ID"),
            "base_url": _text("Resource Manager", "https address of another one, such as Azure Stack's."),
            "authority": _text("Authority", "https address of another token endpoint."),
            "ca_file": _text("CA file", "PEM on the workers and triggerers; trusted beside the system's."),
        },
    }


def _gcp() -> dict[str, Any]:
    """The official ``google_cloud_platform`` form, without what a release does not use, and with other endpoints."""
    return {
        "connection-type": "multideploy_gcp",
        "hook-class-name": f"{_PACKAGE}.plugin.hooks.GcpConnectionHook",
        "hook-name": "Google Cloud (Multi Deploy)",
        "ui-field-behaviour": {
            "hidden-fields": ["host", "schema", "login", "password", "port", "extra"],
            "relabeling": {},
        },
        "conn-fields": {
            "project": _text("Project ID"),
            "keyfile_dict": _text(
                "Keyfile JSON", "Empty: keyfile path, or the machine's own identity.", format="password"
            ),
            "key_path": _text("Keyfile path"),
            "credential_config_file": _text("Credential configuration file"),
            "impersonation_chain": _text("Impersonation chain"),
            "scope": _text("Scopes", "Comma separated."),
            "quota_project_id": _text("Quota project ID"),
            "is_anonymous": {
                "label": "Anonymous",
                "description": "No credentials; everything above is ignored.",
                "schema": {"type": ["boolean", "null"], "default": False},
            },
            "api_endpoint": _text("REST endpoint", "Base URL instead of Google's."),
            "transport": _text("Worker's transport", enum=["rest", "grpc", None]),
            "grpc_endpoint": _text("gRPC endpoint", "Base URL for the triggerer, which speaks gRPC; empty: as REST."),
            "grpc_ca": _text(
                "gRPC CA", "PEM of the authority that signed that endpoint's certificate.", format="multiline"
            ),
        },
    }
