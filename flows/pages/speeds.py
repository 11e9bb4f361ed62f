"""How fast each stage was the last time that it ran for this checkout: `.align/speeds/STAGE.json`.

A worktree and its `runtime/` are removed at the end of a run, so what was measured there is kept here.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from align.durable.files import write_text
from align.errors import AlignError
from flows.tasks.run_context import STATE, RunContext

_FOLDER = STATE / "speeds"


class Speed(BaseModel):
    """What was measured of a stage.

    Attributes:
        wall_s: from its start to its end.
        pairs_per_s: of training steps.
        model: section `model` at that time, for stages that train: another shape has another speed.
    """

    model_config = ConfigDict(frozen=True)
    wall_s: float
    pairs_per_s: float | None = None
    model: dict[str, Any] | None = None


def keep_speeds(run: RunContext, since: float) -> None:
    """Keeps what the stages of a run have measured after the time `since`; a failure here does not fail the run."""
    for stage in run.stale:
        with suppress(OSError, AlignError, KeyError, ValueError):
            file = run.runtime / f"{stage}.json"
            found = json.loads(file.read_text("utf-8"))
            if file.stat().st_mtime < since or found.get("outcome") != "completed":
                continue
            speed = Speed(
                wall_s=found["wall_s"], pairs_per_s=found.get("pairs_per_s") or None,
                model=run.params.values.get("model") if "pairs_per_s" in found else None,
            )  # fmt: skip
            (run.checkout / _FOLDER).mkdir(parents=True, exist_ok=True)
            write_text(run.checkout / _FOLDER / f"{stage}.json", speed.model_dump_json())


def read_speeds(checkout: Path) -> dict[str, Speed]:
    """Stage -> what was measured the last time; a damaged file counts as missing."""
    speeds = {}
    for file in sorted((checkout / _FOLDER).glob("*.json")):
        with suppress(OSError, ValidationError):
            speeds[file.stem] = Speed.model_validate_json(file.read_bytes())
    return speeds


def duration(seconds: float) -> str:
    """Seconds in words, such as `2 h 5 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
