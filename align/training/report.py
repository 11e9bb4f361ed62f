"""The report folder of a training stage. Times vary from run to run, so the report and its curves have none."""

from __future__ import annotations

import json
from pathlib import Path

from align.display.report import Report, write_report
from align.durable.files import replace_directory, write_text
from align.formats.verdict import NOT_GATED
from align.training.page import write_page
from align.training.plan import TrainingPlan
from align.training.train import Trained


class TrainingReport(Report):
    """Result of a training stage; `accepted_code_changes` are reasons given by people, see `CheckpointFolder.adopt`."""

    num_parameters: int
    num_training_images: int
    num_training_pairs: int
    accepted_code_changes: list[str]


def write_training_report(plan: TrainingPlan, trained: Trained, directory: Path) -> TrainingReport:
    """Writes the report folder of a finished run, which is replaced whole, and returns the report.

    Each of its metrics is the last value that was measured until the model's step. The folder has report.json and
    metrics.json, metrics.jsonl for MLflow, curve.csv for DVC's plots (a cell is empty if the metric was not measured),
    and report.html and loss.png for people.
    """
    rows, stage, trains = trained.rows, plan.recipe.section, plan.recipe.num_steps > 0
    last = {name: value for row in rows if row["step"] <= trained.step for name, value in row.items()}
    last |= {"num_steps": plan.recipe.num_steps}
    last |= {"exported_step": trained.step} if plan.recipe.export == "best" else {}
    report = TrainingReport(
        num_parameters=sum(param.numel() for param in trained.model.parameters()),
        num_training_images=plan.data.train.num_images if trains else 0,
        num_training_pairs=plan.data.num_training_pairs if trains else 0,
        accepted_code_changes=trained.accepted_code_changes,
        metrics={f"{stage}/{name}": value for name, value in last.items() if name != "step"},
    )
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    curve = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    data = f"{report.num_training_pairs:,} pairs of {report.num_training_images:,} images" if rows else "as they were"
    lead = f"{report.num_parameters:,} parameters, {data}."
    if plan.data.not_gated:
        lead += f" {NOT_GATED.capitalize()}: on tars that others made."
    with replace_directory(directory, stage) as part:
        write_text(part / "metrics.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
        write_text(part / "curve.csv", "".join(",".join(cells) + "\n" for cells in curve))
        write_page(stage, lead, report.metrics, trained, plan.sources().val, part)
        write_report(report, part)
    return report
