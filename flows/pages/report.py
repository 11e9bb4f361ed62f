"""The report of a stage as a page in Prefect's UI."""

from __future__ import annotations

import base64
import fnmatch
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from align.display.report import reported
from align.display.shares import above_chance, percent
from align.display.visible import fenced_markdown, plain_markdown
from flows.dag import Stage

#: Of the main plot; a larger one is only named. Prefect keeps an artifact as a row of its database, and publishes no
#: event of more than 1.5 MB, in base64.
MAX_PICTURE_BYTES = 1_000_000
#: Names of metrics that are shares.
_SHARE = re.compile(r"(keep_rate|success_rate|share|share_\w+|recall(@\d+)?|accuracy)(/(low|high|chance|majority))?$")


def report_markdown(report: Path | None, stage: Stage, failure: str | None = None, address: str | None = None) -> str:
    """A stage's report for the UI: the verdict, the main figures, where the whole is, the main plot, then all metrics.

    Without a `report` it is only why the stage failed; `address` is that of report.html.
    """
    parts = [f"# {stage.name}", stage.description]
    if failure is not None:
        parts.append(f"Failed:\n\n{fenced_markdown([failure])}")
    if report is None:
        return "\n\n".join(parts)
    metrics = reported(report, "metrics.json")
    parts += [f"**{verdict(report)}**"] if failure is None else []
    parts += [_main_figures(stage.figures, metrics)] if metrics and stage.figures else []
    if (report / "report.html").exists():
        where = f"[Open report.html]({address})" if address else f"`{stage.report}/report.html` in the run's files"
        parts.append(f"{where}: all tables and pictures")
    for picture in sorted(report.glob("*.png"), key=lambda one: (one.name != stage.plot, one.name))[:1]:
        data = picture.read_bytes()
        large = f"{picture.name}: {len(data) / 1e6:.1f} MB, see {report.name}/ in the checkout"
        shown = f"![{picture.stem}](data:image/png;base64,{base64.b64encode(data).decode()})"
        parts.append(large if len(data) > MAX_PICTURE_BYTES else shown)
    rows = [f"| {plain_markdown(name)} | {_number(name, value)} |" for name, value in metrics.items()]
    parts += ["## All metrics", "\n".join(["| metric | value |", "|---|---:|", *rows])] if rows else []
    return "\n\n".join(parts)


def verdict(report: Path) -> str:
    """What a stage that ended well says in a line: a gate by its verdict, a measurement by what chance would give."""
    if gate := reported(report, "verdict.json"):
        return "Passed" if gate["passed"] else "Refused"
    return above_chance(reported(report, "metrics.json")) or "Complete"


def main_figures(patterns: Sequence[str], metrics: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """For each pattern, of the metrics that it matches, the least nested, then the first by name: it, and by chance."""
    for found in filter(None, (fnmatch.filter(metrics, pattern) for pattern in patterns)):
        name = min(found, key=lambda one: (one.count("/"), one))
        value, chance = (_number(key, metrics[key]) if key in metrics else "" for key in (name, f"{name}/chance"))
        yield name, value, chance


def _main_figures(patterns: Sequence[str], metrics: dict[str, Any]) -> str:
    rows = [[plain_markdown(name), *values] for name, *values in main_figures(patterns, metrics)]
    width = 3 if any(row[-1] for row in rows) else 2
    head = [["main figures", "", "by chance"], ["---", "---:", "---:"]]
    return "\n".join(f"| {' | '.join(row[:width])} |" for row in [*head, *rows])


def _number(name: str, value: float | int) -> str:
    if _SHARE.search(name):
        return percent(value)
    return f"{value:,}" if isinstance(value, int) else re.sub(r"\.?0+$", "", f"{value:.4f}")
