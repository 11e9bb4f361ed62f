"""A trace as one self-contained page: the chain as boxes, then each link with its facts, numbers and pictures.

It loads nothing and runs nothing, and no link leads out of it: an address is text, as on every page of the project.
Everything is escaped, since texts, addresses and names are those of strangers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from align.display import html
from align.display.figure import legible
from align.display.html import escape
from align.lineage.trace.graph import KINDS, Graph, Node, missing

#: Boxes of one kind that are shown; the rest is one more box.
MAX_BOXES = 8
#: Letters of a line in a box.
_WIDTH = 40

_STYLE = """
a { color: inherit }
.chain a { display: inline-block; vertical-align: top; max-width: 330px; margin: 0 .5rem .5rem 0; padding: .3rem .6rem;
  background: var(--wash); border: 1px solid var(--line); border-radius: 7px; color: inherit; font-weight: 400;
  text-decoration: none }
.chain small, .chain img { display: block }
.chain img { height: 52px; margin-top: .3rem }
.chain a.good { border-color: var(--good) }
.chain a.warn { border-color: var(--warn) }
.chain a.bad { border-color: var(--bad) }
.chain a.gone { border: 1px dashed var(--warn); background: var(--paper) }
.chain a.asked { border: 2px solid var(--ink) }
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
details { font-size: .92rem }
"""


def as_page(graph: Graph) -> str:
    """The page."""
    nodes = graph.ordered()
    anchors = {node.id: f"n{number}" for number, node in enumerate(nodes, 1)}
    lead = ". ".join(answer[:1].upper() + answer[1:] for answer in graph.answers)
    kinds = [name for kind, name in KINDS.items() if graph.of_kind(kind)]
    blocks = [
        html.contents([*kinds, *(["Missing"] if missing(graph) or graph.notes else [])]),
        _chain(graph, anchors),
        html.note("A box leads to its section. Green: as it should be. Dashed: not on this machine, or not known."),
    ]
    for kind, name in KINDS.items():
        if found := graph.of_kind(kind):
            blocks.append(html.heading(name))
            blocks += [_section(graph, node, anchors) for node in found]
    if lines := [*missing(graph), *graph.notes]:
        blocks += [html.heading("Missing"), *(html.paragraph(line) for line in lines)]
    return html.page(f"Lineage of {graph.subject}", f"{lead}." if lead else "", blocks, style=_STYLE)


def _chain(graph: Graph, anchors: Mapping[str, str]) -> str:
    """A row of boxes for each kind of link, in the order of the chain."""
    rows = []
    for kind, name in KINDS.items():
        shown, rest = (nodes := graph.of_kind(kind))[:MAX_BOXES], nodes[MAX_BOXES:]
        boxes = [_box(node, anchors[node.id], is_subject=node.id in graph.subjects) for node in shown]
        boxes += [f"<a href=#{anchors[rest[0].id]}>and {len(rest):,} more</a>"] if rest else []
        rows += [f"<dt>{escape(name)}</dt><dd>{''.join(boxes)}</dd>"] if boxes else []
    return f"<dl class=chain>{''.join(rows)}</dl>"


def _box(node: Node, anchor: str, *, is_subject: bool) -> str:
    title, brief = (escape(legible(text, width=_WIDTH, lines=2)) for text in (node.title, node.brief))
    if not brief and node.state == "gone":
        brief = "not on this machine"
    pictures = "".join(html.picture(one.data, mime="image/jpeg", alt=one.caption) for one in node.pictures[:1])
    small = f"<small>{brief}</small>" if brief else ""
    css = f"{node.state}{' asked' * is_subject}"
    return f'<a href=#{anchor} class="{css}">{title or "(no name)"}{small}{pictures}</a>'


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
    for one in node.tables:
        parts.append(html.fold(f"{one.title} ({len(one.rows):,})", html.table(one.columns, one.rows, bar=one.bar)))
    parts.append(_links("from", graph.before(node), anchors) + _links("to", graph.after(node), anchors))
    return "".join(parts) + "</section>"


def _links(word: str, nodes: Iterable[Node], anchors: dict[str, str]) -> str:
    links = "".join(f"<a href=#{anchors[node.id]}>{escape(node.title)}</a> " for node in nodes)
    return f"<p class=links>{word} {links}</p>" if links else ""
