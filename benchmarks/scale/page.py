"""The table and the plot of docs/scale.md."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from align.display.figure import png
from align.durable.files import write_bytes, write_text
from benchmarks.scale.steps import Measured
from tests.support import ROOT

PAGE, PLOT = ROOT / "docs/scale.md", ROOT / "docs/img/scale.png"
#: Between these two lines the page holds the table.
BEGIN, END = "<!-- make bench-scale -->", "<!-- end of make bench-scale -->"
#: What is reckoned: the paper's 1.8 billion pairs, rounded up.
TARGET = 2_000_000_000
#: Of a cluster, and a price that clouds ask.
MACHINES, CORES, PRICE = 10, 16, 0.05


def by_stage(rows: list[Measured]) -> dict[str, list[Measured]]:
    stages: dict[str, list[Measured]] = {}
    for row in rows:
        stages.setdefault(row.stage, []).append(row)
    return stages


def slope(rows: list[Measured], value: Callable[[Measured], float]) -> float | None:
    """The exponent between the two largest sizes: 1 is linear; None with one size, or where nothing was measured."""
    if len(rows) < 2:
        return None
    small, large = rows[-2:]
    if min(value(small), value(large)) <= 0:
        return None
    return math.log(value(large) / value(small)) / math.log(large.num_pairs / small.num_pairs)


def at_target(rows: list[Measured], value: Callable[[Measured], float]) -> float:
    """The value at TARGET: by what each pair beyond the last size but one took, or by the exponent if it is above 1."""
    small, large = rows[-2:]
    each = (value(large) - value(small)) / (large.num_pairs - small.num_pairs)
    linear = value(large) + max(each, 0.0) * (TARGET - large.num_pairs)
    exponent = slope(rows, value)
    if exponent is None or exponent <= 1:
        return linear
    growth: float = (TARGET / large.num_pairs) ** exponent
    return value(large) * growth


#: Column of the table -> its value, and whether its exponent is shown.
_COLUMNS: dict[str, tuple[Callable[[Measured], float], bool]] = {
    "driver, CPU s": (lambda one: one.driver_s, True),
    "driver, MiB": (lambda one: one.driver_bytes / 2**20, True),
    "tasks, CPU s": (lambda one: one.tasks_s, True),
    "a task, MiB": (lambda one: one.task_bytes / 2**20, False),
    "on disk, MB": (lambda one: one.wrote / 1e6, True),
}


def table(rows: list[Measured]) -> str:
    """What was measured, and what is reckoned from it, as Markdown. An exponent stands in brackets: 1 is linear."""
    lines = [f"| stage | pairs | {' | '.join(_COLUMNS)} |", "|---|--:|" + "--:|" * len(_COLUMNS)]
    for stage, of_stage in by_stage(rows).items():
        for number, row in enumerate(of_stage, 1):
            cells = []
            for value, with_exponent in _COLUMNS.values():
                found = slope(of_stage[:number], value) if with_exponent else None
                figure = f"{value(row):,.1f}" if value(row) < 10 else f"{value(row):,.0f}"
                cells.append(figure + ("" if found is None else f" [{found:.2f}]"))
            lines.append(f"| {stage} | {row.num_pairs:,} | {' | '.join(cells)} |")
    if all(len(of_stage) < 2 for of_stage in by_stage(rows).values()):
        return "\n".join(lines)
    lines += [
        "",
        f"Reckoned on to {TARGET:,} pairs, from what each pair beyond the last size but one took; hours with "
        f"{MACHINES} machines of {CORES} cores, at {PRICE} dollars for a core and hour:",
        "",
        "| stage | driver, hours on one core | tasks, core hours | hours | dollars |",
        "|---|--:|--:|--:|--:|",
    ]
    for stage, of_stage in by_stage(rows).items():
        driver_h = at_target(of_stage, lambda one: one.driver_s) / 3600
        tasks_h = at_target(of_stage, lambda one: one.tasks_s) / 3600 if of_stage[-1].tasks_s else 0.0
        hours = driver_h + tasks_h / (MACHINES * CORES)
        dollars = (driver_h * CORES + tasks_h) * PRICE
        lines.append(f"| {stage} | {driver_h:,.1f} | {tasks_h:,.0f} | {hours:,.1f} | {dollars:,.0f} |")
    return "\n".join(lines)


def write(rows: list[Measured]) -> None:
    """Puts the table into the page."""
    text = PAGE.read_text("utf-8")
    block = f"{BEGIN}\n{table(rows)}\n{END}"
    write_text(PAGE, re.sub(rf"(?s){re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, text))


def plot(rows: list[Measured]) -> None:
    """Seconds and memory over pairs, both axes logarithmic, with a line of exponent 1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    time_axis, memory_axis = figure.subplots(1, 2)
    for stage, of_stage in by_stage(rows).items():
        sizes = [row.num_pairs for row in of_stage]
        (line,) = time_axis.plot(sizes, [row.driver_s + row.tasks_s for row in of_stage], "o-", label=stage)
        memory_axis.plot(sizes, [row.driver_bytes / 2**20 for row in of_stage], "o-", color=line.get_color())
    sizes = sorted({row.num_pairs for row in rows})
    lowest = min(row.driver_s + row.tasks_s for row in rows)
    time_axis.plot(sizes, [lowest * size / sizes[0] for size in sizes], ":", color="grey", label="linear")
    for axis, title in ((time_axis, "CPU seconds, driver and tasks"), (memory_axis, "memory of the driver, MiB")):
        axis.set(xscale="log", yscale="log", title=title, xlabel="pairs, in millions")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        for one in (axis.xaxis, axis.yaxis):
            one.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    write_bytes(PLOT, png(figure))
