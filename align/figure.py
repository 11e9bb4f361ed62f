"""One palette for every figure and page, and a figure as bytes."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The palette. `align.html` uses the same colours.
INK, SOFT, LINE, WASH = "#1c2330", "#5c6675", "#dfe3ea", "#f6f7f9"
GOOD, BAD, WARN = "#11734b", "#b3261e", "#8a5a00"


def png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG bytes that depend on nothing but the figure (no software tag, no date)."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # texts come in any script; a box will do
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
