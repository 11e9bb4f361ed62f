"""What every benchmark says: rates of two ways to do the same, measured side by side, as rows of one table."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from align.display.console import say


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    Attributes:
        what: what is done.
        peer: what we are compared with.
        unit: of the two rates.
        ours, theirs: median rates, higher is better.
        ratios: ours / theirs of each repetition.
        note: what else was measured, such as memory.
    """

    what: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratios: tuple[float, ...]
    note: str = ""


def compare(
    what: str, peer: str, unit: str, *, items: int, ours_s: Sequence[float], theirs_s: Sequence[float], note: str = ""
) -> Comparison:
    """A row from the seconds that each repetition took for `items` of work; said at once: a later one may fail."""
    row = Comparison(
        what, peer, unit, ours=items / statistics.median(ours_s), theirs=items / statistics.median(theirs_s),
        ratios=tuple(their / our for our, their in zip(ours_s, theirs_s, strict=True)), note=note,
    )  # fmt: skip
    ratio, rates = statistics.median(row.ratios), f"{row.ours:,.0f} and {row.theirs:,.0f} {unit}"
    say(f"benchmark: {what} against {peer}: {ratio:.2f}x ({rates}); {note}")
    return row


def interleaved(
    ours: Callable[[], object], theirs: Callable[[], object], repetitions: int
) -> tuple[list[float], list[float]]:
    """CPU seconds of each repetition of both, after one of each that does not count; who goes first alternates."""
    seconds: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for repetition in range(repetitions + 1):
        for function in (ours, theirs) if repetition % 2 else (theirs, ours):
            spent = cpu_s(function)
            if repetition:
                seconds[function].append(spent)
    return seconds[ours], seconds[theirs]


def cpu_s(function: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads."""
    start = time.process_time()
    function()
    return time.process_time() - start


def table(rows: list[Comparison]) -> str:
    """The rows as Markdown."""
    lines = ["| what | against | ours | theirs | unit | ratio | notes |", "|---|---|--:|--:|---|--:|---|"]
    for row in rows:
        spread = f"**{statistics.median(row.ratios):.2f}** [{min(row.ratios):.2f}, {max(row.ratios):.2f}]"
        ours, theirs = (f"{rate:,.0f}" if rate >= 10 else f"{rate:,.3g}" for rate in (row.ours, row.theirs))
        lines.append(f"| {row.what} | {row.peer} | {ours} | {theirs} | {row.unit} | {spread} | {row.note} |")
    return "\n".join(lines)


def conditions(what: str, packages: Sequence[str], load_before: float) -> str:
    """A line on what was measured where."""
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"
    return f"{what[0].upper()}{what[1:]}; {machine}; load {load_before:.1f} before and {os.getloadavg()[0]:.1f} after."


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"
