"""A trace as one self-contained page: the chain drawn, then each link with its facts, numbers and pictures.

It loads nothing and runs nothing, and no link leads out of it: an address is text, as on every page of the project.
Everything is escaped, since texts, addresses and names are those of strangers.

The chain is an SVG: a row of boxes for each kind of link, and lines to what was made of it. Every box leads to its
section of the page. Its colours come from the page's style, so that it is dark where the page is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from align.display import html
from align.display.figure import legible
from align.display.html import data_uri, escape
from align.lineage.trace.graph import KINDS, Graph, Kind, Node, missing

#: Boxes of one kind that are drawn; the rest is one more box.
MAX_BOXES = 8
_GAP, _ROW_GAP, _PAD, _LINE, _THUMB = 14.0, 30.0, 10.0, 17.0, 52.0
_LETTER = 7.1  # mean width at 13 px
_MAX_WIDTH = 330.0


@dataclass(frozen=True)
class Layout:
    """How wide a drawing is: `label` is the space for the names of the rows, 0: they stand above; in CSS pixels."""

    width: float
    label: float
    per_line: int
    css: str


WIDE, NARROW = Layout(1040, 122, 4, "wide"), Layout(360, 0, 2, "narrow")


@dataclass(frozen=True)
class _Box:
    node: Node | None
    text: tuple[str, ...]
    x: float
    y: float
    width: float
    height: float


def drawing(graph: Graph, anchors: Mapping[str, str], layout: Layout) -> str:
    """An `<svg>`.

    Args:
        graph: the trace.
        anchors: id of a node -> id of its section in the page.
        layout: how wide.
    """
    boxes: dict[str, _Box] = {}
    more: list[tuple[_Box, Kind]] = []
    labels: list[tuple[str, float]] = []
    y = 4.0
    for kind, name in KINDS.items():
        nodes = graph.of_kind(kind)
        if not nodes:
            continue
        labels.append((name, y))
        y += 0 if layout.label else 22.0
        shown = nodes if len(nodes) <= MAX_BOXES else nodes[: MAX_BOXES - 1]
        lines = [shown[start : start + layout.per_line] for start in range(0, len(shown), layout.per_line)]
        for line in lines:
            placed = list(_line(line, y, layout))
            boxes |= {box.node.id: box for box in placed if box.node}
            y += max(box.height for box in placed) + _GAP
        if len(shown) < len(nodes):
            width = layout.width - layout.label - 2
            more.append(
                (_Box(None, (f"and {len(nodes) - len(shown):,} more",), layout.label + 1, y, width, 30.0), kind)
            )
            y += 30.0 + _GAP
        y += _ROW_GAP - _GAP
    height = y - _ROW_GAP + 6
    first = {kind: anchors[graph.of_kind(kind)[MAX_BOXES - 1].id] for _, kind in more}
    parts = [
        f'<svg class="chain {layout.css}" viewBox="0 0 {layout.width:.0f} {height:.0f}" role="group" '
        f'aria-label="The chain, from the source to the index; the same as text below">',
        *(_label(name, top, layout) for name, top in labels),
        *_edges(graph, boxes),
        *(_drawn(box, anchors[key], is_subject=key in graph.subjects) for key, box in boxes.items()),
        *(_drawn(box, first[kind], is_subject=False) for box, kind in more),
        "</svg>",
    ]
    return "\n".join(parts)


def _line(nodes: list[Node], y: float, layout: Layout) -> Iterator[_Box]:
    space = layout.width - layout.label - 2
    width = min((space - _GAP * (len(nodes) - 1)) / len(nodes), _MAX_WIDTH if layout.label else space)
    start = layout.label + 1 + (space - len(nodes) * width - _GAP * (len(nodes) - 1)) / 2
    texts = [_text(node, width) for node in nodes]
    height = max(
        2 * _PAD + _LINE * len(text) + (_THUMB + 6 if node.pictures else 0)
        for node, text in zip(nodes, texts, strict=True)
    )
    for number, (node, text) in enumerate(zip(nodes, texts, strict=True)):
        yield _Box(node, text, start + number * (width + _GAP), y, width, height)


def _text(node: Node, width: float) -> tuple[str, ...]:
    letters = int((width - 2 * _PAD) / _LETTER)
    lines = legible(node.title, width=letters, lines=2).splitlines() or ["(no name)"]
    brief = legible(node.brief, width=letters, lines=2).splitlines() if node.brief else []
    state = ["not on this machine"] if node.state == "gone" and not node.brief else []
    return (*lines, *(f"\0{line}" for line in (*brief, *state)))


def _label(name: str, top: float, layout: Layout) -> str:
    y = top + (_PAD + 12 if layout.label else 14)
    return f'<text class="kind" x="1" y="{y:.0f}">{escape(name)}</text>'


def _edges(graph: Graph, boxes: Mapping[str, _Box]) -> Iterator[str]:
    for one, other in graph.edges:
        if one in boxes and other in boxes and boxes[one].y < boxes[other].y:
            a, b = boxes[one], boxes[other]
            x1, y1, x2, y2 = a.x + a.width / 2, a.y + a.height, b.x + b.width / 2, b.y
            bend = min((y2 - y1) / 2, 40.0)
            yield (
                f'<path class="edge" d="M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} '
                f'{x2:.1f} {y2:.1f}"/>'
            )


def _drawn(box: _Box, anchor: str, *, is_subject: bool) -> str:
    node = box.node
    css = " ".join(filter(None, ("node", node.state if node else "", "asked" if is_subject else "")))
    title = f"{KINDS[node.kind]}: {node.title}" if node else box.text[0]
    parts = [
        f'<a href=#{anchor} class="{css}"><title>{escape(title)}</title>'
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="7"/>'
    ]
    y = box.y + _PAD + 12
    for line in box.text:
        soft = ' class="soft"' if line.startswith("\0") else ""
        parts.append(f'<text{soft} x="{box.x + _PAD:.1f}" y="{y:.1f}">{escape(line.removeprefix(chr(0)))}</text>')
        y += _LINE
    for number, picture in enumerate(node.pictures if node else ()):
        x = box.x + _PAD + number * (_THUMB + 6)
        if x + _THUMB > box.x + box.width - _PAD:
            break
        parts.append(
            f'<image x="{x:.1f}" y="{y - 8:.1f}" width="{_THUMB:.0f}" height="{_THUMB:.0f}" '
            f'href="{data_uri(picture.data, "image/jpeg")}"><title>{escape(picture.caption)}</title></image>'
        )
    return "".join(parts) + "</a>"


_STYLE = """
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
    for one in node.tables:
        parts.append(html.fold(f"{one.title} ({len(one.rows):,})", html.table(one.columns, one.rows, bar=one.bar)))
    parts.append(_links("from", graph.before(node), anchors) + _links("to", graph.after(node), anchors))
    return "".join(parts) + "</section>"


def _links(word: str, nodes: Iterable[Node], anchors: dict[str, str]) -> str:
    links = "".join(f"<a href=#{anchors[node.id]}>{escape(node.title)}</a> " for node in nodes)
    return f"<p class=links>{word} {links}</p>" if links else ""
