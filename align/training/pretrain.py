"""pretrain: trains the dual encoder from scratch (paper sections 4.2 and 5) and starts its own processes."""

from __future__ import annotations

import argparse

from align.config import Params
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.config.recipe import PretrainConfig
from align.training.run_plan import TrainingInputs
from align.training.stage import train_from_params


def main(params: Params, args: argparse.Namespace) -> None:
    """Entry point of `align pretrain`."""
    paths = params.section(PathsConfig)
    train_from_params(
        params, args, params.section(PretrainConfig), params.section(ModelConfig),
        inputs=TrainingInputs(paths.shards, paths.tokenizer), out=paths.pretrained,
    )  # fmt: skip
