"""Reads what the plan needs of the filter's tables, batch by batch: kept pairs, and their images' hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.errors import CorruptError, DataError
from align.formats.filtered import DECISIONS, IMAGES
from align.pairs.clusters import text_digests

#: Most rows of a batch; bounds the memory that texts take.
_ROWS = 1 << 17
#: An image is identified by the first 128 bits of its sha256.
_ID = np.dtype("S16")
#: Hex digit -> its value.
_NIBBLES = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)

Ids = NDArray[np.bytes_]


def read_kept(filtered: Path) -> tuple[Ids, NDArray[np.int32], NDArray[np.uint64]]:
    """Sorted ids of the distinct images; then index of the image, and text digest, of each kept pair in file order."""
    ids, texts = [np.empty(0, _ID)], [np.empty(0, np.uint64)]
    for batch in kept_batches(filtered, ["image_id", "text"]):
        ids.append(_ids(batch["image_id"]))
        texts.append(text_digests(batch["text"].to_pylist()))
    distinct, pair_images = np.unique(np.concatenate(ids), return_inverse=True)
    if len(distinct) == 0:
        path = filtered / DECISIONS
        raise DataError(f"{path}: no pair is kept; see the filter's report for the reasons, and relax its rules")
    return distinct, pair_images.astype(np.int32), np.concatenate(texts)


def read_images(
    filtered: Path, ids: Ids, seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64]]:
    """Per image: perceptual hash, 128 bits that order the shuffle, and a number in [0, 1) that chooses the split.

    All but the hash depend only on the seed and the image, so that later images do not move earlier ones.
    """
    path = filtered / IMAGES
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `align filter` first")
    phashes, known = np.zeros(len(ids), np.uint64), np.zeros(len(ids), bool)
    order_keys, draws = np.zeros((len(ids), 2), np.uint64), np.zeros(len(ids))
    with _open(path) as file:
        for batch in file.iter_batches(_ROWS, columns=["image_id", "phash"]):
            kept = batch.filter(batch["phash"].is_valid())
            listed = _ids(kept["image_id"])
            index = np.minimum(np.searchsorted(ids, listed), len(ids) - 1)
            ours = np.flatnonzero(ids[index] == listed)
            index = index[ours]
            hexes = kept["image_id"].take(pa.array(ours)).to_pylist()
            phashes[index], known[index] = kept["phash"].to_numpy()[ours], True
            # "place" and "split" only make the two hashes differ; another word would shuffle all data again
            hashed = b"".join(hashlib.sha256(f"{seed} place {text}".encode()).digest()[:16] for text in hexes)
            order_keys[index] = np.frombuffer(hashed, ">u8").reshape(-1, 2)
            hashed = b"".join(hashlib.sha256(f"{seed} split {text}".encode()).digest()[:8] for text in hexes)
            draws[index] = np.frombuffer(hashed, ">u8").astype(np.float64) / 2.0**64
    if not known.all():
        first = bytes(ids[int(np.argmin(known))]).ljust(16, b"\0").hex()
        raise DataError(f"{path}: no hash of image {first}..., which is kept; run `align filter` again")
    return phashes, order_keys, draws


def kept_batches(filtered: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The kept rows of decisions.parquet, batch by batch."""
    path = filtered / DECISIONS
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `align filter` first")
    with _open(path) as file:
        for batch in file.iter_batches(_ROWS, columns=[*columns, "keep"]):
            kept = batch.filter(batch["keep"]).select(columns)
            if len(kept):
                yield kept


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens without read-ahead, which would keep all column chunks and so the whole file in memory."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptError(
            f"{path}: damaged ({reason}); get it back with `dvc checkout`, or run `align filter`"
        ) from None


def _ids(column: pa.Array) -> Ids:
    """Hex sha256s -> their first 16 bytes."""
    digits = pc.binary_slice(column.cast(pa.binary()), 0, 32).cast(pa.binary(32))
    chars = np.frombuffer(digits.buffers()[1], np.uint8)[32 * digits.offset :][: 32 * len(digits)]
    nibbles = _NIBBLES[chars].reshape(-1, 2)
    return (nibbles[:, 0] << 4 | nibbles[:, 1]).view(_ID)
