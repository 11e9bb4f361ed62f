"""What the stages `pretrain` and `finetune` share: from params.yaml to a plan, and from its result to their folders.

A stage adds its recipe, its model and the folder that the model goes to. Times vary from run to run, so the report and
its curves have none.
"""

from __future__ import annotations

import argparse
import json
import shutil
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.infrastructure import ClusterConfig, HealthConfig, StoreConfig
from align.config.paths import PathsConfig
from align.display.console import say
from align.display.report import Report, record_runtime, write_report
from align.durable.files import replace_directory, write_text
from align.errors import ConfigError, ServiceError
from align.formats.model_folder import CONFIG, WEIGHTS, Imported, copy_tokenizer, read_config
from align.formats.verdict import NOT_GATED, QUALITY, SHARDS, require_passed
from align.model.dual_encoder import DualEncoder, load_model, save_model
from align.services.job import ALONE, Seat, cluster_of_job
from align.services.s3.store import checkpoint_mirror, tar_reader
from align.services.tracking.address import address, current_run_id
from align.services.tracking.live_log import LiveLog
from align.services.tracking.tracker import Tracker
from align.training.given_tars import on_given
from align.training.given_towers import names_of
from align.training.loop import Monitoring
from align.training.page import write_page
from align.training.run import Trained, run, sources
from align.training.run_plan import Infrastructure, TrainingPlan, Trains, make_plan


def train_from_params(params: Params, args: argparse.Namespace, trains: Trains, *, out: Path) -> None:
    """Trains as `recipe` says and writes the model, its curves and its report.

    Args:
        params: the shared sections are read from it.
        args: of `align.arguments.stages.train`.
        trains: what.
        out: folder of the trained model.
    """
    recipe, _, inputs = trains = on_given(params, trains, args.data)
    stage, paths = recipe.section, params.section(PathsConfig)
    cluster, seat = cluster_of_job(params.section(ClusterConfig))
    plan = plan_of(params, trains, cluster, seat, accept_code_change=args.accept_code_change, given=bool(args.data))
    plan = replace(plan, monitoring=replace(plan.monitoring, validation=getattr(args, "validation", None)))
    if (run_id := current_run_id()) is not None:
        plan = replace(plan, monitoring=replace(plan.monitoring, log=LiveLog(run_id, stage)))
        if plan.data.not_gated:
            with suppress(ServiceError):  # `align register` sets it, too
                Tracker(address()).set_tags(run_id, {QUALITY: NOT_GATED})
    if not args.data:
        require_passed(paths.reports / SHARDS, plan.data.digest, paths.shards)
    recorded: AbstractContextManager[dict[str, Any]] = nullcontext({})
    with record_runtime(stage, paths.runtime) if plan.leads else recorded as runtime:
        finished = train_stage(plan, out=out, reports=paths.reports / stage)
        if finished is None:
            say(f"{stage}: this machine is done; node 0 has the model and its report")
            return
        report, runtime["pairs_per_s"] = finished
    if recipe.num_steps:
        if recipe.export == "best":
            say(
                f"{stage}: {out} is of step {report.metrics[f'{stage}/exported_step']:,}, the best {recipe.best_metric}"
            )
        if (loss := report.metrics.get(f"{stage}/train/loss")) is not None:  # the best step may be before the first row
            say(f"{stage}: loss {loss:.3f} after {recipe.num_steps:,} steps")
    else:
        say(f"{stage}: num_steps is 0: {out} is the model in {inputs.initial}, as it is")


def plan_of(
    params: Params, trains: Trains, cluster: ClusterConfig | None = None, seat: Seat = ALONE,
    *, accept_code_change: str | None = None, given: bool = False,
) -> TrainingPlan:  # fmt: skip
    """The plan of a stage, from the shared sections; `given`: over tars that others made."""
    (recipe, model, inputs), store = trains, params.section(StoreConfig)
    return make_plan(
        recipe, recipe.trained(model), inputs, params.section(PathsConfig).checkpoints,
        infrastructure=Infrastructure(tar_reader(store, given=given), checkpoint_mirror(store), cluster, seat),
        monitoring=Monitoring(health=params.section(HealthConfig)), accept_code_change=accept_code_change,
    )  # fmt: skip


