"""The report of a stage as a page in Prefect's UI."""

from __future__ import annotations

import base64
import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.display.report import reported
from align.display.shares import percent
from align.display.visible import fenced_markdown, plain_markdown
from flows.dag import Stage

#: Of the main plot; a larger one is only named. Prefect keeps an artifact as a row of its database, and publishes no
#: event of more than 1.5 MB, in base64.
MAX_PICTURE_BYTES = 1_000_000


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
    rows = [f"| {plain_markdown(name)} | {_number(value)} |" for name, value in metrics.items()]
    parts += ["## All metrics", "\n".join(["| metric | value |", "|---|---:|", *rows])] if rows else []
    return "\n\n".join(parts)


def verdict(report: Path) -> str:
    """What a stage that ended well says in a line: a gate by its verdict, a measurement by what chance would give."""
    if gate := reported(report, "verdict.json"):
        return "Passed" if gate["passed"] else "Refused"
    metrics = reported(report, "metrics.json")
    measured = [name for name in metrics if {f"{name}/low", f"{name}/chance"} <= metrics.keys()]
    above = sum(metrics[f"{name}/low"] > metrics[f"{name}/chance"] for name in measured)
    said = f"{above} of {len(measured)} measures are above chance, by the lower end of their 95 % interval"
    return said if measured else "Complete"


def _main_figures(patterns: Sequence[str], metrics: dict[str, Any]) -> str:
    """A row for each pattern: of the metrics that it matches, the least nested, and then the first by name."""
    rows = []
    for found in filter(None, (fnmatch.filter(metrics, pattern) for pattern in patterns)):
        name = min(found, key=lambda one: (one.count("/"), one))
        number = percent if f"{name}/low" in metrics else _number
        values = [number(metrics[key]) if key in metrics else "" for key in (name, f"{name}/chance")]
        rows.append([plain_markdown(name), *values])
    width = 3 if any(row[-1] for row in rows) else 2
    head = [["main figures", "", "by chance"], ["---", "---:", "---:"]]
    return "\n".join(f"| {' | '.join(row[:width])} |" for row in [*head, *rows])


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else re.sub(r"\.?0+$", "", f"{value:.4f}")
