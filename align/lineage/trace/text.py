"""A trace as text for people: the answers, then each section with its facts, tables and what is not here."""

from __future__ import annotations

from collections.abc import Iterator

from align.lineage.trace.sections import KINDS, Section, Table, Trace

_WIDTH = 20


def text_lines(trace: Trace) -> Iterator[str]:
    """All lines. `>` marks what was asked for."""
    yield f"{trace.subject}: where it comes from, and where it went"
    yield from (f"  {answer}" for answer in trace.answers)
    for section in trace.sections:
        yield ""
        yield from _lines(section)


def _lines(section: Section) -> Iterator[str]:
    yield f"{'>' if section.asked else ' '} {KINDS[section.kind].lower():<{_WIDTH}}  {section.title}"
    for label, value in section.facts:
        yield f"    {label:<{_WIDTH - 2}}  {value}"
    for picture in section.pictures:
        yield f"    {'picture of':<{_WIDTH - 2}}  {picture.caption}"
    for table in section.tables:
        yield from _table(table)
    for line in section.missing:
        yield f"    {'not here, because':<{_WIDTH - 2}}  {line}"


def _table(table: Table) -> Iterator[str]:
    rows = [table.columns, *(tuple(map(_cell, row)) for row in table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.columns))]
    yield f"    {table.title}"
    for row in rows:
        yield f"      {'  '.join(f'{cell:<{width}}' for cell, width in zip(row, widths, strict=True))}".rstrip()


def _cell(value: str | int | float) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
