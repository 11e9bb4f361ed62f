"""finetune: retrieval fine-tuning from the pre-trained model (paper section 4.2): same loss, small learning rate.

Decision: the demo fine-tunes on the training split of its own pairs, as it has no curated captions; with COCO or
Flickr30K in `data/shards` it is the paper's protocol.
"""

from __future__ import annotations

import argparse

from align.config import Params
from align.config.cluster import ClusterConfig
from align.config.finetune import FinetuneConfig
from align.config.health import HealthConfig
from align.config.paths import PathsConfig
from align.config.store import StoreConfig
from align.model.dual_encoder import load_model
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
    """Entry point of `align finetune`."""
    paths = params.section(PathsConfig)
    plan = make_plan(
        params.section(FinetuneConfig), load_model(paths.pretrained).config, initial=paths.pretrained,
        shards=paths.shards, tokenizer=paths.tokenizer,
        checkpoints=paths.checkpoints, log=live_logger(current_run_id(), "finetune"),
        tars=tar_reader(params.section(StoreConfig)), health=params.section(HealthConfig),
        mirror=checkpoint_mirror(params.section(StoreConfig)), accept_code_change=args.accept_code_change,
        cluster=params.section(ClusterConfig),
    )  # fmt: skip
    require_passed(paths.reports / SHARDS, plan.data_digest)
    with record_runtime("finetune", paths.runtime) as runtime:
        trained = train_stage(plan, out=paths.finetuned, reports=paths.reports / "finetune")
        if trained is None:
            say("finetune: this machine is done; node 0 has the model and its report")
            return
        report, runtime["pairs_per_s"] = trained
    say(f"finetune: loss {report.metrics['finetune/train/loss']:.3f} after {plan.recipe.num_steps:,} steps")
