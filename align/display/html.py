"""Report pages: self-contained HTML (inline CSS, pictures as data URIs) that needs no network.

Blocks are strings of HTML, which `page` joins as they are. Every function here escapes the text that it gets. If a
block ever holds a stranger's HTML, the page's policy still keeps a browser from running it or loading anything for it.
The policy allows one style, by its hash, and no `style` attributes: a bar's width is an attribute of its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from align.display.figure import DARK, LIGHT, svg
from align.display.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LIGHT, _DARK = ("; ".join(f"--{name}: {colour}" for name, colour in of.items()) for of in (LIGHT, DARK))
_COLOURS = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
"""
_STYLE = (
    _COLOURS
    + """* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1080px; margin: 2rem auto; padding: 0 1.25rem }
h1 { font-size: 1.6rem; margin: 0 0 .25rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem }
h3 { font-size: .95rem; margin: 1.1rem 0 .3rem }
p.lead { color: var(--soft); margin: 0 0 1rem }
h1, h2, h3, p, li { overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: .5rem 0; background:
  linear-gradient(to left, var(--paper) 30px, transparent 60px) right / 60px 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / 14px 100% no-repeat scroll }
table { border-collapse: collapse; font-size: .92rem }
.scroll > table { width: max-content; max-width: 100% }
@media (max-width: 900px) { .scroll > table { max-width: max(100%, 720px) } }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 600 }
td { overflow-wrap: break-word; min-width: 4.2rem }
td.long { overflow-wrap: anywhere }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-left: .8rem }
.good { color: var(--good); font-weight: 600 }
.bad { color: var(--bad); font-weight: 600 }
.warn { color: var(--warn); font-weight: 600 }
.cards { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0 1.4rem }
.cards div { background: var(--wash); border: 1px solid var(--line); border-radius: 8px; padding: .55rem .9rem;
  min-width: 120px }
.cards b { display: block; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums }
.cards span { color: var(--soft); font-size: .8rem; font-weight: 400 }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 0 2rem;
  align-items: start }
.side > div { min-width: 0 }
nav { font-size: .85rem; margin: 0 0 .4rem }
a { color: inherit }
nav a { color: var(--soft); margin-right: 1rem; display: inline-block; line-height: 1.8 }
td.bar { min-width: 96px; padding-top: .62rem }
td.bar hr { margin: 0; border: 0; height: .72rem; border-radius: 2px; background: var(--soft) }
.bars { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 .8rem; font-variant-numeric: tabular-nums;
  font-size: .85rem; overflow-wrap: anywhere }
.bars span + span { white-space: nowrap; text-align: right }
.bars div { grid-column: 1 / -1; display: flex; margin-bottom: .5rem }
.bars hr { margin: 0; border: 0; height: .9rem; background: var(--good) }
.bars hr + hr { background: var(--bad); opacity: .75 }
table.example td { border: 0; padding-right: 1.2rem }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 4px; padding: .55rem .8rem;
  font-size: .85rem; overflow-x: auto }
details { margin: .5rem 0 }
summary { cursor: pointer; color: var(--soft) }
svg.plot { display: block; height: auto; max-width: 100%; font-size: 10px }
@media (max-width: 900px) { svg.plot.wide { max-width: none } }
svg.band { display: block; width: 120px; height: 14px; margin-top: .25rem }
svg.band .within { fill: var(--good); opacity: .3 }
svg.band .line { fill: var(--line) }
p.note { color: var(--soft); font-size: .85rem; max-width: 820px }
img { max-width: 100% }
.gallery { display: flex; flex-wrap: wrap; gap: .7rem; margin: .6rem 0 }
figure { margin: 0; width: 109px; font-size: .74rem; line-height: 1.3; color: var(--soft); overflow-wrap: anywhere }
figure img { width: 109px; height: 109px; object-fit: contain; background: var(--wash);
  border: 1px solid var(--line); border-radius: 4px; display: block; margin-bottom: .2rem }
figure.good, figure.bad { color: var(--soft); font-weight: 400 }
figure.good img { border: 2px solid var(--good) }
figure.bad img { border: 2px solid var(--bad) }
"""
)


def policy(style: str = "") -> str:
    """The content security policy of a page with one more style. It allows no scripts, frames, fonts or connections."""
    sha256 = base64.b64encode(hashlib.sha256((_STYLE + style).encode()).digest()).decode("ascii")
    return f"default-src 'none'; img-src data:; style-src 'sha256-{sha256}'; base-uri 'none'; form-action 'none'"


_HEADING = re.compile("<h2 id=([^>]+)>(.*?)</h2>")
_DIGEST = re.compile(r"\b[0-9a-f]{40,64}\b")
#: A cell with a number in words of its own, such as `+1.5` or `98.0%`.
_FIGURE = re.compile(r"[-+−]?\d[\d,.]*( ?(%|px|MB|GB))?|unknown")
#: Characters of a word that a column is as wide as: the longest name of a rule has 29.
_LONGEST_WORD = 32
#: The policy of pages without a style of their own.
POLICY = policy()


def escape(value: Any) -> str:
    """Text as HTML; characters that turn the letters around, or that nothing can encode, are shown as escapes."""
    return html.escape(visible(str(value), lines=True))


def page(title: str, lead: str, blocks: Iterable[str], *, style: str = "") -> str:
    """A whole page, with links to its sections if it has more than three.

    `lead` is the sentence under the title, which says the verdict; `style` is more CSS that the page needs.
    """
    body = "\n".join(blocks)
    if (links := _HEADING.findall(body))[3:]:
        listed = "".join(f"<a href=#{anchor}>{words}</a> " for anchor, words in links)
        first = body.index("<h2 id=")
        body = f"{body[:first]}<nav>{listed}</nav>{body[first:]}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy(style)}">'
        f'<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title>"
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}{style}</style></head>\n<body><main><h1>{escape(title)}</h1><p class=lead>{prose(lead)}</p>"
        f"\n{body}\n</main></body></html>\n"
    )


