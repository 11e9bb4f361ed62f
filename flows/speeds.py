"""How long the stages of a run will take, by what the last runs of the checkout have measured."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from align.display.console import duration
from align.durable.files import write_text
from align.errors import AlignError
from flows.run.context import STATE, RunContext

#: Kept for the user's checkout, since a worktree and its `runtime/` are removed at the end of a run.
SPEEDS = STATE / "speeds"
#: The stages that train, whose sections are recipes.
TRAINING = ("pretrain", "finetune")
UNKNOWN = "unknown"


class Speed(BaseModel):
    """What was measured of a stage.

    Attributes:
        wall_s: from the start of DVC to its end; of a stage that trains, without its steps.
        pairs_per_s: of training steps.
        model: section `model` at that time, for stages that train: another shape has another speed.
    """

    model_config = ConfigDict(frozen=True)
    wall_s: float
    pairs_per_s: float | None = None
    model: dict[str, Any] | None = None


def keep_speed(run: RunContext, stage: str, wall_s: float) -> None:
    """Keeps what a stage that ran has measured, and how long it took; a failure here does not fail the run."""
    with suppress(OSError, AlignError, KeyError, ValueError):
        found, model = json.loads((run.runtime / f"{stage}.json").read_text("utf-8")), None
        if per_s := found.get("pairs_per_s") or None:
            model, wall_s = run.params.values.get("model"), max(0.0, wall_s - _num_pairs(run, stage) / per_s)
        (run.checkout / SPEEDS).mkdir(parents=True, exist_ok=True)
        speed = Speed(wall_s=wall_s, pairs_per_s=per_s, model=model)
        write_text(run.checkout / SPEEDS / f"{stage}.json", speed.model_dump_json())


def expected_time(run: RunContext, stages: Collection[str]) -> str:
    """The time that these stages of the run will take, in words."""
    if not stages:
        return "none: no stage is stale"
    found = expected_s(run, sorted(stages))
    known = [seconds for seconds in found.values() if seconds is not None]
    unknown = [stage for stage, seconds in found.items() if seconds is None]
    if not known:
        return f"{UNKNOWN}: none of these stages has been measured here"
    more = f" and {UNKNOWN} for {', '.join(unknown)}" if unknown else ""
    return f"about {duration(sum(known))} with the starts of stages, by the last measured speeds{more}"


def expected_s(run: RunContext, stages: Collection[str]) -> dict[str, float | None]:
    """Stage -> the seconds that it will take; None: never measured, or with another model."""
    return {stage: _seconds(run, stage) for stage in stages}


def _seconds(run: RunContext, stage: str) -> float | None:
    try:
        speed = Speed.model_validate_json((run.checkout / SPEEDS / f"{stage}.json").read_bytes())
    except (OSError, ValidationError):  # never measured, or damaged
        return None
    if stage not in TRAINING:
        return speed.wall_s
    if not speed.pairs_per_s or speed.model != run.params.values.get("model"):
        return None
    return speed.wall_s + _num_pairs(run, stage) / speed.pairs_per_s


def _num_pairs(run: RunContext, stage: str) -> float:
    recipe = run.params.values[stage]
    return float(recipe["num_steps"] * recipe["batch_size"])
