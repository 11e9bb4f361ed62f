"""finetune: retrieval fine-tuning of a trained model (paper section 4.2): same loss, small learning rate.

The model is the pre-trained one, or any that `finetune.from` names, such as an imported one. Its shape and its
tokenizer are kept, and its picture size where the recipe has none of its own. With `finetune.num_steps: 0` it is taken
as it is, to be evaluated and registered. The demo has no curated captions, so it fine-tunes on the training split of
its own pairs. With COCO or Flickr30K in `data/shards` this stage follows the paper's protocol.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.model import ModelConfig
from align.config.params import chosen_values
from align.config.paths import PathsConfig
from align.config.recipe import FinetuneConfig
from align.display.console import say
from align.durable.files import require_apart
from align.errors import AlignError, ConfigError, DataError
from align.formats.model_folder import read_config, tokenizer_of
from align.training.given_tars import on_given
from align.training.plan import TrainingInputs, Work
from align.training.stage import plan_of, train_stage

_OF_NEW_WEIGHTS = ("text_init_std", "position_init_scale", "image_weights", "text_weights")


def main(params: Params, args: argparse.Namespace) -> None:
    """Entry point of `align finetune`."""
    paths = params.section(PathsConfig)
    start = paths.moved(params.section(FinetuneConfig).start)
    require_apart(paths.finetuned, start)
    _refuse_ignored(chosen_values(params, args.typed), read_start(start), start)
    say(f"finetune: from {start}")
    plan = plan_of(params, on_given(params, work_of(params), args.data), args)
    train_stage(plan, out=paths.finetuned, reports=paths.reports / FinetuneConfig.section, runtime=paths.runtime)


def work_of(params: Params) -> Work:
    """What the stage trains. Raises AlignError as `read_start`."""
    config, paths = params.section(FinetuneConfig), params.section(PathsConfig)
    start = paths.moved(config.start)
    return Work(config, read_start(start), TrainingInputs(paths.shards, tokenizer_of(start), start))


def _refuse_ignored(chosen: Mapping[str, Any], model: ModelConfig, start: Path) -> None:
    """Raises ConfigError if a chosen value has no effect: of a shape other than the model's, or about new weights."""
    for key, value in chosen.items():
        section, *parts = key.split(".")
        if section == FinetuneConfig.section and parts[0] in _OF_NEW_WEIGHTS:
            raise ConfigError(
                f"--set {key}={value}: `align finetune` starts from the weights in {start}, so this would be ignored; "
                f"set pretrain.{parts[0]}"
            )
        kept: Any = model.model_dump(mode="json", by_alias=True)
        for part in parts:
            kept = kept.get(part) if isinstance(kept, dict) else None
        if section == "model" and kept != value:
            raise ConfigError(
                f"--set {key}={value}: `align finetune` keeps the shape and the recipe of the model in {start}, so "
                "this would be ignored; set it for `align pretrain`, which makes that model"
                + (f", or finetune.{parts[0]}" if parts[0] in FinetuneConfig.model_fields else "")
            )


def read_start(folder: Path) -> ModelConfig:
    """Reads the shape of the model to start from. Raises AlignError if the folder holds no model of this project."""
    if not folder.is_dir():
        raise DataError(
            f"finetune.from {folder}: no such folder; run `align pretrain`, or name a folder that it or "
            "`align import_model` wrote"
        )
    try:
        config = read_config(folder).model
        tokenizer_of(folder)
    except AlignError as error:
        raise type(error)(f"finetune.from {error}") from None
    return config
