"""Release one service to many platforms at once with Apache Airflow. Everything public loads when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "service_dags": "factory.factory",
    "service_dag": "factory.service",
    "DeployOperator": "operators.deploy",
    "AggregateStatusOperator": "operators.aggregate",
    "RollbackOperator": "operators.rollback",
    "FinalizeOperator": "operators.finalize",
    "finish": "factory.wiring",
    "PlanOperator": "operators.plan",
    "BuildImageOperator": "operators.build",
    "ReleaseNotifier": "operators.notify",
    "RolloutTrigger": "operators.trigger",
    "Platform": "release.contract",
    "TargetConfig": "catalog.target",
    "MultideployError": "errors",
}

if TYPE_CHECKING:
    from airflow_multideploy.catalog.target import TargetConfig as TargetConfig
    from airflow_multideploy.errors import MultideployError as MultideployError
    from airflow_multideploy.factory.factory import service_dags as service_dags
    from airflow_multideploy.factory.service import service_dag as service_dag
    from airflow_multideploy.factory.wiring import finish as finish
    from airflow_multideploy.operators.aggregate import AggregateStatusOperator as AggregateStatusOperator
    from airflow_multideploy.operators.build import BuildImageOperator as BuildImageOperator
    from airflow_multideploy.operators.deploy import DeployOperator as DeployOperator
    from airflow_multideploy.operators.finalize import FinalizeOperator as FinalizeOperator
    from airflow_multideploy.operators.notify import ReleaseNotifier as ReleaseNotifier
    from airflow_multideploy.operators.plan import PlanOperator as PlanOperator
    from airflow_multideploy.operators.rollback import RollbackOperator as RollbackOperator
    from airflow_multideploy.operators.trigger import RolloutTrigger as RolloutTrigger
    from airflow_multideploy.release.contract import Platform as Platform


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
