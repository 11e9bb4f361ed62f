"""A `Difference` for people: as text for a terminal, and as one self-contained page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from align import html
from align.figure import png
from align.lineage.difference import KEPT, Difference, Example, Move
from align.validate.figures import drift_figure

#: Characters of a text or address, lines of a table on a terminal, pairs of a cell.
_SHOWN, _LINES = 70, 12
_NAMES = {"text_length": "characters per text", "image_size": "shorter side of the image", "language": "language"}


def as_text(found: Difference) -> str:
    """The summary; what changed most comes first."""
    return "\n".join(_lines(found))


def _lines(found: Difference) -> Iterator[str]:
    before, after = found.before, found.after
    width = max(len(before.name), len(after.name))
    for version in (before, after):
        rate = f"{version.keep_rate:.1%}"
        yield f"{version.name:<{width}}  {version.num_pairs:>10,} pairs  {version.num_kept:>10,} kept ({rate})"
    for title, moves, other in (
        ("entered (kept now, not before)", found.entered, "before"),
        ("left (kept before, not now)", found.left, "after"),
        ("changed without being kept", found.others, "both"),
    ):
        yield f"\n{title}: {sum(move.num_pairs for move in moves):,}"
        for move in moves[:_LINES]:
            why = f"{move.before} -> {move.after}" if other == "both" else getattr(move, other)
            yield f"  {move.num_pairs:>10,}  {why}"
            if other != "both":
                yield f"              such as {_told(move.examples[0])}"
        if len(moves) > _LINES:
            yield f"  and {len(moves) - _LINES} more kinds, see --html or --json"
    rows = _by_rule(found)
    if rows:
        yield "\nrules: pairs that each drops first"
        yield from (f"  {rule:<32}  {was:>10,} -> {now:>10,}" for rule, was, now in rows)
    if found.distances:
        yield "\nkept pairs: share that lies elsewhere now"
        yield from (f"  {_NAMES.get(name, name):<32}  {share:>7.1%}" for name, share in found.distances.items())
    if found.hosts:
        yield "\nkept pairs by host, where most changed"
        yield from (f"  {host or 'none':<32}  {was:>10,} -> {now:>10,}" for host, was, now in found.hosts)


def _by_rule(found: Difference) -> list[tuple[str, int, int]]:
    """(reason, pairs before, pairs after), as far as they differ."""
    states = sorted((found.before.states.keys() | found.after.states.keys()) - {KEPT})
    rows = [(state, found.before.states.get(state, 0), found.after.states.get(state, 0)) for state in states]
    return [row for row in rows if row[1] != row[2]]


def _told(example: Example) -> str:
    key = example.key_after or example.key_before
    return f"{_short(example.text)!r} ({key}, {_short(example.url)})"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def as_page(found: Difference) -> str:
    """A page with the figures, the moves with examples, and the distributions."""
    before, after = found.before, found.after
    num_entered, num_left = (sum(move.num_pairs for move in moves) for moves in (found.entered, found.left))
    blocks = [
        html.cards([
            ("kept before", f"{before.num_kept:,}", ""), ("kept after", f"{after.num_kept:,}", ""),
            ("entered", f"{num_entered:,}", "good"), ("left", f"{num_left:,}", "bad"),
            ("keep rate", f"{before.keep_rate:.1%} → {after.keep_rate:.1%}", ""),
        ]),
        html.heading("Entered"), _table(found.entered),
        html.heading("Left"), _table(found.left),
        html.heading("Changed without being kept"), _table(found.others),
        html.heading("Rules"),
        _or_nothing(("rule, first to drop", before.name, after.name), _by_rule(found)),
        html.heading("Kept pairs"),
        html.paragraph(f"Bars (now): {after.name}. Outlines (reference): {before.name}."),
        html.picture(png(drift_figure(after.distributions, before.distributions)), alt="distributions"),
        html.table(
            ("distribution", "share that lies elsewhere now"),
            [(_NAMES.get(name, name), f"{share:.1%}") for name, share in found.distances.items()],
        ),
        html.heading("Hosts"),
        _or_nothing(("host of the picture", before.name, after.name), found.hosts),
    ]  # fmt: skip
    lead = "Pairs are matched by address and text; what is dropped carries the first rule that drops it."
    return html.page(f"Data: {before.name} → {after.name}", lead, blocks)


def _table(moves: list[Move]) -> str:
    rows = [
        (move.before, move.after, move.num_pairs, "; ".join(map(_told, move.examples)))
        for move in moves
    ]  # fmt: skip
    return _or_nothing(("before", "after", "pairs", "such as"), rows)


def _or_nothing(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    listed = list(rows)
    return html.table(columns, listed) if listed else html.paragraph("No change.")
