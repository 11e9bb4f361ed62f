"""pretrain: the dual encoder from scratch (paper sections 4.2 and 5). `align pretrain` starts its processes itself."""

from __future__ import annotations

import argparse

from align.config import Params
from align.config.cluster import ClusterConfig
from align.config.health import HealthConfig
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.config.pretrain import PretrainConfig
from align.config.store import StoreConfig
from align.pairs.validate.verdict import SHARDS, require_passed
from align.services.store import tar_reader
from align.services.store_mirror import checkpoint_mirror
from align.services.tracking import current_run_id, live_logger
from align.stage import record_runtime, say
from align.training.run import make_plan, train_stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments beyond the common ones."""
    parser.add_argument(
        "--accept-code-change", metavar="WHY",
        help="go on from a run of the same parameters and data under other code, where the change alters no result",
    )  # fmt: skip


def main(params: Params, args: argparse.Namespace) -> None:
    """Entry point of `align pretrain`."""
    paths = params.section(PathsConfig)
    plan = make_plan(
        params.section(PretrainConfig), params.section(ModelConfig), initial=None,
        shards=paths.shards, tokenizer=paths.tokenizer,
        checkpoints=paths.checkpoints, log=live_logger(current_run_id(), "pretrain"),
        tars=tar_reader(params.section(StoreConfig)), health=params.section(HealthConfig),
        mirror=checkpoint_mirror(params.section(StoreConfig)), accept_code_change=args.accept_code_change,
        cluster=params.section(ClusterConfig),
    )  # fmt: skip
    require_passed(paths.reports / SHARDS, plan.data_digest)
    with record_runtime("pretrain", paths.runtime) as runtime:
        trained = train_stage(plan, out=paths.pretrained, reports=paths.reports / "pretrain")
        if trained is None:
            say("pretrain: this machine is done; node 0 has the model and its report")
            return
        report, runtime["pairs_per_s"] = trained
    say(f"pretrain: loss {report.metrics['pretrain/train/loss']:.3f} after {plan.recipe.num_steps:,} steps")
