"""A trace as one self-contained page: the same sections, in the order of the chain.

It loads nothing and runs nothing, and no link leads out of it: an address is text, as on every page of the project.
Everything is escaped, since texts, addresses and names are those of strangers.
"""

from __future__ import annotations

from align.display import html
from align.display.html import escape
from align.lineage.trace.sections import KINDS, Section, Trace

_STYLE = """
section { border-top: 1px solid var(--line); padding: .7rem 0 .4rem }
h2 + section { border-top: 0; padding-top: 0 }
section.asked { border-left: 3px solid var(--ink); padding-left: .8rem }
section h3 { margin: 0 0 .3rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: minmax(88px, 150px) 1fr; gap: .15rem .9rem; margin: .3rem 0;
  font-size: .92rem }
dt { color: var(--soft) }
dd { margin: 0; overflow-wrap: anywhere }
details { font-size: .92rem }
"""


def as_page(trace: Trace) -> str:
    """The page."""
    lead = ". ".join(answer[:1].upper() + answer[1:] for answer in trace.answers)
    blocks = [html.note(line) for line in trace.notes]
    for kind, name in KINDS.items():
        if trace.has(kind):
            blocks.append(html.heading(name))
            blocks += [_section(one) for one in trace.sections if one.kind == kind]
    return html.page(f"Lineage of {trace.subject}", f"{lead}." if lead else "", blocks, style=_STYLE)


def _section(section: Section) -> str:
    parts = [
        f'<section{" class=asked" if section.asked else ""}><h3 class="{section.state}">{escape(section.title)}</h3>'
    ]
    facts = [*section.facts, *(("not here, because", line) for line in section.missing)]
    if facts:
        rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in facts)
        parts.append(f"<dl>{rows}</dl>")
    if section.pictures:
        parts.append(html.gallery((picture.data, picture.caption, "") for picture in section.pictures))
    for one in section.tables:
        parts.append(html.fold(f"{one.title} ({len(one.rows):,})", html.table(one.columns, one.rows, bar=one.bar)))
    return "".join(parts) + "</section>"
