"""A `DiffReport` as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable

from align import html
from align.figure import png
from align.lineage.diff_report import DiffReport, StateChange
from align.lineage.diff_text import DISTRIBUTION_NAMES, describe
from align.validate.figures import drift_figure


def as_page(report: DiffReport) -> str:
    """A page with the numbers, the changes with examples, and the distributions."""
    before, after = report.before, report.after
    num_entered, num_left = (sum(move.num_pairs for move in moves) for moves in (report.entered, report.left))
    cards = [
        ("kept before", f"{before.num_kept:,}", ""),
        ("kept after", f"{after.num_kept:,}", ""),
        ("entered", f"{num_entered:,}", "good"),
        ("left", f"{num_left:,}", "bad"),
        ("keep rate", f"{before.keep_rate:.1%} → {after.keep_rate:.1%}", ""),
    ]
    distances = [(DISTRIBUTION_NAMES.get(name, name), f"{share:.1%}") for name, share in report.distances.items()]
    blocks = [
        html.cards(cards),
        html.heading("Entered"),
        _changes(report.entered),
        html.heading("Left"),
        _changes(report.left),
        html.heading("Changed without being kept"),
        _changes(report.others),
        html.heading("Rules"),
        _table(("rule, first to drop", before.name, after.name), report.by_rule()),
        html.heading("Kept pairs"),
        html.paragraph(f"Bars (now): {after.name}. Outlines (reference): {before.name}."),
        html.picture(png(drift_figure(after.distributions, before.distributions)), alt="distributions"),
        html.table(("distribution", "share that moved to another bucket"), distances),
        html.heading("Hosts"),
        _table(("host of the picture", before.name, after.name), report.hosts),
    ]
    lead = "Pairs are matched by address and text. A dropped pair is listed under the first rule that drops it."
    return html.page(f"Data: {before.name} → {after.name}", lead, blocks)


def _changes(moves: list[StateChange]) -> str:
    rows = [(move.before, move.after, move.num_pairs, "; ".join(map(describe, move.examples))) for move in moves]
    return _table(("before", "after", "pairs", "such as"), rows)


def _table(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    listed = list(rows)
    return html.table(columns, listed) if listed else html.paragraph("No change.")
