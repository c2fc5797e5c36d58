"""The deploy tasks of hand-written DAGs: AWS."""

from __future__ import annotations

from typing import Any

from airflow_multideploy.operators.deploy import DeployOperator


class AwsEcsDeployOperator(DeployOperator):
    """Releases one image into one ECS service and waits until it serves; see `AwsEcsConfig` for the arguments."""

    kind = "aws_ecs"

    def __init__(
        self,
        *,
        conn_id: str,
        cluster: str,
        service: str,
        container: str | None = None,
        region: str | None = None,
        desired_count: int | None = None,
        failed_tasks: int | None = None,
        **kwargs: Any,
    ) -> None:
        config = {
            "conn_id": conn_id,
            "cluster": cluster,
            "service": service,
            "container": container,
            "region": region,
            "desired_count": desired_count,
            "failed_tasks": failed_tasks,
        }
        super().__init__(config=config, **kwargs)


class AwsLambdaDeployOperator(DeployOperator):
    """Releases one image or zip into one Lambda function; see `AwsLambdaConfig` for the arguments."""

    kind = "aws_lambda"

    def __init__(
        self,
        *,
        conn_id: str,
        function: str,
        alias: str = "live",
        package: str | None = None,
        test_event: dict[str, Any] | None = None,
        region: str | None = None,
        **kwargs: Any,
    ) -> None:
        config: dict[str, Any] = {"conn_id": conn_id, "function": function, "alias": alias, "package": package}
        super().__init__(config={**config, "test_event": test_event, "region": region}, **kwargs)


class AwsAppRunnerDeployOperator(DeployOperator):
    """Releases one image into one App Runner service; see `AwsAppRunnerConfig` for the arguments."""

    kind = "aws_app_runner"

    def __init__(self, *, conn_id: str, service: str, region: str | None = None, **kwargs: Any) -> None:
        super().__init__(config={"conn_id": conn_id, "service": service, "region": region}, **kwargs)


class AwsElasticBeanstalkDeployOperator(DeployOperator):
    """Releases one source bundle into one environment; see `AwsElasticBeanstalkConfig` for the arguments."""

    kind = "aws_elastic_beanstalk"

    def __init__(
        self,
        *,
        conn_id: str,
        application: str,
        environment: str,
        package: str,
        region: str | None = None,
        **kwargs: Any,
    ) -> None:
        place = {"conn_id": conn_id, "application": application, "environment": environment, "region": region}
        super().__init__(config={**place, "package": package}, **kwargs)


class AwsS3SiteDeployOperator(DeployOperator):
    """Releases one static site through one CloudFront distribution; see `AwsS3SiteConfig` for the arguments."""

    kind = "aws_s3_site"

    def __init__(
        self,
        *,
        conn_id: str,
        distribution: str,
        path: str,
        origin: str | None = None,
        index: str = "index.html",
        invalidate: tuple[str, ...] = ("/*",),
        url: str | None = None,
        region: str | None = None,
        **kwargs: Any,
    ) -> None:
        place = {"conn_id": conn_id, "distribution": distribution, "path": path, "origin": origin, "region": region}
        super().__init__(config={**place, "index": index, "invalidate": list(invalidate), "url": url}, **kwargs)
