"""A `DiffReport` for people: as text for a terminal, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from align.display import html
from align.display.figure import png
from align.lineage.diff.report import ChangedPair, DiffReport, StateChange
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


#: Names of the distributions, for people.
DISTRIBUTION_NAMES = {
    "text_length": "characters per text",
    "image_size": "shorter side of the image",
    "language": "language",
}
#: At most this many characters of a text or address, and lines of a table.
_SHOWN_CHARACTERS, _SHOWN_LINES = 70, 12


def text_lines(report: DiffReport) -> Iterator[str]:
    """The lines of the summary; what changed most comes first."""
    before, after = report.before, report.after
    width = max(len(before.name), len(after.name))
    for version in (before, after):
        rate = f"{version.keep_rate:.1%}"
        yield f"{version.name:<{width}}  {version.num_pairs:>10,} pairs  {version.num_kept:>10,} kept ({rate})"
    for title, moves, other in (
        ("entered (kept now, not before)", report.entered, "before"),
        ("left (kept before, not now)", report.left, "after"),
        ("changed without being kept", report.others, "both"),
    ):
        yield ""
        yield f"{title}: {sum(move.num_pairs for move in moves):,}"
        for move in moves[:_SHOWN_LINES]:
            why = f"{move.before} -> {move.after}" if other == "both" else getattr(move, other)
            yield f"  {move.num_pairs:>10,}  {why}"
            if other != "both":
                yield f"              such as {describe(move.examples[0])}"
        if len(moves) > _SHOWN_LINES:
            yield f"  and {len(moves) - _SHOWN_LINES} more kinds, see --html or --json"
    rows = report.by_rule()
    if rows:
        yield ""
        yield "rules: pairs that each drops first"
        yield from (f"  {rule:<32}  {was:>10,} -> {now:>10,}" for rule, was, now in rows)
    if report.distances:
        yield ""
        yield "kept pairs: share that moved to another bucket"
        for name, share in report.distances.items():
            yield f"  {DISTRIBUTION_NAMES.get(name, name):<32}  {share:>7.1%}"
    if report.hosts:
        yield ""
        yield "kept pairs by host, where most changed"
        yield from (f"  {host or 'none':<32}  {was:>10,} -> {now:>10,}" for host, was, now in report.hosts)


def describe(pair: ChangedPair) -> str:
    """A pair in one short phrase: its text, key and address."""
    key = pair.key_after or pair.key_before
    return f"{_shortened(pair.text)!r} ({key}, {_shortened(pair.url)})"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
