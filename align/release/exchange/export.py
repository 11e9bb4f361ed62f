"""export: a trained model -> a folder for other tools: transformers, open_clip or onnxruntime.

Before the folder appears, a check compares its embeddings with the model's, on images and texts of the evaluation sets,
of the test split where there are none, or on given ones. A folder that differs is not written.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.config import Params
from align.config.infrastructure import StoreConfig
from align.config.model import ModelConfig
from align.config.paths import PathsConfig
from align.display.console import say
from align.durable.files import MARK, replace_directory, require_apart, require_replaceable
from align.errors import DataError
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.named import named_sets
from align.formats.measured_sets import shards_test_set
from align.formats.model_folder import tokenizer_of
from align.formats.shards import MANIFEST
from align.formats.table import PICTURE_SUFFIXES
from align.model.dual_encoder import DualEncoder
from align.model.embedder import load_with_tokenizer
from align.model.preprocess import centre_crop, decode, to_pixels
from align.release.exchange.onnx import read_onnx, write_onnx
from align.release.exchange.readme import write_readme
from align.services.dvc.outs import require_no_out
from align.services.files.files import StoreFiles
from align.services.s3.store import fetcher

T = TypeVar("T")
Format = Literal["align", "hf", "open_clip", "onnx"]
Encoders = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]

#: Largest allowed difference between coordinates of unit vectors.
TOLERANCE = 1e-4

#: At most this many images and texts are compared.
NUM_SAMPLES = 16


@dataclass(frozen=True)
class ParitySamples:
    """The inputs of the parity check.

    Attributes:
        images: name, for messages -> image file's bytes.
        texts: need not be as many.
    """

    images: Mapping[str, bytes]
    texts: list[str]


@dataclass(frozen=True)
class Parity:
    """The largest difference between a coordinate of the model's embeddings and of the exported model's."""

    num_images: int
    num_texts: int
    image: float
    text: float


def export(
    kind: Format, *, model_dir: Path, samples: ParitySamples, out: Path, license_id: str | None = None
) -> Parity:
    """Writes the folder if the check passes.

    Args:
        kind: `align`: a model folder of ours; `hf`: for transformers.AlignModel; `open_clip`; `onnx`.
        model_dir: a model folder.
        samples: inputs of the check.
        out: replaced whole.
        license_id: see `write_readme`.

    Raises:
        DataError: the model is missing or damaged, the format cannot hold it, or the embeddings differ by more than
            TOLERANCE.
        ConfigError: a package that the format needs is not installed, or a stage of dvc.yaml writes to `out`.
    """
    require_apart(out, model_dir)
    require_replaceable(out, "export")  # checked before the work, too
    require_no_out("--out", out)
    model, tokenizer = load_with_tokenizer(model_dir)
    tokenizer_dir, config = tokenizer_of(model_dir), model.config
    if kind == "open_clip":  # it imports transformers
        from align.release.exchange.open_clip import open_clip_px, read_open_clip, write_open_clip

        config = config.model_copy(update={"image_px": open_clip_px(config)})
    crops = [_crop(name, data, config) for name, data in samples.images.items()]
    pixels = to_pixels(np.stack(crops))
    ids, mask = tokenizer(samples.texts)
    with replace_directory(out, "export") as part:
        if kind == "align":
            shutil.copytree(model_dir, part, ignore=shutil.ignore_patterns(MARK), dirs_exist_ok=True)
            copied = load_with_tokenizer(part)[0]
            encode: Encoders = (copied.encode_image, copied.encode_text)
        elif kind == "open_clip":
            write_open_clip(model, tokenizer_dir, part, out)
            encode = read_open_clip(part, model)
        elif kind == "hf":
            from align.release.exchange.interchange import write_hugging_face  # it imports transformers

            write_hugging_face(model, tokenizer_dir, part)
            encode = _hugging_face(part, samples.texts, ids, mask)
        else:
            write_onnx(model, tokenizer_dir, part)
            encode = read_onnx(part)
        parity = compare(model, encode, pixels, ids, mask)
        if not (parity.image <= TOLERANCE and parity.text <= TOLERANCE):  # NaN fails, too
            raise DataError(
                f"{out}: not written: as {kind} the embeddings of images differ by {parity.image:.1e}, of texts by "
                f"{parity.text:.1e}; at most {TOLERANCE:.0e} is allowed"
            )
        write_readme(part, kind, license_id)
    return parity


def _crop(name: str, data: bytes, config: ModelConfig) -> NDArray[np.uint8]:
    try:
        return centre_crop(decode(data, config.resize_px), config.image_px)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None


@torch.inference_mode()
def compare(model: DualEncoder, encode: Encoders, pixels: Tensor, ids: Tensor, mask: Tensor) -> Parity:
    """The largest differences, over the whole batch and for its first sample alone.

    Args:
        model: in evaluation mode.
        encode: the two encoders of the exported model.
        pixels: (B, 3, H, W).
        ids: (B, T).
        mask: (B, T).
    """
    image, text = encode
    differences: dict[str, list[Tensor]] = {"image": [], "text": []}
    for rows in (slice(None), slice(0, 1)):
        for name, ours, theirs in (
            ("image", model.encode_image(pixels[rows]), image(pixels[rows])),
            ("text", model.encode_text(ids[rows], mask[rows]), text(ids[rows], mask[rows])),
        ):
            differences[name].append((ours - theirs).abs().max())
    worst = {name: float(torch.stack(each).max()) for name, each in differences.items()}  # NaN stays NaN
    return Parity(len(pixels), len(ids), **worst)


def _hugging_face(directory: Path, texts: list[str], ids: Tensor, mask: Tensor) -> Encoders:
    """The encoders of the folder as transformers loads it. Its processor must give the same tokens as our tokenizer."""
    from transformers import AlignModel, AlignProcessor
    from transformers.utils import logging

    silent: Any = logging.disable_progress_bar
    silent()
    load: Any = AlignProcessor.from_pretrained
    tokens = load(directory)(text=texts, return_tensors="pt")
    length = int(tokens["attention_mask"].sum(1).max())
    for name, mine in (("input_ids", ids), ("attention_mask", mask)):
        if not torch.equal(tokens[name][:, :length], mine):
            raise DataError(
                "--format hf: not written: the processor's tokens differ from those of the model's tokenizer"
            )
    load = AlignModel.from_pretrained
    theirs = load(directory).eval()

    def image(pixels: Tensor) -> Tensor:
        return torch.nn.functional.normalize(theirs.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def text(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = theirs.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        return torch.nn.functional.normalize(features, dim=-1)

    return image, text


def find_samples(sets: Sequence[EvaluationSet], images: Path | None, texts: Path | None) -> ParitySamples:
    """Chooses at most NUM_SAMPLES images and texts, spread evenly over the evaluation sets or over the given inputs.

    Args:
        sets: the evaluation sets.
        images: a folder of images to use instead.
        texts: a file with one text per line to use instead.

    Raises:
        DataError: there is no image or no text, or a file or folder cannot be read.
    """
    everything = [(each, position) for each in sets for position in range(len(each.images))]
    if images:
        if not images.is_dir():
            raise DataError(f"--images {images}: no such folder; give one with pictures")
        found = sorted(path for path in images.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
        if not found:
            raise DataError(f"--images {images}: no picture in it; their names end in {', '.join(PICTURE_SUFFIXES)}")
        chosen = {str(path): path.read_bytes() for path in _spread(found)}
    else:
        chosen = {
            f"image {each.images[position].key} of the set {each.name}": picture
            for each, position in _spread(everything)
            for _, picture in each.read([position])
        }
    if texts:
        try:
            lines = [line.strip() for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"--texts {texts}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}"
            ) from None
    else:
        lines = [text for each in sets for image in each.images for text in islice(image.texts, 1)]
    samples = ParitySamples(chosen, _spread(lines))
    if not samples.images or not samples.texts:
        raise DataError(
            f"nothing to check the export with: {len(samples.images)} images, {len(samples.texts)} texts; "
            f"give --images FOLDER and --texts FILE"
        )
    return samples


def _spread(items: Sequence[T]) -> list[T]:
    return [items[index] for index in np.linspace(0, len(items) - 1, min(NUM_SAMPLES, len(items))).astype(int)]


def main(params: Params, args: argparse.Namespace) -> None:
    """`align export`."""
    paths, store = params.section(PathsConfig), params.section(StoreConfig)
    sets = [] if args.images and args.texts else named_sets(paths.evaluation, StoreFiles(store))
    if not sets and (paths.shards / MANIFEST).is_file():  # as in a project of `align init`
        sets = shards_test_set(paths.shards, NUM_SAMPLES, fetcher(store))
    parity = export(
        args.format,
        model_dir=args.model or paths.finetuned,
        samples=find_samples(sets, args.images, args.texts),
        out=args.out,
        license_id=args.license,
    )
    say(
        f"export: {args.out} ({args.format}); embeddings of {parity.num_images} images differ by at most "
        f"{parity.image:.1e}, of {parity.num_texts} texts by {parity.text:.1e}"
    )
