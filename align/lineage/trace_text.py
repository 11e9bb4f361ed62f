"""A trace as text for people: the pairs asked for, the answers, the chain from source to index, what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from align.lineage.pair_text import text_lines as pair_lines
from align.lineage.trace_graph import KINDS, Graph, Node, missing

_WIDTH = 20


def text_lines(graph: Graph) -> Iterator[str]:
    """All lines."""
    for history in graph.pairs:
        yield from (*pair_lines(history), "")
    yield f"{graph.subject}: where it comes from, and where it went"
    yield from (f"  {answer}" for answer in graph.answers)
    for node in graph.ordered():
        yield ""
        yield from _lines(node, is_subject=node.id in graph.subjects)
    if lines := missing(graph):
        yield from ("", "not on this machine, or not known:")
        yield from (f"  {line}" for line in lines)


def _lines(node: Node, *, is_subject: bool) -> Iterator[str]:
    mark = ">" if is_subject else " "
    brief = f" ({node.brief})" if node.brief else ""
    yield f"{mark} {KINDS[node.kind].lower():<{_WIDTH}}  {node.title}{brief}"
    for label, value in node.facts:
        yield f"    {label:<{_WIDTH - 2}}  {value}"
    for line in node.missing:
        yield f"    {'MISSING':<{_WIDTH - 2}}  {line}"
