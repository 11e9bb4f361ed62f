"""What a person asks of the pipeline: the form in Prefect's UI, or the arguments of `align run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from align.config import load_params
from align.errors import LOGIN

_LOGIN = {"type": "string", "pattern": LOGIN}
#: For JSON Schema: no address with a login in it. Prefect's server refuses such a value before it records it.
NO_LOGIN: dict[str, Any] = {"not": {"anyOf": [_LOGIN, {"type": "array", "contains": _LOGIN}]}}


class Request(BaseModel):
    """What to run. The UI shows it as a form."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str | None = Field(
        default=None,
        description="The result becomes branch run/NAME; empty: the flow run's own name in Prefect.",
        json_schema_extra=NO_LOGIN,
    )
    ref: str | None = Field(
        default=None,
        description="A branch, tag or commit to run; empty: HEAD of the checkout.",
        json_schema_extra=NO_LOGIN,
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description='Parameters to change, such as {"filter.min_words": 4}. No passwords: they are recorded.',
        json_schema_extra={"additionalProperties": NO_LOGIN},
    )
    snapshot_dirty: bool = Field(
        default=False,
        description="If the checkout has uncommitted changes: run HEAD with them, tagged dirty, instead of refusing.",
    )


def parse_overrides(root: Path, overrides: list[str]) -> dict[str, Any]:
    """`section.key=value` -> {section.key: value}, the value read as YAML.

    Raises:
        ConfigError: malformed, or an unknown parameter.
    """
    values = load_params(root / "params.yaml", overrides).values
    parsed: dict[str, Any] = {}
    for override in overrides:
        key = override.partition("=")[0]
        node: Any = values
        for part in key.split("."):
            node = node[part]
        parsed[key] = node
    return parsed
