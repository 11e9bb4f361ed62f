"""The figures of the evaluation report: recall against chance, retrieved examples, confusion, training curves."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from align.evaluate.measure import Classification, Retrieval
from align.evaluate.recall import CUTS, Score
from align.html import thumbnail

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GOOD, BAD, INK, SOFT = "#11734b", "#b3261e", "#1c2330", "#8a93a1"
#: How many answers an example shows.
NUM_ANSWERS = 5
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


@dataclass(frozen=True)
class Example:
    """A query with its nearest items. Images are encoded bytes, texts are strings.

    Attributes:
        query: what was asked.
        answers: the nearest items, best first, and whether each is correct.
        rank: rank of the best correct item, from 1.
        wanted: one correct text (image queries) or one correct image (text queries).
    """

    query: bytes | str
    answers: list[tuple[bytes | str, bool]]
    rank: int
    wanted: bytes | str


def examples(result: Retrieval, direction: str, *, number: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Draws up to `number` queries answered right (rank 1) and as many wrong (rank > 5), one a concept, by seed."""
    image_query = direction == "image_to_text"
    images = [image.image for image in result.source.images]
    texts = result.items.texts
    correct = result.items.texts_of_image if image_query else result.items.images_of_text
    concepts = result.items.image_concepts if image_query else result.items.text_concepts
    queries, items = (
        (result.image_embeds, result.text_embeds) if image_query else (result.text_embeds, result.image_embeds)
    )
    asked = [index for index, right in enumerate(correct) if len(right)]
    ranks = dict(zip(asked, (result.image_to_text if image_query else result.text_to_image).ranks, strict=True))

    right: list[Example] = []
    wrong: list[Example] = []
    seen: set[str] = set()
    for query in (asked[position] for position in np.random.default_rng(seed).permutation(len(asked))):
        found, rank = (right, ranks[query]) if ranks[query] == 1 else (wrong, ranks[query])
        if concepts[query] in seen or len(found) == number or 1 < rank <= NUM_ANSWERS:
            continue
        seen.add(concepts[query])
        nearest = np.argsort(-(items @ queries[query]), kind="stable")[:NUM_ANSWERS]
        answers = [(texts[i] if image_query else images[i], bool(i in correct[query])) for i in nearest]
        wanted = texts[correct[query][0]] if image_query else images[correct[query][0]]
        found.append(Example(images[query] if image_query else texts[query], answers, int(rank), wanted))
    return right, wrong


def recall_figure(scores: Mapping[str, Mapping[str, Score]]) -> Figure:
    """Recall@1/5/10 with intervals, and chance as a tick, one panel a set. `scores`: set -> metric -> score."""
    figure = Figure(figsize=(max(5.0, 3.6 * len(scores)), 3.4), layout="constrained")
    all_axes = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
    for axes, (name, of_set) in zip(all_axes, scores.items(), strict=True):
        for offset, (direction, label) in enumerate(DIRECTIONS.items()):
            chosen = [of_set[f"{direction}/recall@{k}"] for k in CUTS]
            x = np.arange(len(CUTS)) + (offset - 0.5) * 0.4
            values = np.array([score.value for score in chosen])
            spread = np.array([[s.value - s.low, s.high - s.value] for s in chosen]).T
            axes.bar(x, values, 0.36, color=("#2f6fb0", "#e08a2c")[offset], label=label)
            axes.errorbar(x, values, spread, fmt="none", ecolor=INK, elinewidth=1.1, capsize=3)
            axes.hlines([s.chance for s in chosen], x - 0.19, x + 0.19, color=BAD, lw=2, label="chance" * (offset == 1))
        axes.set_xticks(range(len(CUTS)), [f"recall@{k}" for k in CUTS])
        axes.set_title(name, loc="left", fontsize=11, fontweight="bold")
        _tidy(axes)
    all_axes[0].set_ylabel("share of queries")
    all_axes[0].set_ylim(bottom=0)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(labels), loc="outside lower left")
    return figure


