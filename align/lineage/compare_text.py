"""The tables of `align compare` as text for a terminal of 100 columns; the page with the same tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from align import html
from align.lineage.compare_tables import Table, describe, letters
from align.lineage.compared_run import ComparedRun

_WIDTH, _MAX_LABEL, _MAX_CELL, _GAP = 100, 46, 26, 2


def text_lines(runs: Sequence[ComparedRun], parts: Sequence[Table]) -> Iterator[str]:
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
    for number, block in enumerate(_blocks(widths, _WIDTH - label - 2)):
        if number:
            yield ""
        yield from (
            f"  {_cut_left(name, label):<{label}}"
            + "".join(f"{'':{_GAP}}{_cut(row[column], widths[column]):>{widths[column]}}" for column in block)
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


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _cut_left(text: str, width: int) -> str:
    return text if len(text) <= width else f"…{text[len(text) - width + 1 :]}"


def as_page(runs: Sequence[ComparedRun], parts: Sequence[Table], notes: Sequence[str]) -> str:
    """One page: the tables whole, and the main metrics as bars."""
    blocks = [html.table(("", "run"), list(zip(letters(runs), map(describe, runs), strict=True)))]
    blocks += [html.note(note) for note in notes]
    for table in parts:
        blocks.append(html.heading(table.title))
        if table.rows:
            blocks.append(html.table(("", *table.columns), [(name, *cells) for name, cells in table.rows]))
        if table.note:
            blocks.append(html.note(table.note))
    bars = [
        (name, letter, f"{measured[name].value:.1%}", measured[name].value)
        for name in sorted({name for run in runs for name in run.measured()})
        for letter, run in zip(letters(runs), runs, strict=True)
        if name in (measured := run.measured())
    ]
    if bars:
        blocks += [
            html.heading("Main metrics as bars"),
            html.table(("metric", "run", "value", "0 to 100 %"), bars, bar=3),
        ]
    title = "Runs: " + ", ".join(run.name for run in runs)
    return html.page(title, "Numbers are those of the runs' own reports.", blocks)
