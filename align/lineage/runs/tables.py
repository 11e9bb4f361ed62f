"""The tables of `align compare` and `align runs`: what differs between runs. A is the run that was named first.

Shown as rows of text, for a terminal of 100 columns, and as a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from align.display import html
from align.display.shares import percent
from align.display.visible import cut
from align.lineage.runs.run import CACHED, COST, HERE, HOURS, SPEED, STAGES, Run

UNKNOWN = "-"
_SHOWN_DIGITS = 12
_CHANCE = "chance"
_DIGESTS = {"digest of the shards": "data", "digest of the model": "model", "digest of the sets": "evaluation"}


@dataclass(frozen=True)
class Table:
    """One part of the comparison.

    Attributes:
        title: what is compared.
        columns: names of the runs' columns (A, B, ...), and of a last one that is of no run, if there is one.
        rows: a label, and one cell for each column.
        note: a sentence below the table, or instead of it; may be empty.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    note: str = ""


def letters(runs: Sequence[Run]) -> tuple[str, ...]:
    """A, B, C, ...; runs beyond Z have numbers."""
    return tuple(
        ascii_uppercase[number] if number < len(ascii_uppercase) else str(number) for number in range(len(runs))
    )


def describe(run: Run) -> str:
    """A run in one line: its name, commit and day."""
    if run.name == HERE:
        return f"this checkout, at commit {run.commit[:10]}, with its files as they are"
    state = "" if run.state == "finished" else f", {run.state}"
    return f"{run.branch or run.name}, commit {run.commit[:10] or UNKNOWN}, of {run.when[:10]}{state}"


def tables(runs: Sequence[Run], code: Sequence[Sequence[str] | None]) -> list[Table]:
    """All tables.

    Args:
        runs: two or more.
        code: for each run, the files of the code that differ from run A's; None: git cannot tell.
    """
    # code last: its list may be long
    return [params_table(runs), metrics_table(runs), costs_table(runs), _data(runs), _code(runs, code)]


def params_table(runs: Sequence[Run]) -> Table:
    """The parameters that are not the same in all runs."""
    names = sorted({name for run in runs for name in run.params})
    rows = []
    for name in names:
        cells = tuple(run.params.get(name, "(absent)") or '""' for run in runs)
        if len({cell for cell, run in zip(cells, runs, strict=True) if run.params}) > 1:  # for some runs, none is known
            rows.append((name, tuple(cell if run.params else UNKNOWN for cell, run in zip(cells, runs, strict=True))))
    same = f"All {len(names)} are the same." if names and not rows else ""
    return Table("Parameters that differ", letters(runs), tuple(rows), same)


def _code(runs: Sequence[Run], code: Sequence[Sequence[str] | None]) -> Table:
    if code.count([]) == len(code):
        return Table("Code", letters(runs), (), "The same in all runs.")
    cells = tuple("unknown" if one is None else _files(len(one)) for one in code)
    rows = [("files that differ from A", cells)]
    for file in sorted({file for files in code for file in files or ()}):
        rows.append((file, tuple("differs" if file in (one or ()) else "" for one in code)))
    note = "unknown: git does not have the commits of both runs here." if None in code else ""
    return Table("Code", letters(runs), tuple(rows), note)


def _files(number: int) -> str:
    return f"{number} file{'s' * (number > 1)}" if number else "same"


def _data(runs: Sequence[Run]) -> Table:
    return Table(
        "Data",
        letters(runs),
        (
            ("pairs in", _cells(runs, lambda run: _count(run, "ingest/num_pairs"))),
            ("pairs kept", _cells(runs, lambda run: _count(run, "filter/num_kept"))),
            ("share kept", _cells(runs, _share_kept)),
            *(
                (label, tuple(run.digests.get(what, UNKNOWN)[:_SHOWN_DIGITS] for run in runs))
                for label, what in _DIGESTS.items()
            ),
        ),
    )


def metrics_table(runs: Sequence[Run]) -> Table:
    """The main metrics with their intervals."""
    measured = [run.measured() for run in runs]
    rows = []
    for name in sorted({name for one in measured for name in one}):
        found = [one.get(name) for one in measured]
        shown = [
            f"{_percent(one.value)} [{_percent(one.low)}-{_percent(one.high)}]" if one else UNKNOWN for one in found
        ]
        rows.append((name, (*shown, " or ".join(sorted({_percent(one.chance) for one in found if one})))))
    note = "" if rows else "No run has a main metric."
    return Table("Main metrics in %, with 95 % intervals", (*letters(runs), _CHANCE), tuple(rows), note)


