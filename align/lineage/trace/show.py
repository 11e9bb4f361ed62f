"""A trace as text, and as one self-contained page: the same sections, in the order of the chain.

The page loads nothing and runs nothing, and no link leads out of it: an address is text, as on every page of the
project. Everything is escaped, since texts, addresses and names are those of strangers.
"""

from __future__ import annotations

from collections.abc import Iterator

from align.display import html
from align.display.html import escape
from align.lineage.trace.sections import KINDS, Section, Trace

_WIDTH = 20
_STYLE = """
section { border-top: 1px solid var(--line); padding: .7rem 0 .4rem }
h2 + section { border-top: 0; padding-top: 0 }
section.asked { border-left: 3px solid var(--ink); padding-left: .8rem }
section h3 { margin: 0 0 .3rem; overflow-wrap: anywhere }
dl { display: grid; grid-template-columns: minmax(88px, 150px) 1fr; gap: .15rem .9rem; margin: .3rem 0;
  font-size: .92rem }
dt { color: var(--soft); overflow-wrap: anywhere }
dd { margin: 0; overflow-wrap: anywhere }
"""


def text_lines(trace: Trace) -> Iterator[str]:
    """All lines. `>` marks what was asked for."""
    yield f"{trace.subject}: where it comes from, and where it went"
    yield from (f"  {answer}" for answer in trace.answers)
    for section in trace.sections:
        yield ""
        yield f"{'>' if section.asked else ' '} {KINDS[section.kind].lower():<{_WIDTH}}  {section.title}"
        for label, value in _facts(section):
            yield f"    {label:<{_WIDTH - 2}}  {value}"


def as_page(trace: Trace) -> str:
    """The page."""
    lead = ". ".join(answer[:1].upper() + answer[1:] for answer in trace.answers)
    kinds = {kind: name for kind, name in KINDS.items() if any(one.kind == kind for one in trace.sections)}
    blocks = [html.note(line) for line in trace.notes]
    for kind, name in kinds.items():
        blocks.append(html.heading(name))
        blocks += [_block(one) for one in trace.sections if one.kind == kind]
    return html.page(f"Lineage of {trace.subject}", f"{lead}." if lead else "", blocks, style=_STYLE)


def _block(section: Section) -> str:
    head = f'<section{" class=asked" if section.asked else ""}><h3 class="{section.state}">{escape(section.title)}</h3>'
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd>" for label, value in _facts(section))
    shown = html.gallery((one.data, one.caption, "") for one in section.pictures) if section.pictures else ""
    return f"{head}<dl>{rows}</dl>{shown}</section>"


def _facts(section: Section) -> list[tuple[str, str]]:
    return [*section.facts, *(("not here, because", line) for line in section.missing)]
