"""Reads the samples of data/shards and the rows of data/index without a picture, to see which pictures they hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from align.errors import DataError
from align.formats.shards import SPLITS, SplitName, read_manifest
from align.protocols.store import FetchTar


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A tar sample of data/shards, without its picture.

    Attributes:
        split: `train`, `val` or `test`.
        tar: its path within data/shards.
        key: of the sample within the tar.
        image_id: sha256 of the picture's original bytes.
        keys: of its pairs, parallel to `texts`.
        texts: of its pairs.
    """

    split: SplitName
    tar: str
    key: str
    image_id: str
    keys: tuple[str, ...]
    texts: tuple[str, ...]


def iter_stored_samples(shards: Path, fetch: FetchTar | None = None) -> Iterator[StoredSample]:
    """Yields every sample of data/shards, in the order of the manifest.

    Args:
        shards: data/shards or an older version of it, with its manifest.
        fetch: (sha256, bytes) -> path of a tar that is not in the folder.

    Raises:
        DataError: there is no manifest, or a tar is missing.
        FormatError: the manifest has another schema_version or layout.
    """
    manifest = read_manifest(shards)
    for split in SPLITS:
        for shard in manifest.splits[split].shards:
            path = shards / shard.path
            if not path.is_file() and fetch is not None:
                path = fetch(shard.sha256, shard.num_bytes)
            try:
                with path.open("rb") as file:
                    for _, _, offset, size in shard.offsets:
                        file.seek(offset)
                        row = json.loads(file.read(size))
                        yield StoredSample(
                            split, shard.path, row["key"], row["image_id"], tuple(row["keys"]), tuple(row["texts"])
                        )
            except FileNotFoundError:
                raise DataError(f"{path}: named in the manifest but missing; run `align shard` again") from None


def find_sample(shards: Path, image_id: str | None, key: str, fetch: FetchTar | None = None) -> StoredSample | None:
    """The sample of a picture that holds the pair with this key, or None. Errors as `iter_stored_samples`."""
    for sample in iter_stored_samples(shards, fetch):
        if sample.image_id == image_id and key in sample.keys:
            return sample
    return None


def count_pairs(
    shards: Path, image_ids: frozenset[str], *, text: str | None = None, fetch: FetchTar | None = None
) -> dict[str, int]:
    """Split -> number of pairs with one of these pictures (and with this text, if one is given).

    Splits without such a pair are left out. Errors as `iter_stored_samples`.
    """
    counts: Counter[str] = Counter()
    for sample in iter_stored_samples(shards, fetch):
        if sample.image_id in image_ids:
            counts[sample.split] += sum(1 for one in sample.texts if text is None or one == text)
    return +counts


def shards_show(shards: Path, image_ids: frozenset[str], fetch: FetchTar | None = None) -> bool:
    """Whether data/shards holds one of these pictures. Errors as `iter_stored_samples`."""
    return any(sample.image_id in image_ids for sample in iter_stored_samples(shards, fetch))


def index_shows(index: Path, image_ids: frozenset[str]) -> bool:
    """Whether data/index holds an embedding of one of these pictures."""
    ids = pq.read_table(index / "items.parquet", columns=["image_id"])["image_id"].to_pylist()
    return not image_ids.isdisjoint(ids)
