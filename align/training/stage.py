"""What the stages `pretrain` and `finetune` share: from params.yaml to a plan, and from its result to their folders."""

from __future__ import annotations

import argparse
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.infrastructure import ClusterConfig, HealthConfig, StoreConfig
from align.config.paths import PathsConfig
from align.display.console import say
from align.display.report import record_runtime
from align.durable.files import replace_directory
from align.errors import ConfigError, ServiceError
from align.formats.model_folder import CONFIG, WEIGHTS, Imported, copy_tokenizer, read_config
from align.formats.verdict import NOT_GATED, QUALITY, SHARDS, require_passed
from align.model.dual_encoder import DualEncoder, load_model, save_model
from align.services.job import place_of_job
from align.services.s3.store import checkpoint_mirror, tar_reader
from align.services.tracking.address import address, current_run_id
from align.services.tracking.live_log import LiveLog
from align.services.tracking.tracker import Tracker
from align.training.given_towers import names_of
from align.training.plan import Infrastructure, Monitoring, TrainingPlan, Work, make_plan
from align.training.report import TrainingReport, write_training_report
from align.training.train import Trained, run


def plan_of(params: Params, work: Work, args: argparse.Namespace | None = None) -> TrainingPlan:
    """Plans a stage, from the shared sections. Raises AlignError as `make_plan` and `require_passed`.

    `args` are those of `align.arguments.stages.train`; None: for a run on this machine that nobody watches.
    """
    given, store, paths = getattr(args, "data", None) or (), params.section(StoreConfig), params.section(PathsConfig)
    cluster = params.section(ClusterConfig) if args else None
    place = place_of_job() if cluster and cluster.num_nodes == 1 else None  # else it starts its part of the ranks
    stage, run_id = work.recipe.section, current_run_id() if args else None
    plan = make_plan(
        work, paths.checkpoints,
        infrastructure=Infrastructure(tar_reader(store, given=bool(given)), checkpoint_mirror(store), cluster, place),
        monitoring=Monitoring(
            log=LiveLog(run_id, stage) if run_id else None, health=params.section(HealthConfig),
            validation=getattr(args, "validation", None),
        ),
        accept_code_change=getattr(args, "accept_code_change", None),
    )  # fmt: skip
    if run_id and plan.data.not_gated:
        with suppress(ServiceError):  # `align register` sets it, too
            Tracker(address()).set_tags(run_id, {QUALITY: NOT_GATED})
    if args and not given:
        require_passed(paths.reports / SHARDS, plan.data.digest, paths.shards)
    return plan


def train_stage(plan: TrainingPlan, *, out: Path, reports: Path, runtime: Path | None = None) -> TrainingReport | None:
    """Runs a plan, and writes the model folder `out` and the report folder; both are replaced whole.

    `runtime` is a folder that gets the stage's times. Returns the report; None on a machine that does not lead.
    """
    recipe, stage = plan.recipe, plan.recipe.section
    timed = record_runtime(stage, runtime) if runtime and plan.leads else nullcontext(dict[str, Any]())
    with timed as times:
        trained = run(plan) if recipe.num_steps else _untrained(plan)
        if trained is None:
            say(f"{stage}: this process is done; rank 0 writes the model and its report")
            return None
        report = write_training_report(plan, trained, reports)
        with replace_directory(out, stage) as part:
            if recipe.num_steps or plan.inputs.initial is None:
                save_trained(plan, trained.model, trained.step, recipe.export, part)
            else:  # byte for byte, so that it stays what it is
                for name in (CONFIG, WEIGHTS):
                    shutil.copyfile(plan.inputs.initial / name, part / name)
                copy_tokenizer(plan.inputs.tokenizer, part)
        times["pairs_per_s"] = trained.pairs_per_s
    if not recipe.num_steps:
        say(f"{stage}: num_steps is 0: {out} is the model in {plan.inputs.initial}, as it is")
    elif recipe.export == "best":
        say(f"{stage}: {out} is of step {report.metrics[f'{stage}/exported_step']:,}, the best {recipe.best_metric}")
    if (loss := report.metrics.get(f"{stage}/train/loss")) is not None:  # the best step may be before the first row
        say(f"{stage}: loss {loss:.3f} after {recipe.num_steps:,} steps")
    return report


def save_trained(plan: TrainingPlan, model: DualEncoder, step: int, choice: str, folder: Path) -> None:
    """Writes a run's weights after a step as a model folder, which says of which step they are, and why of that one."""
    chosen: dict[str, str | int | float] = {"checkpoint": choice, "step": step}
    if choice == "best":
        chosen["metric"] = str(plan.recipe.best_metric)
    # where the weights began, and the data that changed them
    data, not_gated = [plan.data.digest, *(more.digest for more in plan.recipe.extra_shards)], [*plan.data.not_gated]
    given, initial = names_of(plan.recipe), plan.inputs.initial
    imported = None if given is None else Imported(folder=given[0], weights=given[1])
    if initial is not None:
        start = read_config(initial)
        data, not_gated, imported = [*start.trained_on, *data], [*start.not_gated, *not_gated], start.imported
    save_model(
        model, folder, stage=plan.recipe.section, chosen=None if choice == "last" else chosen, imported=imported,
        trained_on=tuple(dict.fromkeys(data)), not_gated=tuple(dict.fromkeys(not_gated)),
    )  # fmt: skip
    copy_tokenizer(plan.inputs.tokenizer, folder)


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
