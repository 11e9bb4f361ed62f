"""blend: models between two of one shape (WiSE-FT: Wortsman et al., CVPR 2022, arXiv 2109.01903).

Weights are interpolated, (1 - alpha) A + alpha B; batch-norm's statistics, of which no mean makes sense, are estimated
again from training pictures. With A a model and B what fine-tuning made of it, some alpha keeps what A knew and has
most of what B learned.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from align.config import Params
from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.durable import files
from align.errors import DataError
from align.formats.model_folder import TOKENIZER, copy_tokenizer, read_config, tokenizer_of, weights_digest
from align.model.dual_encoder import load_model, save_model
from align.services.dvc.outs import require_no_out
from align.services.s3.store import tar_reader
from align.training.checkpointed import estimate_from_shards

#: Of a recipe, so that a fine-tuned model may differ in them from the one that it began with.
_OF_RECIPE = {"image_px", "resize_px", "stochastic_depth"}


def blend(models: Sequence[Path], alpha: float, out: Path, *, shards: Path, store: StoreConfig) -> None:
    """Writes a model folder; at 0 and 1 with the weights of A or B as they are, statistics included.

    The picture size is B's, and the statistics are of the shards' training pictures.

    Raises:
        DataError: they have other shapes or tokenizers, or the shards have smaller pictures than the model.
    """
    a, b = (read_config(folder) for folder in models)
    ours, theirs = (one.model.model_dump(exclude=_OF_RECIPE) | {"vocab_size": one.vocab_size} for one in (a, b))
    if wrong := [key for key, value in ours.items() if theirs[key] != value]:
        raise DataError(f"{models[1]} and {models[0]}: their {', '.join(wrong)} differ; only equal shapes are blended")
    if len({files.sha256_file(tokenizer_of(folder) / TOKENIZER) for folder in models}) > 1:
        raise DataError(f"{models[1]}: its tokenizer is not that of {models[0]}")
    model, other = load_model(models[0], b.model), load_model(models[1]).state_dict()
    images = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("vision_model.")}
    moved = any(not torch.equal(tensor, other[name]) for name, tensor in images.items())  # not if it was locked
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.lerp(tensor, other[name], alpha) if tensor.is_floating_point() else other[name])
    if 0 < alpha < 1 and moved and any(name.endswith("running_var") for name in images):
        estimate_from_shards(model, shards, tar_reader(store))
    trained_on = tuple(dict.fromkeys((*a.trained_on, *b.trained_on)))
    chosen: dict[str, str | int | float] = {"alpha": alpha, "of": " ".join(map(weights_digest, models))}
    not_gated = tuple(dict.fromkeys((*a.not_gated, *b.not_gated)))
    save_model(
        model, out, stage="blend", imported=a.imported or b.imported, trained_on=trained_on, not_gated=not_gated,
        chosen=chosen,
    )  # fmt: skip
    copy_tokenizer(tokenizer_of(models[0]), out)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align blend`."""
    paths, models = params.section(PathsConfig), (args.a, args.b)
    files.require_apart(args.out, *models)
    files.require_replaceable(args.out, "blend")
    require_no_out("--out", args.out)
    with files.replace_directory(args.out, "blend") as part:
        blend(models, args.alpha, part, shards=paths.shards, store=params.section(StoreConfig))
