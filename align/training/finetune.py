"""finetune: retrieval fine-tuning from the pre-trained model (paper section 4.2): same loss, small learning rate.

Decision: the demo fine-tunes on the training split of its own pairs, as it has no curated captions; with COCO or
Flickr30K in `data/shards` it is the paper's protocol.
"""

from __future__ import annotations

import argparse

from align.config import Params
from align.config.finetune import FinetuneConfig
from align.config.paths import PathsConfig
from align.model.dual_encoder import load_model
from align.training.stage import add_arguments, train

__all__ = ["add_arguments", "main"]


def main(params: Params, args: argparse.Namespace) -> None:
    """Entry point of `align finetune`."""
    paths = params.section(PathsConfig)
    model = load_model(paths.pretrained).config
    train(params, args, params.section(FinetuneConfig), model, initial=paths.pretrained, out=paths.finetuned)
