"""The palette of all figures and pages, and figures as PNG bytes."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The palette, of figures and of `align.html`. Text, secondary text, lines, backgrounds; then the colours of verdicts.
INK, SOFT, LINE, WASH = "#1c2330", "#5c6675", "#dfe3ea", "#f6f7f9"
GOOD, BAD, WARN = "#11734b", "#b3261e", "#8a5a00"


def png(figure: Figure) -> bytes:
    """A matplotlib figure as PNG. The bytes depend on the figure alone (no software tag, no date)."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # texts come in any script; a box is enough
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
