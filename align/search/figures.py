"""Search results as a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from align.display.figure import BAD, GOOD, INK, SOFT, legible
from align.pairs.picture import small
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
        words = legible(query.query, width=18, lines=4)
        line[0].text(0, 0.5, words, fontsize=9, va="center", color=color, fontweight="bold")
        cells = [ImageAnswer(query.image, "", 0.0, None)] if query.image else []
        for axes, answer in zip(line[1:], [*cells, *query.answers], strict=False):
            axes.axis("on")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.imshow(np.asarray(small(answer.image, _THUMBNAIL_PX)))
            axes.set_xlabel(legible(answer.text, width=20, lines=2), fontsize=6, labelpad=2)
            for spine in axes.spines.values():
                spine.set(color={None: SOFT, True: GOOD, False: BAD}[answer.right], linewidth=2)
    return figure
