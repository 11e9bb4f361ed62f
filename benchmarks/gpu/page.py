"""The page that `make bench-gpu` writes: Markdown, a section for each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.sections import Result

_STAND_IN = (
    "**No card: a CPU in its stead, with tiny towers.** These figures say that the program runs to its end, and "
    "nothing about any card."
)
_HEADS = {
    "towers": "towers", "recompute": "computed again", "batch": "pairs", "pairs_per_s": "pairs / s",
    "step_ms": "step, ms", "mfu": "MFU", "of_product": "of a product's rate", "peak": "peak memory",
    "a_pair": "one more pair", "kernel": "kernel", "calls": "calls", "ms": "ms", "share": "share of the time",
    "pairs": "pairs", "ours_ms": "ours, ms", "open_clip_ms": "ClipLoss, ms", "ours_peak": "ours, peak",
    "open_clip_peak": "open_clip, peak", "ours_pairs_per_s": "ours, pairs / s",
    "open_clip_pairs_per_s": "open_clip, pairs / s", "ratio": "ratio, above 1 we are faster", "compile": "compile",
    "first_step_s": "first step, s", "steps": "steps", "waits": "waits for the loader, first batch included",
    "gap": "batch-norm gap at the end", "layer": "layer", "channels": "channels", "px": "map, px", "what": "",
    "ranks": "ranks", "way": "step", "size": "sum of", "bus": "bus bandwidth",
    "kernel_ms": "larger kernel, ms", "map_ms": "torch, ms", "triton_ms": "triton, ms",
}  # fmt: skip
_TABLES = {
    "depthwise": "",
    "steps": "", "profile": "What one step's time goes to:", "losses": "Forward and backward of the loss, float32:",
    "messages": "Sums over ranks:", "ranks": "Steps of all ranks:",
    "open_clip": "Whole steps around the same towers:", "compile": "", "fed": "",
}  # fmt: skip


def failed(results: Sequence[Result]) -> list[str]:
    """The checks that failed, and the sections that ended by an error."""
    wrong = [
        entry["name"] for result in results for entry in result.entries
        if entry["kind"] == "check" and entry["verdict"] == "failed"
    ]  # fmt: skip
    return wrong + [result.section.title for result in results if result.ended.startswith("ended with code")]


def page(results: Sequence[Result], machine: str, date: str, seconds: float, *, stand_in: bool) -> str:
    """The whole page.

    Args:
        results: of the sections, in order.
        machine: a line, see `machine.describe`.
        date: of the run.
        seconds: that it took.
        stand_in: whether a CPU stood in for the card.
    """
    parts = ["# What a card does", *([_STAND_IN] if stand_in else []), f"{date}: {machine} {seconds:.0f} s in all."]
    parts.append("Made by `make bench-gpu`, see [README.md](README.md).")
    for result in results:
        parts += [f"## {result.section.title}", *_section(result)]
    return "\n\n".join(parts) + "\n"


def _section(result: Result) -> list[str]:
    parts = []
    checks = [entry for entry in result.entries if entry["kind"] == "check"]
    if checks:
        counts = Counter(entry["verdict"] for entry in checks)
        parts.append(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) + ".")
        parts.append(_table(["check", "", "found", "bound"], [
            [entry["name"], f"**{entry['verdict']}**" if entry["verdict"] == "failed" else entry["verdict"],
             entry["found"], entry["bound"]]
            for entry in checks
        ]))  # fmt: skip
    for table, words in _TABLES.items():
        rows = [entry["cells"] for entry in result.entries if entry["kind"] == "row" and entry["table"] == table]
        if rows:
            shown = [name for name in rows[0] if any(row.get(name) for row in rows)]
            parts += [words] if words else []
            parts.append(
                _table([_HEADS[name] for name in shown], [[row.get(name, "") for name in shown] for row in rows])
            )
    notes = [entry["text"] for entry in result.entries if entry["kind"] == "note"]
    if notes:
        parts.append("\n".join(f"* {note}" for note in notes))
    if result.ended:
        parts.append(f"This section {result.ended}" + ("." if not result.ended.endswith(".") else ""))
    elif not result.entries:
        parts.append("This section found nothing.")
    if result.seconds:
        parts.append(f"{result.seconds:.0f} s.")
    return parts


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
