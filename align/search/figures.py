"""Search results as a figure."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from align.figure import BAD, GOOD, INK, SOFT
from align.html import thumbnail
from align.search.answers import AnsweredQuery, ImageAnswer

_THUMBNAIL_PX = 160


def search_figure(queries: Sequence[AnsweredQuery]) -> Figure:
    """One line per query: its words (and image), then its answers. A green frame: right; a red one: wrong."""
    with_image = any(query.image for query in queries)
    columns = max((len(query.answers) for query in queries), default=0) + 1 + with_image
    figure = Figure(figsize=(1.25 * (columns + 0.6), 1.5 * len(queries)))
    shape = {"width_ratios": [1.6] + [1] * (columns - 1), "wspace": 0.08, "hspace": 0.28}
    grid = figure.subplots(len(queries), columns, squeeze=False, gridspec_kw=shape)
    for line, query in zip(grid, queries, strict=True):
        for axes in line:
            axes.axis("off")
        color = {None: INK, True: GOOD, False: BAD}[query.right]
        words = {"va": "center", "color": color, "fontweight": "bold", "parse_math": False}
        line[0].text(0, 0.5, _wrap(query.query, 18), fontsize=9, **words)
        cells = [ImageAnswer(query.image, "", 0.0, None)] if query.image else []
        for axes, answer in zip(line[1:], [*cells, *query.answers], strict=False):
            axes.axis("on")
            axes.set_xticks([])
            axes.set_yticks([])
            with Image.open(io.BytesIO(thumbnail(answer.image, _THUMBNAIL_PX))) as image:
                axes.imshow(np.asarray(image))
            axes.set_xlabel(_wrap(answer.text, 20, lines=2), fontsize=6, labelpad=2, parse_math=False)
            for spine in axes.spines.values():
                spine.set(color={None: SOFT, True: GOOD, False: BAD}[answer.right], linewidth=2)
    return figure


def _wrap(text: str, width: int, lines: int = 4) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))
