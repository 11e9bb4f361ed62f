"""pretrain: trains the dual encoder from scratch (paper sections 4.2 and 5) and starts its own processes."""

from __future__ import annotations

import argparse

from align.config import Params
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.config.recipe import PretrainConfig
from align.training.run_plan import TrainingInputs, Trains
from align.training.stage import train_from_params


def main(params: Params, args: argparse.Namespace) -> None:
    """Entry point of `align pretrain`."""
    train_from_params(params, args, trains(params), out=params.section(PathsConfig).pretrained)


def trains(params: Params) -> Trains:
    """What the stage trains."""
    paths = params.section(PathsConfig)
    inputs = TrainingInputs(paths.shards, paths.tokenizer)
    return params.section(PretrainConfig), params.section(ModelConfig), inputs
