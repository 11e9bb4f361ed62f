"""The palette of all figures and pages, foreign text in figures, and figures as PNG bytes."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from functools import cache
from typing import TYPE_CHECKING

from align.display.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The palette, of figures and of pages. Text, secondary text, lines, backgrounds; then the colours of verdicts.
INK, SOFT, LINE, WASH = "#1c2330", "#5c6675", "#dfe3ea", "#f6f7f9"
GOOD, BAD, WARN = "#11734b", "#b3261e", "#8a5a00"

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


def png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG. No text in it is read as mathematics: `$` is always a dollar.

    The bytes depend on the figure and on the fonts: on any machine they are the same for letters that DejaVu has; other
    letters are drawn if a font of `_FAMILIES` is installed, else as a box. (Pages show the same texts in the reader's
    fonts.)
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(_families())
    buffer = io.BytesIO()
    ticks = rc_context({"text.parse_math": False, "font.family": _families()})  # drawing makes some texts
    with ticks, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # texts come in any script; a box is enough
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


@cache
def _families() -> list[str]:
    from matplotlib.font_manager import fontManager

    return [name for name in _FAMILIES if name in fontManager.get_font_names()]
