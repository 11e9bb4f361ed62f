"""`align embed SHARDS --split NAME`: the embeddings of every image and text of a split, such as a teacher's.

Parts are written to `OUT.parts`, one per shard, so that a killed run resumes; the folder appears complete or not at all
(`align.formats.stored_embeds`). Images are embedded as evaluation sees them, the centre crop of the whole picture, and
texts whole: without training's augmentation.
"""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from numpy.typing import NDArray

from align.display.console import say, track
from align.durable.files import replace_directory, require_apart, require_replaceable, write_bytes
from align.durable.locks import locked
from align.errors import CorruptError, DataError
from align.formats.shards import Sample, Split, SplitName, iter_samples, read_manifest
from align.formats.stored_embeds import IMAGES, STARTS, TEXTS, EmbedsManifest, read_embeds, write_manifest
from align.model.embedder import Embedder
from align.model.preprocess import centre_crop, decode
from align.search.parts import EmbedParts

#: The mark of the folder.
_MADE_BY: Final = "embed"


def embed_split(shards: Path, split: SplitName, *, embedder: Embedder, model_digest: str, out: Path) -> EmbedsManifest:
    """Embeds a split. Memory holds the embeddings of one shard, and one batch of images.

    Args:
        shards: folder of the shards.
        split: of them.
        embedder: the model.
        model_digest: of the model.
        out: folder; what an earlier run of the same split and model wrote is kept, or made again if it is damaged.

    Raises:
        DataError: there are no shards, the split is empty, or `out` holds something else.
        CorruptError: a shard's bytes do not match the manifest, or a picture cannot be decoded.
    """
    require_apart(out, shards)
    require_replaceable(out, _MADE_BY)
    manifest = read_manifest(shards)
    rows = manifest.splits[split]
    if not rows.num_images:
        raise DataError(f"{shards}: split {split} holds no images, so there is nothing to embed")
    names: dict[str, Any] = {"model_digest": model_digest, "shards_digest": manifest.digest, "split": split}
    # two processes would remove each other's parts
    with locked(out.with_name(f".{out.name}.lock"), f"process {os.getpid()}", say):
        return _finished(out, names) or _embed_all(shards, rows, embedder, names, out)


def _embed_all(shards: Path, rows: Split, embedder: Embedder, names: dict[str, Any], out: Path) -> EmbedsManifest:
    parts = EmbedParts(out, json.dumps({"schema_version": 1, **names}, sort_keys=True).encode())
    parts.prepare()
    samples = iter_samples(shards, names["split"])
    for number, shard in enumerate(track(rows.shards, what="embed", total=len(rows.shards))):
        of_shard = islice(samples, shard.num_images)
        if _path(parts, number, STARTS).exists():  # written last
            for _ in of_shard:
                pass
        else:
            _embed_shard(of_shard, embedder, shards / shard.path, functools.partial(_path, parts, number))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(list(_of(parts, STARTS, len(rows.shards)))))])
    with replace_directory(out, _MADE_BY) as part:
        np.save(part / STARTS, starts.astype(np.int64))
        for name, total in ((IMAGES, rows.num_images), (TEXTS, rows.num_pairs)):
            _join(part / name, _of(parts, name, len(rows.shards)), (total, embedder.width))
        written = write_manifest(
            part, **names, temperature=embedder.temperature, width=embedder.width, num_images=rows.num_images,
            num_pairs=rows.num_pairs,
        )  # fmt: skip
    parts.clear()
    return written


def _finished(out: Path, names: dict[str, Any]) -> EmbedsManifest | None:
    """The manifest of an existing output; None if there is none, or if it is damaged.

    Raises:
        DataError: it is of another split, or by another model.
    """
    try:
        stored = read_embeds(out)
        stored.verify()
    except DataError:
        return None
    if not names.items() <= stored.manifest.model_dump().items():
        raise DataError(f"{out}: exists, but not from this split and this model; remove it or choose another --out")
    return stored.manifest


def _embed_shard(samples: Iterable[Sample], embedder: Embedder, tar: Path, part: Callable[[str], Path]) -> None:
    texts: list[str] = []
    counts: list[int] = []

    def crops() -> Iterator[NDArray[np.uint8]]:
        for sample in samples:
            texts.extend(sample.texts)
            counts.append(len(sample.texts))
            try:
                pixels = decode(sample.image, embedder.config.resize_px)
            except DataError as error:
                raise CorruptError(f"{tar}: sample {sample.key}: {error}; run `align shard` again") from None
            yield centre_crop(pixels, embedder.config.image_px)

    images = embedder.embed_pixels(crops())  # reads the texts, too
    for name, array in (
        (IMAGES, images.astype(np.float16)),
        (TEXTS, embedder.embed_texts(texts).astype(np.float16)),
        (STARTS, np.array(counts, dtype=np.int64)),
    ):
        file = io.BytesIO()
        np.save(file, array)
        write_bytes(part(name), file.getvalue())


def _path(parts: EmbedParts, number: int, name: str) -> Path:
    return parts.folder / f"{number:06d}.{name}"


def _of(parts: EmbedParts, name: str, count: int) -> Iterator[NDArray[Any]]:
    """One array of each part, one at a time."""
    return (np.load(_path(parts, number, name), allow_pickle=False) for number in range(count))


def _join(path: Path, arrays: Iterable[NDArray[Any]], shape: tuple[int, int]) -> None:
    """Writes one array from its parts, through a file: writing to a mapped array ends the process on a full disk."""
    header = {"descr": dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        write_array_header_1_0(file, header)
        for array in arrays:
            file.write(array.tobytes())