def prose(value: Any) -> str:
    """Text as HTML in which `words` of code are drawn as code, and of a digest its first letters: its title has all."""
    text = re.sub("`([^`\n]+)`", r"<code>\1</code>", escape(value))
    return _DIGEST.sub(lambda found: f'<code title="{found[0]}">{found[0][:12]}</code>', text)


def heading(text: str) -> str:
    """A section heading, which the page links to."""
    return f"<h2 id={_anchor(text)}>{escape(text)}</h2>"


def subheading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def _anchor(text: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text.lower()) or "-"


def cards(items: Iterable[tuple[str, str, str]]) -> str:
    """The most important numbers, in large print: (what, value, CSS class: '', 'good', 'warn' or 'bad')."""
    shown = [
        f'<div><b class="{css}">{escape(value)}</b><span>{escape(what)}</span></div>' for what, value, css in items
    ]
    return f"<div class=cards>{''.join(shown)}</div>"


def side_by_side(blocks: Iterable[str]) -> str:
    """Blocks next to each other where the window is wide enough."""
    return f"<div class=side>{''.join(f'<div>{block}</div>' for block in blocks)}</div>"


def note(text: str) -> str:
    """A paragraph in small print."""
    return f"<p class=note>{prose(text)}</p>"


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{prose(text)}</p>"


def code(text: str) -> str:
    """Lines to copy, as they are."""
    return f"<pre tabindex=0>{escape(text)}</pre>"


def link(words: str, address: str) -> str:
    """A link."""
    return f'<a href="{escape(address)}">{escape(words)}</a>'


def scroll(block: str, about: str) -> str:
    """A block that may be wider than the window: it scrolls in itself, with keys, too. `about`: what it is."""
    return f'<div class=scroll tabindex=0 role=group aria-label="{escape(about)}">{block}</div>'


def plot(figure: Figure, *, alt: str) -> str:
    """A figure, drawn in the colours and the letters of the page."""
    return scroll(svg(figure).replace("<svg ", f'<svg role=img aria-label="{escape(alt)}" ', 1), alt)


def fold(title: str, block: str) -> str:
    """A block that is closed until somebody opens it."""
    return f"<details><summary>{escape(title)}</summary>{block}</details>"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    verdict: int | None = None,
    bar: int | None = None,
    drawn: int | None = None,
) -> str:
    """A table; numbers are aligned to the right. A verdict is the first column: in a narrow window it is seen.

    Args:
        columns: the head.
        rows: one cell per column.
        verdict: index of a column shown in colour: True passed, False failed, a text (such as `accepted`) neither.
        bar: index of a column of shares, 0 to 1, which are drawn as bars.
        drawn: index of a column of blocks.
    """
    rows = list(rows)
    numeric = [
        index not in (bar, drawn) and _are_numbers([row[index] for row in rows]) for index in range(len(columns))
    ]
    cells = []
    for row in rows:
        line = []
        for index, value in enumerate(row):
            if index == verdict:
                css = "warn" if isinstance(value, str) else "good" if value else "bad"
                text = value if isinstance(value, str) else "passed" if value else "failed"
                line.append(f"<td class={css}>{escape(text)}</td>")
            elif index == bar:
                line.append(f"<td class=bar><hr width={100 * min(max(value, 0.0), 1.0):.1f}%></td>")
            elif index == drawn:
                line.append(f"<td>{value}</td>")
            else:
                shown = value
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
                is_long = any(len(word) > _LONGEST_WORD for word in str(shown).split())  # an address, which may break
                css = " class=number" if numeric[index] else " class=long" if is_long else ""
                line.append(f"<td{css}>{prose(shown)}</td>")
        cells.append(f"<tr>{''.join(line)}</tr>")
    head = "".join(
        f"<th{' class=number' * number}>{escape(name)}</th>" if name else "<td></td>"
        for name, number in zip(columns, numeric, strict=True)
    )
    return scroll(f"<table><tr>{head}</tr>{''.join(cells)}</table>", f"table: {', '.join(columns)}")


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether a column's values are numbers, as such or in words; some may be empty."""
    some = [value for value in values if value not in ("", None)]
    return bool(some) and all(
        (isinstance(value, (int, float)) and not isinstance(value, bool)) or _FIGURE.fullmatch(str(value))
        for value in some
    )


def bars(items: Iterable[tuple[str, str, float, float]]) -> str:
    """Bars as wide as the page: (what, its numbers in words, the share that is left, the share that went)."""
    shown = (
        f"<span>{escape(what)}</span><span>{escape(words)}</span>"
        f"<div><hr width={100 * left:.1f}%><hr width={100 * gone:.1f}%></div>"
        for what, words, left, gone in items
    )
    return f"<div class=bars>{''.join(shown)}</div>"


def picture(data: bytes, *, mime: str = "image/png", alt: str = "") -> str:
    """An image as a data URI."""
    return f'<img alt="{escape(alt)}" src="{data_uri(data, mime)}">'


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def gallery(items: Iterable[tuple[bytes, str, str]]) -> str:
    """Pictures with captions: (JPEG or PNG bytes, caption, CSS class: '', 'good' or 'bad')."""
    figures = []
    for data, caption, css in items:
        mime = "image/png" if data[:4] == b"\x89PNG" else "image/webp" if data[8:12] == b"WEBP" else "image/jpeg"
        figures.append(f'<figure class="{css}">{picture(data, mime=mime, alt=caption)}{escape(caption)}</figure>')
    return f"<div class=gallery>{''.join(figures)}</div>"
