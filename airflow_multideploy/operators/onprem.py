"""The deploy tasks of hand-written DAGs: hosts and APIs of your own."""

from __future__ import annotations

from typing import Any

from airflow_multideploy.operators.deploy import DeployOperator


class SshDeployOperator(DeployOperator):
    """Releases one package to one SSH host and waits until it serves; see `SshConfig` for the arguments."""

    kind = "ssh"

    def __init__(
        self,
        *,
        conn_id: str,
        root: str,
        unit: str,
        package: str,
        checksum: str | None = None,
        strip: int | None = None,
        keep: int | None = None,
        systemctl: str | None = None,
        check: list[str] | None = None,
        expect: str | None = None,
        settle: float | None = None,
        restarts: int | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "root": root,
            "unit": unit,
            "package": package,
            "checksum": checksum,
            "strip": strip,
            "keep": keep,
            "systemctl": systemctl,
            "check": check,
            "expect": expect,
            "settle": settle,
            "restarts": restarts,
        }
        super().__init__(config=config, **kwargs)


class DockerDeployOperator(DeployOperator):
    """Releases one image to one container on a Docker host; see `DockerConfig` for the arguments."""

    kind = "docker"

    def __init__(
        self,
        *,
        conn_id: str,
        container: str,
        url: str | None = None,
        environment: dict[str, str] | None = None,
        ports: dict[str, str] | None = None,
        volumes: list[str] | None = None,
        network: str | None = None,
        command: list[str] | None = None,
        restart: str | None = None,
        create: dict[str, Any] | None = None,
        stop_timeout: int | None = None,
        pull_timeout: float | None = None,
        settle: float | None = None,
        restarts: int | None = None,
        tls_ca_cert: str | None = None,
        tls_client_cert: str | None = None,
        tls_client_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "container": container,
            "url": url,
            "environment": environment,
            "ports": ports,
            "volumes": volumes,
            "network": network,
            "command": command,
            "restart": restart,
            "create": create,
            "stop_timeout": stop_timeout,
            "pull_timeout": pull_timeout,
            "settle": settle,
            "restarts": restarts,
            "tls_ca_cert": tls_ca_cert,
            "tls_client_cert": tls_client_cert,
            "tls_client_key": tls_client_key,
        }
        super().__init__(config=config, **kwargs)


class CommandDeployOperator(DeployOperator):
    """Releases one version by commands and waits until they say that it serves; see `CommandConfig`."""

    kind = "command"

    def __init__(
        self,
        *,
        conn_id: str,
        deploy: list[str],
        snapshot: list[str] | None = None,
        status: list[str] | None = None,
        rollback: list[str] | None = None,
        remove: list[str] | None = None,
        environment: dict[str, str] | None = None,
        inherit: list[str] | None = None,
        folder: str | None = None,
        command_timeout: float | None = None,
        look_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "deploy": deploy,
            "snapshot": snapshot,
            "status": status,
            "rollback": rollback,
            "remove": remove,
            "environment": environment,
            "inherit": inherit,
            "folder": folder,
            "command_timeout": command_timeout,
            "look_timeout": look_timeout,
        }
        super().__init__(config=config, **kwargs)


class HttpDeployOperator(DeployOperator):
    """Releases one image through a deploy API of one's own, and waits as far as the API lets it look.

    :param conn_id: HTTP Connection; with a login basic authentication, else the password is the bearer token.
    :param deploy: the request that deploys; default: ``POST /deploy`` with the form field ``image``.
    :param live_version: where the live version is read, the config's ``version``.

    The others are the fields of `HttpConfig`.
    """

    kind = "http"

    def __init__(
        self,
        *,
        conn_id: str,
        deploy: dict[str, Any] | None = None,
        operation: str | dict[str, Any] | None = None,
        status: dict[str, Any] | None = None,
        current: dict[str, Any] | None = None,
        live_version: dict[str, Any] | None = None,
        health: dict[str, Any] | None = None,
        rollback: dict[str, Any] | None = None,
        remove: dict[str, Any] | None = None,
        etag: bool | str | None = None,
        idempotency_header: str | bool | None = None,
        auth_header: str | None = None,
        call_timeout: float | None = None,
        console: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {
            "deploy": deploy,
            "operation": operation,
            "status": status,
            "current": current,
            "version": live_version,
            "health": health,
            "rollback": rollback,
            "remove": remove,
            "etag": etag,
            "idempotency_header": idempotency_header,
            "auth_header": auth_header,
            "call_timeout": call_timeout,
            "console": console,
        }
        config = {"conn_id": conn_id, **{name: value for name, value in given.items() if value is not None}}
        super().__init__(config=config, **kwargs)
