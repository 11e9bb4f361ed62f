"""ready: makes a small folder of a finished run's model and index, which `make try` shows without training.

The weights are stored as float16; a model reads them back as float32. The index is the run's own, with its thumbnails;
its header names the smaller model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from align.config import Params
from align.config.paths import PathsConfig
from align.display.console import say
from align.durable.files import replace_directory, require_apart, require_replaceable
from align.errors import DataError
from align.formats.image_index import ImageIndex, copy_index
from align.formats.model_folder import (
    copy_tokenizer,
    model_digest,
    read_config,
    read_weights,
    tokenizer_of,
    write_model_folder,
)
from align.formats.ready import INDEX, MODEL, write_manifest
from align.services.dvc.outs import require_no_out
from align.services.vector_index import VectorIndex

#: It is committed to git.
MAX_BYTES = 20_000_000


def make_ready(*, model: Path, index: Path, out: Path) -> int:
    """Writes the folder, whole or not at all, and returns its bytes.

    Args:
        model: models/finetuned.
        index: data/index, with thumbnails.
        out: replaced whole.

    Raises:
        DataError: the index has no thumbnails, is of another model, a weight is beyond float16's range, or the folder
            would be larger than MAX_BYTES.
    """
    images = ImageIndex.load(index, VectorIndex.load)
    if images.header.model_digest != model_digest(model):
        raise DataError(f"{index}: was made with another model; run `align index` again")
    if not images.has_thumbnails:
        raise DataError(f"{index}: has no thumbnails; set index.thumbnail_px and run `align index` again")
    halves = {name: one.half() if one.dtype == torch.float32 else one for name, one in read_weights(model).items()}
    if lost := [name for name, one in halves.items() if not one.isfinite().all()]:
        raise DataError(f"{model}: {lost[0]} has numbers that float16 does not reach, so there is no smaller model")
    with replace_directory(out, "ready") as part:
        (part / MODEL).mkdir()
        copy_tokenizer(tokenizer_of(model), part / MODEL)
        write_model_folder(read_config(model), halves, part / MODEL)
        copy_index(index, part / INDEX, model_digest=model_digest(part / MODEL))
        num_bytes = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        if num_bytes > MAX_BYTES:
            raise DataError(
                f"{out}: would have {num_bytes / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB; "
                "set index.thumbnail_px lower and run `align index` again, or take a smaller run"
            )
        write_manifest(part)
    return num_bytes


def main(params: Params, args: argparse.Namespace) -> None:
    """`align ready`."""
    paths = params.section(PathsConfig)
    require_no_out("--out", args.out)
    require_apart(args.out, paths.finetuned, paths.index)
    require_replaceable(args.out, "ready")
    num_bytes = make_ready(model=paths.finetuned, index=paths.index, out=args.out)
    say(f"ready: {args.out}, {num_bytes / 1e6:.1f} MB")
