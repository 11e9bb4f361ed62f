"""ready: makes a small folder of a finished run's model and index, which `make try` shows without training.

The weights are stored as float16 if that changes no embedding by more than MAX_DIFFERENCE; a model reads them back as
float32. The index is the run's own, with its thumbnails; its header names the smaller model.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from align.config import Params
from align.config.paths import PathsConfig
from align.display.console import say
from align.durable.files import replace_directory, require_apart, require_replaceable, sha256_file
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
from align.formats.ready import INDEX, MODEL, MadeFrom, Ready, ReadyManifest, describe_files, open_ready, write_manifest
from align.model.embedder import Embedder
from align.search.search import open_index
from align.services.dvc.outs import require_no_out
from align.services.git import git

LOCK = "dvc.lock"
#: It is committed to git.
MAX_BYTES = 20_000_000
#: Largest allowed difference between coordinates of unit vectors.
MAX_DIFFERENCE = 1e-3
#: At most this many texts and images are compared.
_NUM_SAMPLES = 200
_TOP = 10


@dataclass(frozen=True)
class Difference:
    """What smaller weights change.

    Attributes:
        largest: between coordinates of two embeddings.
        same_of_ten: mean share of the ten nearest images of a text that stay.
    """

    largest: float
    same_of_ten: float


@dataclass(frozen=True)
class Run:
    """The run that made a model and its index: see `MadeFrom`."""

    revision: str | None
    dvc_lock: str | None
    package_digest: str | None


def make_ready(*, model: Path, index: Path, out: Path, run: Run) -> Ready:
    """Writes the folder, whole or not at all.

    Args:
        model: models/finetuned.
        index: data/index, with thumbnails.
        out: replaced whole.
        run: what made them.

    Raises:
        DataError: the index has no thumbnails, is of another model, or the folder would be larger than MAX_BYTES.
    """
    digest = model_digest(model)
    images = open_index(index, digest)
    if not images.has_thumbnails:
        raise DataError(f"{index}: has no thumbnails; set index.thumbnail_px and run `align index` again")
    with replace_directory(out, "ready") as part:
        precision, difference = _write_model(model, images, part / MODEL)
        copy_index(index, part / INDEX, model_digest=model_digest(part / MODEL))
        open_index(part / INDEX, model_digest(part / MODEL))
        files = describe_files(part)
        num_bytes = sum(file.size_bytes for file in files.values())
        if num_bytes > MAX_BYTES:
            raise DataError(
                f"{out}: would have {num_bytes / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB; "
                "set index.thumbnail_px lower and run `align index` again, or take a smaller run"
            )
        made_from = MadeFrom(
            revision=run.revision,
            dvc_lock=run.dvc_lock,
            model_digest=digest,
            package_digest=run.package_digest,
            shards_digest=images.header.shards_digest,
            num_images=len(images.items),
        )
        manifest = ReadyManifest(
            files=files,
            made_from=made_from,
            precision=precision,
            largest_difference=difference.largest,
            same_of_ten=difference.same_of_ten,
        )
        write_manifest(part, manifest)
    return open_ready(out)


def _write_model(model: Path, images: ImageIndex, folder: Path) -> tuple[Literal["float16", "float32"], Difference]:
    """Writes the model folder with float16 weights, or with float32 ones where these change too much."""
    weights, config, trained = read_weights(model), read_config(model), Embedder.load(model)
    folder.mkdir()
    copy_tokenizer(tokenizer_of(model), folder)
    halves = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in weights.items()}
    write_model_folder(config, halves, folder)
    difference = compare(trained, Embedder.load(folder), images)
    say(
        f"ready: float16 weights change an embedding by at most {difference.largest:.1e}; "
        f"{difference.same_of_ten:.1%} of the {_TOP} nearest images of a text stay"
    )
    if difference.largest <= MAX_DIFFERENCE:
        return "float16", difference
    say(f"ready: more than {MAX_DIFFERENCE:.0e}, so the weights stay float32")
    write_model_folder(config, weights, folder)
    return "float32", Difference(0.0, 1.0)


def compare(trained: Embedder, smaller: Embedder, images: ImageIndex) -> Difference:
    """Embeds texts and thumbnails of the index with both models, and asks the index the texts.

    A difference is infinite if it is not a number, because weights are beyond float16's range.
    """
    rows = np.unique(np.linspace(0, len(images.items) - 1, _NUM_SAMPLES, dtype=np.int64))
    items = [images.items[int(row)] for row in rows]
    texts, pictures = [item.texts[0] for item in items], [images.thumbnail(item.key) for item in items]
    ours, theirs = ((one.embed_texts(texts), one.embed_images(pictures)) for one in (smaller, trained))
    largest = max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))
    if not np.isfinite(largest):
        return Difference(float("inf"), 0.0)
    same = [
        len({hit.item.key for hit in images.search(one, _TOP)} & {hit.item.key for hit in images.search(other, _TOP)})
        for one, other in zip(ours[0], theirs[0], strict=True)
    ]
    return Difference(largest, sum(same) / (len(same) * min(_TOP, len(images.items))))


def revision_of(root: Path, out: Path) -> str | None:
    """The git revision of a checkout's code, with `-dirty` where files of it were changed; None outside git.

    dvc.lock does not count as code: the run itself writes it, and the manifest names it separately. Nor does the folder
    that is replaced.
    """
    others = [f":(top,exclude,literal){path}" for path in (LOCK, _within(root, out)) if path]
    try:
        dirty = "-dirty" if git(root, "status", "--porcelain", "--", ":(top)", *others) else ""
        return git(root, "rev-parse", "HEAD") + dirty
    except DataError:
        return None


def _within(root: Path, out: Path) -> str:
    """A folder as a path from the root of the checkout; empty if it is elsewhere."""
    folder, top = (root / out).resolve(), root.resolve()
    return folder.relative_to(top).as_posix() if folder.is_relative_to(top) and folder != top else ""


def _package_digest(reports: Path, model: Path) -> str | None:
    try:
        return str(json.loads((reports / "package/report.json").read_bytes())["digest"])
    except (OSError, ValueError, LookupError, TypeError):
        say(f"ready: {model} was not packaged, so the manifest names no version of MLflow")
        return None


def main(params: Params, args: argparse.Namespace) -> None:
    """`align ready`."""
    paths = params.section(PathsConfig)
    require_no_out("--out", args.out)
    require_apart(args.out, paths.finetuned, paths.index)
    require_replaceable(args.out, "ready")
    made = make_ready(
        model=paths.finetuned,
        index=paths.index,
        out=args.out,
        run=Run(
            revision=revision_of(Path(), args.out),
            dvc_lock=sha256_file(Path(LOCK)) if Path(LOCK).is_file() else None,
            package_digest=_package_digest(paths.reports, paths.finetuned),
        ),
    )
    num_bytes = sum(file.size_bytes for file in made.manifest.files.values())
    say(
        f"ready: {args.out}, {num_bytes / 1e6:.1f} MB, {made.manifest.made_from.num_images:,} images, "
        f"{made.manifest.precision} weights"
    )
