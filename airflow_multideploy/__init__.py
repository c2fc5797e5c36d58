"""Release one service to many platforms at once with Apache Airflow. Everything public loads when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "service_dags": "factory",
    "service_dag": "factory",
    "DeployOperator": "operators.deploy",
    "AggregateStatusOperator": "operators.release",
    "RollbackOperator": "operators.rollback",
    "FinalizeOperator": "operators.release",
    "finish": "operators.tail",
    "PlanOperator": "operators.plan",
    "BuildImageOperator": "operators.build",
    "ReleaseNotifier": "notifications",
    "RolloutTrigger": "triggers",
    "Platform": "core.contract",
    "TargetConfig": "core.models",
    "MultideployError": "core.errors",
}

if TYPE_CHECKING:
    from airflow_multideploy.core.contract import Platform as Platform
    from airflow_multideploy.core.errors import MultideployError as MultideployError
    from airflow_multideploy.core.models import TargetConfig as TargetConfig
    from airflow_multideploy.factory import service_dag as service_dag
    from airflow_multideploy.factory import service_dags as service_dags
    from airflow_multideploy.notifications import ReleaseNotifier as ReleaseNotifier
    from airflow_multideploy.operators.build import BuildImageOperator as BuildImageOperator
    from airflow_multideploy.operators.deploy import DeployOperator as DeployOperator
    from airflow_multideploy.operators.plan import PlanOperator as PlanOperator
    from airflow_multideploy.operators.release import AggregateStatusOperator as AggregateStatusOperator
    from airflow_multideploy.operators.release import FinalizeOperator as FinalizeOperator
    from airflow_multideploy.operators.rollback import RollbackOperator as RollbackOperator
    from airflow_multideploy.operators.tail import finish as finish
    from airflow_multideploy.triggers import RolloutTrigger as RolloutTrigger


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
