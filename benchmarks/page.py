"""The README of the benchmarks: a section for each command that measures, rewritten by that command alone."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from align.durable.files import write_text
from benchmarks.measure import Comparison

README = Path(__file__).with_name("README.md")


def table(rows: list[Comparison]) -> str:
    """The rows as Markdown."""
    lines = ["| what | against | ours | theirs | unit | ratio | notes |", "|---|---|--:|--:|---|--:|---|"]
    for row in rows:
        spread = f"**{row.ratio:.2f}** [{min(row.ratios):.2f}, {max(row.ratios):.2f}]"
        ours, theirs = (f"{rate:,.0f}" if rate >= 10 else f"{rate:,.3g}" for rate in (row.ours, row.theirs))
        lines.append(f"| {row.what} | {row.peer} | {ours} | {theirs} | {row.unit} | {spread} | {row.note} |")
    return "\n".join(lines)


def conditions(sample: str, peers: tuple[str, ...], load_before: float) -> str:
    """A line on what was measured where."""
    versions = ", ".join(f"{name} {_version(name)}" for name in peers)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"
    return (
        f"{sample[0].upper()}{sample[1:]}; {machine}; load {load_before:.1f} before and {os.getloadavg()[0]:.1f} after."
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def write_section(title: str, text: str) -> None:
    """Puts `text` under the heading `## title`, instead of what it holds now."""
    page = README.read_text("utf-8")
    pattern = re.compile(rf"(?ms)^## {re.escape(title)}\n.*?(?=^## |\Z)")
    section = f"## {title}\n\n{text.strip()}\n\n"
    page = pattern.sub(lambda _: section, page) if pattern.search(page) else f"{page.rstrip()}\n\n{section}"
    write_text(README, page.rstrip() + "\n")
