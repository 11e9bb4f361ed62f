"""A trace as one self-contained page: the chain drawn, then each link with its facts, numbers and pictures.

It loads nothing and runs nothing, and no link leads out of it: an address is text, as on every page of the project.
Everything is escaped, since texts, addresses and names are those of strangers.
"""

from __future__ import annotations

from collections.abc import Iterable

from align.display import html
from align.display.html import escape
from align.lineage.trace.drawing import NARROW, WIDE, drawing
from align.lineage.trace.graph import KINDS, Graph, Node, Table, missing

_STYLE = """
:root { color-scheme: light dark; --paper: #fff }
@media (prefers-color-scheme: dark) { :root { --paper: #12161d; --ink: #e6e9ef; --soft: #a3adbb; --line: #3a4351;
  --wash: #1c222c; --good: #4cc38a; --bad: #ff8a80; --warn: #e2b455 } }
body { background: var(--paper) }
a { color: inherit }
svg.chain { display: block; width: 100%; height: auto; margin: 1rem 0 }
svg.narrow { display: none }
@media (max-width: 700px) { svg.wide { display: none } svg.narrow { display: block } }
svg text { font-size: 13px; fill: var(--ink) }
svg text.soft { font-size: 12px; fill: var(--soft) }
svg text.kind { font-size: 12px; fill: var(--soft); font-weight: 600 }
svg .edge { fill: none; stroke: var(--soft); stroke-width: 1.2; opacity: .55 }
svg .node { font-weight: 400 }
svg .node rect { fill: var(--wash); stroke: var(--line); stroke-width: 1.2 }
svg .good rect { stroke: var(--good); stroke-width: 1.6 }
svg .warn rect { stroke: var(--warn); stroke-width: 1.6 }
svg .bad rect { stroke: var(--bad); stroke-width: 1.6 }
svg .gone rect { stroke: var(--warn); stroke-dasharray: 5 4; fill: var(--paper) }
svg .asked rect { stroke: var(--ink); stroke-width: 2.6 }
svg .node:hover rect, svg .node:focus rect { stroke: var(--ink) }
section { border-top: 1px solid var(--line); padding: .7rem 0 .4rem }
h2 + section { border-top: 0; padding-top: 0 }
section:target { background: var(--wash) }
section h3 { margin: 0 0 .3rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: minmax(88px, 150px) 1fr; gap: .15rem .9rem; margin: .3rem 0;
  font-size: .92rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
p.links { font-size: .85rem; color: var(--soft); margin: .3rem 0; overflow-wrap: anywhere }
p.links a { margin-right: .8rem }
details { margin: .4rem 0; overflow-x: auto; font-size: .92rem }
summary { cursor: pointer; color: var(--soft) }
"""


def as_page(graph: Graph) -> str:
    """The page."""
    nodes = graph.ordered()
    anchors = {node.id: f"n{number}" for number, node in enumerate(nodes, 1)}
    lead = ". ".join(answer[:1].upper() + answer[1:] for answer in graph.answers)
    kinds = [name for kind, name in KINDS.items() if graph.of_kind(kind)]
    blocks = [
        html.contents([*kinds, *(["Missing"] if missing(graph) or graph.notes else [])]),
        drawing(graph, anchors, WIDE),
        drawing(graph, anchors, NARROW),
        html.note("A box leads to its section. Green: as it should be. Dashed: not on this machine, or not known."),
    ]
    for kind, name in KINDS.items():
        if found := graph.of_kind(kind):
            blocks.append(html.heading(name))
            blocks += [_section(graph, node, anchors) for node in found]
    if lines := [*missing(graph), *graph.notes]:
        blocks += [html.heading("Missing"), *(html.paragraph(line) for line in lines)]
    return html.page(f"Lineage of {graph.subject}", f"{lead}." if lead else "", blocks, style=_STYLE)


def _section(graph: Graph, node: Node, anchors: dict[str, str]) -> str:
    css = node.state if node.state in ("good", "warn", "bad") else ""
    brief = f" <span>({escape(node.brief)})</span>" if node.brief else ""
    parts = [f'<section id="{anchors[node.id]}"><h3 class="{css}">{escape(node.title)}{brief}</h3>']
    facts = [*node.facts, *(("missing", line) for line in node.missing)]
    if facts:
        rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in facts)
        parts.append(f"<dl>{rows}</dl>")
    if node.pictures:
        parts.append(html.gallery((picture.data, picture.caption, "") for picture in node.pictures))
    parts += [_table(table) for table in node.tables]
    parts.append(_links("from", graph.before(node), anchors) + _links("to", graph.after(node), anchors))
    return "".join(parts) + "</section>"


def _table(table: Table) -> str:
    return (
        f"<details><summary>{escape(table.title)} ({len(table.rows):,})</summary>"
        f"{html.table(table.columns, table.rows, bar=table.bar)}</details>"
    )


def _links(word: str, nodes: Iterable[Node], anchors: dict[str, str]) -> str:
    links = "".join(f"<a href=#{anchors[node.id]}>{escape(node.title)}</a> " for node in nodes)
    return f"<p class=links>{word} {links}</p>" if links else ""
