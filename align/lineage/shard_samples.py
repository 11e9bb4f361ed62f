"""Reads data/shards, data/index and data/filtered without a picture, to see which pictures and texts they hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from align.errors import DataError
from align.formats.filtered import DECISIONS, FACTS
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


def filtered_shows(filtered: Path, texts: frozenset[tuple[str | None, str]]) -> bool:
    """Whether data/filtered has the text of an opted-out pair.

    Args:
        filtered: data/filtered or an older version of it, with decisions.parquet and facts.parquet.
        texts: as `OptedOutPairs.texts`, of pairs that were opted out after the filter ran.

    Raises:
        DataError: a table is unreadable.
    """
    try:
        decisions, facts = pq.ParquetFile(filtered / DECISIONS), pq.ParquetFile(filtered / FACTS)
        for group in range(decisions.num_row_groups):  # both tables have the same rows in each group
            rows = decisions.read_row_group(group, ["image_id", "text"]).to_pylist()
            opted_out = facts.read_row_group(group, ["opted_out"])["opted_out"].to_pylist()
            for row, entry in zip(rows, opted_out, strict=True):
                if row["text"] and (entry is not None or (row["image_id"], row["text"]) in texts):
                    return True
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(f"{filtered}: unreadable ({error}); run `align filter` again") from None
    return False