def train_stage(plan: TrainingPlan, *, out: Path, reports: Path) -> tuple[TrainingReport, float] | None:
    """Runs a plan and writes the model folder and the report folder.

    Args:
        plan: the run.
        out: folder of the trained model; replaced whole.
        reports: folder of curves and report; replaced whole.

    Returns:
        The report, and pairs per second of the training steps; None on a machine that does not lead.
    """
    trained = run(plan) if plan.recipe.num_steps else _untrained(plan)
    if trained is None:
        return None
    report = training_report(plan, trained)
    write_training_report(report, trained, plan, reports)
    with replace_directory(out, plan.recipe.section) as part:
        if plan.recipe.num_steps or plan.inputs.initial is None:
            save_trained(plan, trained.model, trained.step, plan.recipe.export, part)
        else:  # byte for byte, so that it stays what it is
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(plan.inputs.initial / name, part / name)
            copy_tokenizer(plan.inputs.tokenizer, part)
    return report, trained.pairs_per_s


def save_trained(plan: TrainingPlan, model: DualEncoder, step: int, choice: str, folder: Path) -> None:
    """Writes a run's weights after a step as a model folder, which says of which step they are, and why of that one."""
    chosen: dict[str, str | int | float] = {"checkpoint": choice, "step": step}
    if choice == "best":
        chosen["metric"] = str(plan.recipe.best_metric)
    save_model(
        model, folder, stage=plan.recipe.section, chosen=None if choice == "last" else chosen, **_history(plan)
    )  # fmt: skip
    copy_tokenizer(plan.inputs.tokenizer, folder)


def _history(plan: TrainingPlan) -> dict[str, Any]:
    """Where the weights began, and the data that changed them."""
    data, not_gated = (plan.data.digest, *(more.digest for more in plan.recipe.extra_shards)), plan.data.not_gated
    if plan.inputs.initial is None:
        given = names_of(plan.recipe)
        imported = None if given is None else Imported(folder=given[0], weights=given[1])
        return {"imported": imported, "trained_on": data, "not_gated": not_gated}
    start = read_config(plan.inputs.initial)
    data = tuple(dict.fromkeys((*start.trained_on, *data)))
    not_gated = tuple(dict.fromkeys((*start.not_gated, *not_gated)))
    return {"imported": start.imported, "trained_on": data, "not_gated": not_gated}


def _untrained(plan: TrainingPlan) -> Trained | None:
    """No step to train: the model that the plan starts from. None on a machine that does not lead."""
    initial = plan.inputs.initial
    assert initial is not None  # only finetune allows no steps
    if not plan.leads:
        return None
    if plan.model != read_config(initial).model:
        raise ConfigError(
            f"{plan.recipe.section}.num_steps is 0: the model in {initial} is taken as it is, so another image_px, "
            "resize_px or stochastic_depth would be ignored; set them to null, or train"
        )
    return Trained(load_model(initial), [], 0, 0.0, [])


class TrainingReport(Report):
    """Result of a training stage; `accepted_code_changes` are reasons given by people, see `CheckpointFolder.adopt`."""

    num_parameters: int
    num_training_images: int
    num_training_pairs: int
    accepted_code_changes: list[str]


def training_report(plan: TrainingPlan, trained: Trained) -> TrainingReport:
    """The numbers of a finished run; each metric is the last value that was measured until the model's step."""
    stage, trains = plan.recipe.section, plan.recipe.num_steps > 0
    rows = [row for row in trained.rows if row["step"] <= trained.step]
    last = {name: value for row in rows for name, value in row.items() if name != "step"}
    chosen = {f"{stage}/exported_step": trained.step} if plan.recipe.export == "best" else {}
    return TrainingReport(
        num_parameters=sum(param.numel() for param in trained.model.parameters()),
        num_training_images=plan.data.train.num_images if trains else 0,
        num_training_pairs=plan.data.num_training_pairs if trains else 0,
        accepted_code_changes=trained.accepted_code_changes,
        metrics={f"{stage}/{name}": value for name, value in last.items()}
        | {f"{stage}/num_steps": plan.recipe.num_steps}
        | chosen,
    )


def write_training_report(report: TrainingReport, trained: Trained, plan: TrainingPlan, directory: Path) -> None:
    """Writes the report folder; replaced whole.

    It holds report.json and metrics.json, metrics.jsonl for MLflow, curve.csv for DVC's plots (a cell is empty if
    the metric was not measured), and report.html and loss.png for people.
    """
    rows, stage = trained.rows, plan.recipe.section
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    curve = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    data = f"{report.num_training_pairs:,} pairs of {report.num_training_images:,} images" if rows else "as they were"
    lead = f"{report.num_parameters:,} parameters, {data}."
    if plan.data.not_gated:
        lead += f" {NOT_GATED.capitalize()}: on tars that others made."
    with replace_directory(directory, stage) as part:
        write_text(part / "metrics.jsonl", "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
        write_text(part / "curve.csv", "".join(",".join(cells) + "\n" for cells in curve))
        write_page(stage, lead, report.metrics, trained, sources(plan).val, part)
        write_report(report, part)
