"""What the stages `pretrain` and `finetune` share: from params.yaml to a plan, and from its result to their folders.

A stage adds its recipe, its model and the folder that the model goes to. Times vary from run to run, so the report and
its curves have none.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from align.config import Params
from align.config.infrastructure import ClusterConfig, HealthConfig, StoreConfig
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.config.recipe import Recipe
from align.display.console import say
from align.display.figure import GOOD, INK, WARN, png
from align.display.report import Report, record_runtime, write_report
from align.durable.checkpoint import JOURNAL
from align.durable.files import replace_directory, write_bytes, write_text
from align.errors import ConfigError
from align.formats.model_folder import CONFIG, WEIGHTS, Imported, copy_tokenizer, read_config
from align.formats.verdict import SHARDS, gate_report, require_passed
from align.model.dual_encoder import load_model, save_model
from align.services.job import cluster_of_job
from align.services.s3.store import checkpoint_mirror, tar_reader
from align.services.tracking.address import current_run_id
from align.services.tracking.live_log import LiveLog
from align.training.given_towers import names_of
from align.training.loop import Monitoring
from align.training.run import Trained, run
from align.training.run_plan import Infrastructure, TrainingInputs, TrainingPlan, make_plan
from align.training.state import MetricRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def train_from_params(
    params: Params, args: argparse.Namespace, recipe: Recipe, model: ModelConfig, *, inputs: TrainingInputs, out: Path
) -> None:
    """Trains as `recipe` says and writes the model, its curves and its report.

    Args:
        params: the shared sections are read from it.
        args: of `align.arguments.stages.train`.
        recipe: section of the stage.
        model: shape of the model, before the recipe's own picture size and stochastic depth.
        inputs: what the run reads.
        out: folder of the trained model.
    """
    stage, paths, store = recipe.section, params.section(PathsConfig), params.section(StoreConfig)
    cluster = cluster_of_job(params.section(ClusterConfig))
    plan = make_plan(
        recipe, recipe.trained(model), inputs, paths.checkpoints,
        infrastructure=Infrastructure(tar_reader(store), checkpoint_mirror(store), cluster),
        monitoring=Monitoring(health=params.section(HealthConfig)), accept_code_change=args.accept_code_change,
    )  # fmt: skip
    if (run_id := current_run_id()) is not None:
        log = LiveLog(run_id, stage, plan.folder().directory / JOURNAL)
        plan = replace(plan, monitoring=replace(plan.monitoring, log=log))
    require_passed(gate_report(params, SHARDS, lambda: plan.data.digest), plan.data.digest, paths.shards)
    with record_runtime(stage, paths.runtime) as runtime:
        finished = train_stage(plan, out=out, reports=paths.reports / stage)
        if finished is None:
            say(f"{stage}: this machine is done; node 0 has the model and its report")
            return
        report, runtime["pairs_per_s"] = finished
    if recipe.num_steps:
        say(f"{stage}: loss {report.metrics[f'{stage}/train/loss']:.3f} after {recipe.num_steps:,} steps")
    else:
        say(f"{stage}: num_steps is 0: {out} is the model in {inputs.initial}, as it is")


def train_stage(plan: TrainingPlan, *, out: Path, reports: Path) -> tuple[TrainingReport, float] | None:
    """Runs a plan and writes the model folder and the report folder.

    Args:
        plan: the run.
        out: folder of the trained model; replaced whole.
        reports: folder of curves and report; replaced whole.

    Returns:
        The report, and pairs per second of the training steps; None on a machine that does not lead.
    """
    if not plan.recipe.num_steps:
        return (_keep(plan, out=out, reports=reports), 0.0) if plan.leads else None
    trained = run(plan)
    if trained is None:
        return None
    report = training_report(plan, trained)
    write_training_report(report, trained.rows, reports, plan.recipe.section)
    with replace_directory(out, plan.recipe.section) as part:
        imported, trained_on = _history(plan)
        save_model(trained.model, part, stage=plan.recipe.section, imported=imported, trained_on=trained_on)
        copy_tokenizer(plan.inputs.tokenizer, part)
    return report, trained.pairs_per_s


def _history(plan: TrainingPlan) -> tuple[Imported | None, tuple[str, ...] | None]:
    """Where the weights began, and the data that changed them; None if the model to start from does not say."""
    data = (plan.data.digest, *(more.digest for more in plan.recipe.extra_shards))
    if plan.inputs.initial is None:
        given = names_of(plan.recipe)
        return None if given is None else Imported(folder=given[0], weights=given[1]), data
    start = read_config(plan.inputs.initial)
    return start.imported, None if start.trained_on is None else tuple(dict.fromkeys((*start.trained_on, *data)))


def _keep(plan: TrainingPlan, *, out: Path, reports: Path) -> TrainingReport:
    """No step to train: copies the model that the plan starts from, byte for byte, so that it stays what it is."""
    initial = plan.inputs.initial
    assert initial is not None  # only finetune allows no steps
    if plan.model != read_config(initial).model:
        raise ConfigError(
            f"{plan.recipe.section}.num_steps is 0: the model in {initial} is taken as it is, so another image_px, "
            "resize_px or stochastic_depth would be ignored; set them to null, or train"
        )
    report = training_report(plan, Trained(load_model(initial), [], 0.0, []))
    write_training_report(report, [], reports, plan.recipe.section)
    with replace_directory(out, plan.recipe.section) as part:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(initial / name, part / name)
        copy_tokenizer(plan.inputs.tokenizer, part)
    return report


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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2))
    loss, recall = figure.subplots(1, 2)
    _line(loss, rows, "train/loss", label="loss", colour=INK)
    loss.set_title("training loss (sum of both directions)")
    for name, colour in (("image_to_text", GOOD), ("text_to_image", WARN)):
        _line(recall, rows, f"val/{name}/recall@10", label=name.replace("_", " "), colour=colour)
    recall.set_title("validation recall@10")
    recall.set_ylim(bottom=0)
    recall.legend(loc="lower right", frameon=False)
    if not any(line.get_xdata().size for line in recall.lines):  # nothing was validated
        recall.remove()
    for axes in figure.axes:
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _line(axes: Axes, rows: Sequence[MetricRow], name: str, *, label: str, colour: str) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    mark = "o" if len(points) == 1 else "-"  # a line of one point is not seen
    axes.plot([step for step, _ in points], [value for _, value in points], mark, label=label, color=colour)
