"""The report of a training stage: its numbers, its curves as metrics.jsonl and curve.csv, and their figure.

Times vary from run to run, so none of these files has any.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.display.figure import GOOD, INK, WARN, png
from align.display.report import Report, write_report
from align.durable.files import replace_directory, write_bytes, write_text
from align.training.run import Trained
from align.training.run_plan import TrainingPlan
from align.training.state import MetricRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class TrainingReport(Report):
    """Result of a training stage; `accepted_code_changes` are reasons given by people, see `CheckpointFolder.adopt`."""

    num_parameters: int
    num_training_images: int
    num_training_pairs: int
    accepted_code_changes: list[str]


def training_report(plan: TrainingPlan, trained: Trained) -> TrainingReport:
    """The numbers of a finished run; each metric is the last value that was measured. No steps saw no pairs."""
    stage, trains = plan.recipe.section, plan.recipe.num_steps > 0
    last = {name: value for row in trained.rows for name, value in row.items() if name != "step"}
    return TrainingReport(
        num_parameters=sum(param.numel() for param in trained.model.parameters()),
        num_training_images=plan.data.train.num_images if trains else 0,
        num_training_pairs=plan.data.num_training_pairs if trains else 0,
        accepted_code_changes=trained.accepted_code_changes,
        metrics={f"{stage}/{name}": value for name, value in last.items()}
        | {f"{stage}/num_steps": plan.recipe.num_steps},
    )


def write_training_report(report: TrainingReport, rows: Sequence[MetricRow], directory: Path, stage: str) -> None:
    """Writes the report folder; replaced whole.

    It holds report.json and metrics.json, metrics.jsonl for MLflow, curve.csv for DVC's plots (a cell is empty if
    the metric was not measured) and loss.png for people.
    """
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    lines = io.StringIO()
    lines.write(",".join(names) + "\n")
    for row in rows:
        lines.write(",".join(str(row.get(name, "")) for name in names) + "\n")
    with replace_directory(directory, stage) as part:
        write_text(part / "metrics.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
        write_text(part / "curve.csv", lines.getvalue())
        write_bytes(part / "loss.png", loss_and_recall(rows))
        write_report(report, part)


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
