"""Figures of the evaluation report: recall against chance, retrieval examples, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from align.display.figure import BAD, GOOD, INK, LINE, SOFT, legible
from align.evaluate.examples import DIRECTIONS, NUM_ANSWERS, RetrievalExample
from align.evaluate.measure import Classification
from align.evaluate.protocols.recall import Score
from align.formats.query_ranks import CUTS
from align.pairs.picture import small

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_THUMBNAIL_PX = 160
#: Of the figure of confusions: its time and memory grow with their square, and more cannot be read.
_MAX_CLASSES = 60
#: Of shares, over a page of any colour, which shows where the share is small.
BLUE = "#3b7dd8"


def recall_figure(scores: Mapping[str, Mapping[str, Score]]) -> Figure:
    """Recall@1/5/10 with intervals, and chance as a red line, one panel per set. `scores`: set -> metric -> score."""
    figure = Figure(figsize=(max(5.0, 3.6 * len(scores)), 3.4), layout="constrained")
    all_axes = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    for axes, (name, of_set) in zip(all_axes, scores.items(), strict=True):
        for offset, (direction, label) in enumerate(DIRECTIONS.items()):
            chosen = [of_set[f"{direction}/recall@{k}"] for k in CUTS]
            x = np.arange(len(CUTS)) + (offset - 0.5) * 0.4
            values = np.array([score.value for score in chosen])
            spread = np.array([[s.value - s.low, s.high - s.value] for s in chosen]).T
            axes.bar(x, values, 0.36, color=(SOFT, LINE)[offset], edgecolor=SOFT, label=label)
            axes.errorbar(x, values, spread, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
            axes.hlines([s.chance for s in chosen], x - 0.19, x + 0.19, color=BAD, lw=2, label="chance" * (offset == 1))
        axes.set_xticks(range(len(CUTS)), [f"recall@{k}" for k in CUTS])
        axes.set_title(legible(name, width=40), loc="left", fontsize=11, fontweight="bold")
        _tidy(axes)
    all_axes[0].set_ylabel("queries")
    all_axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    all_axes[0].set_ylim(bottom=0)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="outside lower left")
    return figure


def examples_figure(direction: str, examples: Sequence[RetrievalExample]) -> Figure:
    """Queries with their nearest items, a line each."""
    height = 1.15 * max(len(examples), 1) + 0.7
    figure = Figure(figsize=(7.4, height))
    figure.suptitle(DIRECTIONS[direction], fontsize=11, fontweight="bold", x=0.02, ha="left")
    shape = {"wspace": 0.08, "hspace": 0.16, "width_ratios": [1.25] + [1] * NUM_ANSWERS}
    margins = {"left": 0.03, "right": 0.98, "top": 1 - 0.55 / height, "bottom": 0.05 / height}
    grid = figure.subplots(max(len(examples), 1), NUM_ANSWERS + 1, squeeze=False, gridspec_kw=shape | margins)
    for axes in grid.flat:
        axes.axis("off")
    for line, example in zip(grid, examples, strict=False):
        _draw_example(line, example)
    return figure


def confusion_figure(result: Classification) -> Figure:
    """For each true class (row), the share of its images that was assigned to each class (column).

    Of more than 60 classes, those that most images were wrongly taken from or for.
    """
    counts = result.confusion
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    shown = np.sort(np.argsort(-wrong, kind="stable")[:_MAX_CLASSES])
    names = [legible(result.source.classes[index], width=40) for index in shown]
    shares = counts[np.ix_(shown, shown)] / np.maximum(counts.sum(axis=1)[shown, None], 1)
    size = 2.2 + 0.19 * len(names)
    figure = Figure(figsize=(size, size * 0.93), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        shares, cmap=LinearSegmentedColormap.from_list("share", [to_rgba(BLUE, 0), to_rgba(BLUE)]), vmin=0, vmax=1
    )
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(names) < len(counts):
        axes.set_title(f"the {len(names)} of {len(counts):,} classes with the most confusions", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class", format=PercentFormatter(1))
    return figure


def _draw_example(row: NDArray[np.object_], example: RetrievalExample) -> None:
    verdict = GOOD if example.rank == 1 else BAD
    _draw(row[0], example.query, INK)
    row[0].set_title(f"rank {example.rank}", fontsize=7, color=verdict, pad=2)
    if isinstance(example.query, bytes):
        lines = [(str(text), GOOD if correct else BAD) for text, correct in example.answers]
        if example.rank > 1:
            lines.append((f"correct: {example.correct!s}", INK))
        for position, (text, color) in enumerate(lines):
            row[1].text(0, 1 - position / 6, legible(text, width=70), color=color, fontsize=8, va="top")
    else:
        for axes, (answer, correct) in zip(row[1:], example.answers, strict=False):
            _draw(axes, answer, GOOD if correct else BAD)


def _draw(axes: Axes, item: bytes | str, color: str) -> None:
    if isinstance(item, str):
        axes.text(0.0, 0.5, legible(item, width=18, lines=4), fontsize=8, color=color, va="center", ha="left")
        return
    axes.axis("on")
    axes.imshow(np.asarray(small(item, _THUMBNAIL_PX)))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=1 if color == INK else 2.5)


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color=LINE, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
