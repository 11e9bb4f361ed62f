"""The figure of a training run: loss and recall over its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.display.figure import GOOD, INK, WARN, png
from align.training.state import MetricRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_and_recall(rows: Sequence[MetricRow]) -> bytes:
    """The PNG of two curves side by side: training loss, and validation recall@10 in both directions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2))
    FigureCanvasAgg(figure)
    loss, recall = figure.subplots(1, 2)
    _line(loss, rows, "train/loss", label="loss", colour=INK)
    loss.set_title("training loss (sum of both directions)")
    for name, colour in (("image_to_text", GOOD), ("text_to_image", WARN)):
        _line(recall, rows, f"val/{name}/recall@10", label=name.replace("_", " "), colour=colour)
    recall.set_title("validation recall@10")
    recall.set_ylim(bottom=0)
    recall.legend(loc="lower right", frameon=False)
    for axes in (loss, recall):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _line(axes: Axes, rows: Sequence[MetricRow], name: str, *, label: str, colour: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    axes.plot([step for step, _ in points], [value for _, value in points], label=label, color=colour)
