"""Training curves: metrics.jsonl for MLflow, curve.csv for DVC plots, loss.png for people. No times in them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.figure import png
from align.files import write_bytes, write_text

#: A row: `step` and the metrics known at it.
Row = dict[str, float | int]


def write_curves(rows: Sequence[Row], directory: Path) -> None:
    """Writes metrics.jsonl, curve.csv (empty cells where a metric was not measured) and loss.png."""
    write_text(directory / "metrics.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    lines = io.StringIO()
    lines.write(",".join(names) + "\n")
    for row in rows:
        lines.write(",".join(str(row.get(name, "")) for name in names) + "\n")
    write_text(directory / "curve.csv", lines.getvalue())
    write_bytes(directory / "loss.png", _picture(rows))


def _picture(rows: Sequence[Row]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2))
    FigureCanvasAgg(figure)
    loss, recall = figure.subplots(1, 2)
    _line(loss, rows, "train/loss", "loss")
    loss.set_title("training loss (sum of both directions)")
    for name in ("image_to_text", "text_to_image"):
        _line(recall, rows, f"val/{name}/recall@10", name.replace("_", " "))
    recall.set_title("validation recall@10")
    recall.set_ylim(bottom=0)
    recall.legend(frameon=False)
    for axes in (loss, recall):
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _line(axes: Any, rows: Sequence[Row], name: str, label: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    axes.plot([x for x, _ in points], [y for _, y in points], label=label)