def examples_figure(groups: Mapping[str, tuple[Sequence[Example], Sequence[Example]]]) -> Figure:
    """Retrieved examples, right ones above wrong ones, a column for each direction."""
    columns = list(groups.items())
    depth = max((len(right) + len(wrong) for _, (right, wrong) in columns), default=1) or 1
    height = 1.15 * depth + 0.7
    figure = Figure(figsize=(7.4 * max(len(columns), 1), height))
    panels = figure.subfigures(1, max(len(columns), 1), squeeze=False)[0]
    for panel, (direction, (right, wrong)) in zip(panels, columns, strict=False):
        panel.suptitle(DIRECTIONS[direction], fontsize=11, fontweight="bold", x=0.02, ha="left")
        shape = {"wspace": 0.08, "hspace": 0.16, "width_ratios": [1.25] + [1] * NUM_ANSWERS}
        margins = {"left": 0.03, "right": 0.98, "top": 1 - 0.55 / height, "bottom": 0.05 / height}
        grid = panel.subplots(depth, NUM_ANSWERS + 1, squeeze=False, gridspec_kw=shape | margins)
        for axes in grid.flat:
            axes.axis("off")
        for row, example in enumerate([*right, *wrong]):
            _draw_example(grid[row], example)
    return figure


def confusion_figure(result: Classification) -> Figure:
    """Share of each true class (row) that was given each class (column)."""
    names, counts = result.source.classes, result.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.2 + 0.19 * len(names)
    figure = Figure(figsize=(size, size * 0.93), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return figure


def curves_figure(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Loss, validation recall, temperature and learning rate over steps; each run goes on where the last one ended.

    Args:
        runs: stage -> rows of its `metrics.jsonl`, each with `step`.
    """
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplots(2, 2)
    series = {
        "loss": ["train/loss"],
        "validation recall": [f"val/{direction}/recall@{k}" for direction in DIRECTIONS for k in (1, 10)],
        "temperature": ["train/temperature"],
        "learning rate": ["train/learning_rate"],
    }
    for axes, (title, keys) in zip(panels.flat, series.items(), strict=True):
        for position, key in enumerate(keys):
            offset = 0.0
            for stage, rows in runs.items():
                points = [(offset + row["step"], row[key]) for row in rows if key in row]
                if points:
                    label = key.removeprefix("val/").replace("_", " ") if len(keys) > 1 else stage
                    color = f"C{position}" if len(keys) > 1 else None
                    axes.plot(
                        *zip(*points, strict=True),
                        color=color,
                        label=None if offset and len(keys) > 1 else label,
                        marker="." if len(points) < 30 else None,  # one point alone makes no line
                    )
                offset += max((row["step"] for row in rows), default=0)
                if stage != list(runs)[-1]:
                    axes.axvline(offset, color=SOFT, lw=0.8, ls=":")
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("step")
        if axes.has_data() and axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
        _tidy(axes)
    return figure


def _draw_example(row: NDArray[np.object_], example: Example) -> None:
    verdict = GOOD if example.rank == 1 else BAD
    _draw(row[0], example.query, INK)
    row[0].set_title(f"rank {example.rank}", fontsize=7, color=verdict, pad=2)
    if isinstance(example.query, bytes):
        lines = [(str(text), GOOD if correct else BAD) for text, correct in example.answers]
        if example.rank > 1:
            lines.append((f"wanted: {example.wanted!s}", INK))
        for position, (text, color) in enumerate(lines):
            row[1].text(0, 1 - position / 6, _short(text, 70), color=color, fontsize=8, va="top")
    else:
        for axes, (answer, correct) in zip(row[1:], example.answers, strict=False):
            _draw(axes, answer, GOOD if correct else BAD)


def _draw(axes: Axes, item: bytes | str, color: str) -> None:
    if isinstance(item, str):
        axes.text(0.0, 0.5, _wrap(item), fontsize=8, color=color, va="center", ha="left")
        return
    axes.axis("on")
    axes.imshow(_decode(item))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=1 if color == INK else 2.5)


def _decode(data: bytes) -> Any:
    with Image.open(io.BytesIO(thumbnail(data, 160))) as image:
        return np.asarray(image)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _wrap(text: str) -> str:
    return "\n".join(textwrap.wrap(_short(text, 64), 18))


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color="#dfe3ea", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