def costs_table(runs: Sequence[Run]) -> Table:
    """What training cost, as far as it is recorded."""

    def cell(run: Run, key: str, shown: Callable[[float], str]) -> str:
        value = run.costs.get(key)
        return UNKNOWN if value is None else value if isinstance(value, str) else shown(value)

    rows = []
    for stage in STAGES:
        for what, label, shown in (
            (HOURS, "device time, h:mm:ss", _clock),
            (SPEED, "pairs/s", lambda value: f"{value:,.0f}"),
            (COST, "price", lambda value: f"{value:,.2f}"),
        ):
            key = f"{stage}/{what}"
            rows.append((f"{stage}: {label}", tuple(cell(run, key, shown) for run in runs)))
    known = [row for row in rows if set(row[1]) != {UNKNOWN}]
    cached = any(CACHED in cells for _, cells in known)
    note = "cached: DVC took the stage from its cache, so this run did not pay for it." if cached else ""
    return Table("Cost of training", letters(runs), tuple(known), note if known else "None is recorded.")


def _cells(runs: Iterable[Run], cell: Callable[[Run], str]) -> tuple[str, ...]:
    return tuple(cell(run) for run in runs)


def _count(run: Run, name: str) -> str:
    return f"{int(run.metrics[name]):,}" if name in run.metrics else UNKNOWN


def _share_kept(run: Run) -> str:
    total, kept = run.metrics.get("ingest/num_pairs"), run.metrics.get("filter/num_kept")
    return percent(kept / total) if total and kept is not None else UNKNOWN


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _clock(hours: float) -> str:
    seconds = round(hours * 3600)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


WIDTH, _MAX_LABEL, _MAX_CELL, _GAP = 100, 46, 26, 2


def text_lines(runs: Sequence[Run], parts: Sequence[Table]) -> Iterator[str]:
    """The runs, then each table; one with many runs in blocks, each with column A."""
    for letter, run in zip(letters(runs), runs, strict=True):
        yield f"{letter}  {describe(run)}"
    yield from table_lines(parts)


def table_lines(parts: Sequence[Table]) -> Iterator[str]:
    """Each table, after an empty line and its title."""
    for table in parts:
        yield ""
        yield table.title
        if table.rows:
            yield from _table(table)
        if table.note:
            yield f"  {table.note}"


def _table(table: Table) -> Iterator[str]:
    label = min(_MAX_LABEL, max(len(name) for name, _ in table.rows))
    cells = [table.columns, *(row for _, row in table.rows)]
    widths = [min(_MAX_CELL, max(len(row[column]) for row in cells)) for column in range(len(table.columns))]
    for number, block in enumerate(_blocks(widths, WIDTH - label - 2)):
        if number:
            yield ""
        yield from (
            f"  {_cut_left(name, label):<{label}}"
            + "".join(f"{'':{_GAP}}{cut(row[column], widths[column]):>{widths[column]}}" for column in block)
            for name, row in (("", table.columns), *table.rows)
        )


def _blocks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """The columns that fit next to each other; each block begins with column A and has one other at least."""
    block, used = [0], widths[0] + _GAP
    for column in range(1, len(widths)):
        if used + widths[column] + _GAP > room and len(block) > 1:
            yield block
            block, used = [0], widths[0] + _GAP
        block.append(column)
        used += widths[column] + _GAP
    yield block


def _cut_left(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[len(text) - width + 1 :]}"


def as_page(runs: Sequence[Run], parts: Sequence[Table], drawn: Sequence[str]) -> str:
    """One page: `drawn`, which says what is better, and the tables whole."""
    blocks = [html.table(("", "run"), list(zip(letters(runs), map(describe, runs), strict=True)))]
    blocks += drawn
    for table in parts:
        blocks.append(html.heading(table.title))
        if table.rows:
            blocks.append(html.table(("", *table.columns), [(name, *cells) for name, cells in table.rows]))
        if table.note:
            blocks.append(html.note(table.note))
    title = "Runs: " + ", ".join(run.name for run in runs)
    return html.page(title, "Numbers are those of the runs' own reports.", blocks)
