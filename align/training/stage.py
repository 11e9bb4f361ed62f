"""What the stages `pretrain` and `finetune` share: everything but which recipe, which model, and where it goes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from align.config import Params
from align.config.cluster import ClusterConfig
from align.config.health import HealthConfig
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.config.recipe import Recipe
from align.config.store import StoreConfig
from align.console import say
from align.formats.verdict import SHARDS, require_passed
from align.report import record_runtime
from align.services.live_log import LiveLog
from align.services.store import tar_reader
from align.services.store_mirror import checkpoint_mirror
from align.services.tracking import current_run_id
from align.training.checkpoint import JOURNAL
from align.training.run import make_plan, train_stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments beyond the common ones."""
    parser.add_argument(
        "--accept-code-change", metavar="WHY",
        help="go on from a run of the same parameters and data under other code, where the change alters no result",
    )  # fmt: skip


def train(
    params: Params, args: argparse.Namespace, recipe: Recipe, model: ModelConfig, *, initial: Path | None, out: Path
) -> None:
    """Trains as `recipe` says and writes the model, its curves and its report.

    Args:
        params: the shared sections are taken from them.
        args: of `add_arguments`.
        recipe: section of the stage.
        model: shape of the model.
        initial: folder of the model to start from; None: from scratch.
        out: folder of the trained model.
    """
    stage, paths, store = recipe.section, params.section(PathsConfig), params.section(StoreConfig)
    plan = make_plan(
        recipe, model, initial=initial, shards=paths.shards, tokenizer=paths.tokenizer, checkpoints=paths.checkpoints,
        tars=tar_reader(store), health=params.section(HealthConfig), mirror=checkpoint_mirror(store),
        accept_code_change=args.accept_code_change, cluster=params.section(ClusterConfig),
    )  # fmt: skip
    if (run_id := current_run_id()) is not None:
        plan = replace(plan, log=LiveLog(run_id, stage, plan.folder().directory / JOURNAL))
    require_passed(paths.reports / SHARDS, plan.data_digest)
    with record_runtime(stage, paths.runtime) as runtime:
        trained = train_stage(plan, out=out, reports=paths.reports / stage)
        if trained is None:
            say(f"{stage}: this machine is done; node 0 has the model and its report")
            return
        report, runtime["pairs_per_s"] = trained
    say(f"{stage}: loss {report.metrics[f'{stage}/train/loss']:.3f} after {recipe.num_steps:,} steps")
