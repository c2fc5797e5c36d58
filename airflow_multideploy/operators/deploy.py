"""placeholder, replaced within minutes"""

from __future__ import annotations

from typing import Any, ClassVar

from airflow.sdk import BaseOperator


class DeployOperator(BaseOperator):
    """Base of every platform's deploy operator."""

    kind: ClassVar[str]
    template_fields = ("version", "image", "config")

    def __init__(self, *, config: dict[str, Any], version: str = "", image: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, self.version, self.image = config, version, image
