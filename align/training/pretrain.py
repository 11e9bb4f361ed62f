"""pretrain: trains the dual encoder from scratch (paper sections 4.2 and 5) and starts its own processes."""

from __future__ import annotations

import argparse

from align.config import Params
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.config.pretrain import PretrainConfig
from align.training.stage import add_arguments, train_from_params

__all__ = ["add_arguments", "main"]


def main(params: Params, args: argparse.Namespace) -> None:
    """Entry point of `align pretrain`."""
    out = params.section(PathsConfig).pretrained
    train_from_params(params, args, params.section(PretrainConfig), params.section(ModelConfig), initial=None, out=out)
