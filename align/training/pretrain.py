"""pretrain: trains the dual encoder from scratch (paper sections 4.2 and 5) and starts its own processes."""

from __future__ import annotations

import argparse

from align.config import Params
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.config.recipe import PretrainConfig
from align.training.given_tars import on_given
from align.training.plan import TrainingInputs, Work
from align.training.stage import plan_of, train_stage


def main(params: Params, args: argparse.Namespace) -> None:
    """Entry point of `align pretrain`."""
    paths = params.section(PathsConfig)
    plan = plan_of(params, on_given(params, work_of(params), args.data), args)
    train_stage(plan, out=paths.pretrained, reports=paths.reports / PretrainConfig.section, runtime=paths.runtime)


def work_of(params: Params) -> Work:
    """What the stage trains."""
    paths = params.section(PathsConfig)
    inputs = TrainingInputs(paths.shards, paths.tokenizer)
    return Work(params.section(PretrainConfig), params.section(ModelConfig), inputs)
