"""What search found, as a figure and as a self-contained page."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from align.html import escape, gallery, heading, page, paragraph, picture, thumbnail

_GOOD, _BAD, _PLAIN = "#11734b", "#b3261e", "#8a93a1"
_THUMBNAIL_PX = 160


@dataclass(frozen=True)
class Found:
    """An image found.

    Attributes:
        image: encoded bytes.
        text: one of its texts.
        score: cosine with the query.
        right: whether it is what was meant; None where that is open.
    """

    image: bytes
    text: str
    score: float
    right: bool | None


@dataclass(frozen=True)
class Row:
    """A query and what it found.

    Attributes:
        query: the text, or the words for what was asked.
        image: the query image's bytes, where there is one.
        found: nearest first.
        right: whether the query counts as answered; None where nobody said.
    """

    query: str
    image: bytes | None
    found: Sequence[Found]
    right: bool | None


def search_figure(rows: Sequence[Row]) -> Figure:
    """One line a query: its words (and image), then what was found, framed green where it is right, red where not."""
    with_image = any(row.image for row in rows)
    columns = max((len(row.found) for row in rows), default=0) + 1 + with_image
    figure = Figure(figsize=(1.25 * (columns + 0.6), 1.5 * len(rows)))
    grid = figure.subplots(
        len(rows), columns, squeeze=False,
        gridspec_kw={"width_ratios": [1.6] + [1] * (columns - 1), "wspace": 0.08, "hspace": 0.28},
    )  # fmt: skip
    for line, row in zip(grid, rows, strict=True):
        for axes in line:
            axes.axis("off")
        color = {None: "#1c2330", True: _GOOD, False: _BAD}[row.right]
        line[0].text(0, 0.5, _wrap(row.query, 18), fontsize=9, va="center", color=color, fontweight="bold")
        cells = [Found(row.image, "", 0.0, None)] if row.image else []
        for axes, found in zip(line[1:], [*cells, *row.found], strict=False):
            axes.axis("on")
            axes.set_xticks([])
            axes.set_yticks([])
            with Image.open(io.BytesIO(thumbnail(found.image, _THUMBNAIL_PX))) as image:
                axes.imshow(np.asarray(image))
            axes.set_xlabel(_wrap(found.text, 20, lines=2), fontsize=6, labelpad=2)
            for spine in axes.spines.values():
                spine.set(color={None: _PLAIN, True: _GOOD, False: _BAD}[found.right], linewidth=2)
    return figure


def search_page(title: str, lead: str, sections: Mapping[str, Sequence[Row]]) -> str:
    """A page with the pictures: section -> its queries."""
    blocks = []
    for name, rows in sections.items():
        if not rows:
            continue
        blocks.append(heading(name))
        for row in rows:
            css = {None: "", True: "good", False: "bad"}[row.right]
            blocks.append(f"<p><b class='{css}'>{escape(row.query)}</b></p>")
            if row.image:
                blocks.append(picture(thumbnail(row.image, _THUMBNAIL_PX), mime="image/jpeg", alt="query image"))
            if not row.found:
                blocks.append(paragraph("Nothing found."))
            blocks.append(
                gallery(
                    (
                        thumbnail(found.image, _THUMBNAIL_PX),
                        f"{found.score:.3f} {found.text}",
                        {None: "", True: "good", False: "bad"}[found.right],
                    )
                    for found in row.found
                )
            )
    return page(title, lead, blocks)


def _wrap(text: str, width: int, lines: int = 4) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
