"""finetune: retrieval fine-tuning of the pre-trained model (paper section 4.2): same loss, small learning rate.

Decision: the demo has no curated captions, so it fine-tunes on the training split of its own pairs. With COCO or
Flickr30K in `data/shards` this stage follows the paper's protocol.
"""

from __future__ import annotations

import argparse

from align.config import Params
from align.config.finetune import FinetuneConfig
from align.config.paths import PathsConfig
from align.formats.model_folder import read_config, tokenizer_of
from align.training.plan import TrainingInputs
from align.training.stage import add_arguments, train_from_params

__all__ = ["add_arguments", "main"]


def main(params: Params, args: argparse.Namespace) -> None:
    """Entry point of `align finetune`."""
    paths = params.section(PathsConfig)
    start = paths.pretrained
    train_from_params(
        params, args, params.section(FinetuneConfig), read_config(start).model,
        inputs=TrainingInputs(paths.shards, tokenizer_of(start), start), out=paths.finetuned,
    )  # fmt: skip
