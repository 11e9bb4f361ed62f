"""What a section has found so far, one JSON object a line: a section that dies loses nothing but its last line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

#: A check's end; the third is a matter of the machine, or of what is installed, and no error.
Verdict = Literal["passed", "failed", "not possible here"]


@dataclass(frozen=True)
class Journal:
    """Where a section writes.

    Attributes:
        path: of the file, which the main process reads.
        ends: `time.monotonic` at which the section is ended.
    """

    path: Path
    ends: float

    def left_s(self) -> float:
        """Seconds until the section is ended."""
        return self.ends - time.monotonic()

    def begin(self, name: str) -> None:
        """A check begins: if the process dies now, it is this one that failed.

        `at` is by the clock that all processes of a machine share.
        """
        self._write({"kind": "begin", "name": name, "at": time.monotonic()})

    def check(self, name: str, verdict: Verdict, found: str, bound: str = "") -> None:
        """A check's result."""
        self._write({"kind": "check", "name": name, "verdict": verdict, "found": found, "bound": bound})

    def row(self, table: str, **cells: object) -> None:
        """A row of a table; its cells in order of the columns."""
        self._write({"kind": "row", "table": table, "cells": cells})

    def note(self, text: str) -> None:
        """A sentence under the section's tables."""
        self._write({"kind": "note", "text": text})

    def _write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of a journal; a last line that was cut off is left out."""
    entries = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


class Budget:
    """Seconds that the sections share.

    Args:
        total_s: for all of them.
        clock: `time.monotonic`, or another one in a test.
    """

    def __init__(self, total_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._ends = clock, clock() + total_s

    def left_s(self) -> float:
        """Until the end of all."""
        return max(0.0, self._ends - self._clock())

    def grant_s(self, least_s: float, most_s: float) -> float:
        """Seconds for a section: at most `most_s` of what is left, and 0 if that is less than `least_s`."""
        granted = min(most_s, self.left_s())
        return granted if granted >= least_s else 0.0


def number(value: float) -> str:
    """Short, for a table."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:.1e}"
