"""How far a stage is, as it says itself in its progress file (`align.display.console`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from align.display.console import duration


class Work(BaseModel):
    """The progress of a stage; `done` and `total` are in units of its own, such as steps."""

    model_config = ConfigDict(frozen=True)
    line: str = ""
    done: int | None = None
    total: int | None = None
    per_s: float | None = None

    @property
    def percent(self) -> float | None:
        """From 0 to 100; None if the end is not known."""
        return None if self.done is None or not self.total else min(100.0, 100.0 * self.done / self.total)

    @property
    def left_s(self) -> float | None:
        """Seconds to the end, at the rate so far."""
        if self.done is None or not self.total or not self.per_s:
            return None
        return max(0.0, (self.total - self.done) / self.per_s)

    @property
    def stage(self) -> str:
        """The stage that it is about, by the first word of its line."""
        return self.line.partition(":")[0]


class Said(BaseModel):
    """What a stage wrote into its progress file."""

    model_config = ConfigDict(frozen=True)
    lines: tuple[str, ...] = ()
    work: Work = Work()


def read_said(file: Path) -> Said:
    """The content of a progress file; empty if there is none yet, or if it is damaged."""
    try:
        return Said.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return Said()


def describe(work: Work) -> str:
    """The words under the bar."""
    left = work.left_s
    return work.line + (f" ({duration(left)} left)" if left and not work.line.endswith(" left") else "")
