"""The palette of all figures and pages, foreign text in figures, and figures as PNG bytes or as inline SVG."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from align.display.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The palette, of figures and of pages. Text, secondary text, lines, backgrounds; then the colours of verdicts.
INK, SOFT, LINE, WASH, PAPER = "#1c2330", "#5c6675", "#dfe3ea", "#f6f7f9", "#ffffff"
GOOD, BAD, WARN = "#11734b", "#b3261e", "#8a5a00"
#: By the names of pages; and the colours of dark pages.
LIGHT = {"ink": INK, "soft": SOFT, "line": LINE, "wash": WASH, "paper": PAPER, "good": GOOD, "bad": BAD, "warn": WARN}
DARK = {"ink": "#e8ebf1", "soft": "#aab3c2", "line": "#3a4351", "wash": "#1d222c", "paper": "#12151b",
        "good": "#6fd3a3", "bad": "#ff9c94", "warn": "#ffd479"}  # fmt: skip

#: Fonts in the order in which a letter is looked for; those that are not installed are passed over. matplotlib brings
#: DejaVu: Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew, Arabic. The others are free, and common where Chinese,
#: Japanese, Korean, Devanagari, Bengali, Tamil or Thai is read (Debian: fonts-noto-cjk, fonts-noto-core).
_FAMILIES = (
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans Devanagari", "Noto Sans Bengali",
    "Noto Sans Tamil", "Noto Sans Thai",
)  # fmt: skip
#: Letters twice as wide as others: Chinese, Japanese, Korean.
_WIDE = re.compile("[\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\uff00-\uff60\U00020000-\U0003ffff]")


def legible(text: str, *, width: int, lines: int = 1) -> str:
    """Foreign text for a figure: what steers letters is shown as an escape; wrapped, and cut with an ellipsis.

    Args:
        text: any text.
        width: letters per line.
        lines: the highest number of lines.
    """
    text = visible(text[: 4 * width * lines])
    width = max(width * len(text) // max(len(text) + len(_WIDE.findall(text)), 1), 3)
    wrapped = textwrap.wrap(text, width)
    if len(wrapped) > lines:
        last = wrapped[lines - 1]
        while len(last) > width - 2 and " " in last:
            last = last.rpartition(" ")[0]
        wrapped[lines - 1 :] = [f"{last} …" if len(last) <= width - 2 else f"{last[: width - 1]}…"]
    return "\n".join(wrapped)


class Interval(NamedTuple):
    """A line of a forest plot: a difference in [-1, 1] with both bounds, and its colour."""

    label: str
    value: float
    low: float
    high: float
    colour: str


def forest(groups: Sequence[tuple[str, Sequence[Interval]]], *, about: str, margin: float = 0.0) -> Figure:
    """Differences with their intervals in percentage points, a line each, beside zero; under the name of each group.

    `about` says what is subtracted from what; `margin` is a second line of reference, dashed; 0: none.
    """
    from matplotlib.figure import Figure

    rows = [row for name, of in groups for row in ([(name, None)] if name else []) + [(one.label, one) for one in of]]
    figure = Figure(figsize=(5.4, 0.8 + 0.22 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for y, (_, one) in enumerate(rows):
        if one is not None:
            axes.plot([100 * one.low, 100 * one.high], [y, y], color=one.colour, lw=1.6, solid_capstyle="butt")
            axes.plot([100 * one.value], [y], "o", color=one.colour, ms=4.5)
    axes.axvline(0, color=SOFT, lw=1, zorder=0)
    if margin:
        axes.axvline(100 * margin, color=GOOD, lw=1, ls="--", zorder=0)
    axes.set_yticks(range(len(rows)), [legible(name, width=44) for name, _ in rows], fontsize=8)
    for label, (_, one) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("normal" if one else "bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"{about}, percentage points{'; dashed: the margin' if margin else ''}", fontsize=9)
    ends = sorted(100 * max(abs(one.low), abs(one.high)) for _, one in rows if one)
    most = 1.15 * max([ends[len(ends) * 3 // 4], 100 * abs(margin), *(100 * abs(one.value) for _, one in rows if one)])
    if most < ends[-1]:  # a few intervals that say nothing make no dots of all others
        axes.set_xlim(-most, most)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def histogram(labels: Sequence[str], counts: Sequence[int], kept: Sequence[int], about: str, counted: str) -> Figure:
    """A bar for each label, small enough for three side by side: what is kept of it is green, the rest red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 2.8), layout="constrained")
    axes, bars = figure.subplots(), range(len(labels))
    axes.bar(bars, kept, color=GOOD, width=0.8)
    dropped = [number - of_it for number, of_it in zip(counts, kept, strict=True)]
    axes.bar(bars, dropped, bottom=kept, color=BAD, alpha=0.75, width=0.8)
    axes.set_xticks(bars, labels, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_xlabel(about, fontsize=9, color=SOFT)
    tidy(axes, counted)
    return figure


def tidy(axes: Axes, counted: str | None = None) -> None:
    """Small letters, and lines on two sides only. `counted`: what the bars upright count."""
    if counted:
        axes.set_ylabel(counted, fontsize=9, color=SOFT)
        axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG. No text in it is read as mathematics: `$` is always a dollar.

    The bytes depend on the figure and on the fonts: on any machine they are the same for letters that DejaVu has; other
    letters are drawn if a font of `_FAMILIES` is installed, else as a box. (Pages show the same texts in the reader's
    fonts.)
    """
    return _saved(figure, "png", dpi=110, metadata={"Software": None})


#: Where the window is narrow, an SVG that is wider than this many pixels keeps its size, and scrolls.
_NARROW_PX = 600
_NAMES = {colour: f"var(--{name})" for name, colour in LIGHT.items()} | {"#000000": "var(--ink)"}


def svg(figure: Figure) -> str:
    """A matplotlib figure as SVG to stand in a page: its texts are texts, its colours those of the page.

    It has no `style` attributes, which the policy of pages forbids. Equal figures are equal text.
    """
    drawn = _saved(figure, "svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}).decode()
    _, _, body = drawn.partition("</defs>")  # the first has a style sheet alone
    body = re.sub("<[^>]*>", _without_style, re.sub("\n *", "", body))
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0]
    pixels = round(float(width) * 4 / 3)
    return (
        f'<svg class="plot{" wide" if pixels > _NARROW_PX else ""}" width="{pixels}" viewBox="0 0 {width} {height}" '
        f'fill="var(--ink)" stroke-linejoin="round">{body}'
    )


def _without_style(tag: re.Match[str]) -> str:
    """A tag with attributes for its style, without the ids of matplotlib's parts, which pages may have twice."""
    return re.sub(' style="([^"]*)"', _attributes, re.sub(r' id="[\w.]+_\d+"', "", tag[0]))


def _attributes(style: re.Match[str]) -> str:
    pairs = (rule.split(": ", 1) for rule in style[1].split("; "))
    kept = ((name, _NAMES.get(value, value)) for name, value in pairs if name != "font-family")
    return "".join(f' {name}="{value}"' for name, value in kept)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(_families())
    buffer = io.BytesIO()
    ticks = rc_context(  # drawing makes some texts
        {"text.parse_math": False, "font.family": _families(), "svg.fonttype": "none", "svg.hashsalt": "align"}
    )
    with ticks, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # texts come in any script; a box is enough
        figure.savefig(buffer, format=kind, bbox_inches="tight", **options)
    return buffer.getvalue()


@cache
def _families() -> list[str]:
    from matplotlib.font_manager import fontManager

    return [name for name in _FAMILIES if name in fontManager.get_font_names()]
