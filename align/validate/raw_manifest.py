"""Compares data/raw with its manifest."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from align.durable.files import sha256_file
from align.formats.raw import ListedShard, read_raw_manifest

#: What must be 0: statistic -> what it counts.
FAULTS = {
    "raw_shards_unlisted_or_missing": "raw shards that are missing, or that manifest.json does not list",
    "raw_shards_of_another_count": "raw shards with another number of rows than manifest.json says",
    "raw_shards_changed": "raw shards whose bytes differ from manifest.json",
}


def manifest_faults(raw: Path) -> dict[str, int] | None:
    """Counts the shards of data/raw that differ from its manifest, for each of FAULTS.

    Tables are hashed as a whole. Tars are a hundred times larger, so only their size is compared; the stages that read
    a tar check its bytes.

    Returns:
        The counts; None for a folder without a manifest, which img2dataset made.

    Raises:
        FormatError: the manifest is not what `align ingest` writes.
    """
    manifest = read_raw_manifest(raw)
    if manifest is None:
        return None
    listed = {shard.name: shard for shard in manifest.shards}
    tables = {table.stem: table for table in raw.glob("*.parquet")}
    both = [(listed[name], tables[name]) for name in sorted(listed.keys() & tables.keys())]
    return {
        "raw_shards_unlisted_or_missing": len(listed.keys() ^ tables.keys()),
        "raw_shards_of_another_count": sum(
            pq.read_metadata(table).num_rows != shard.num_pairs for shard, table in both
        ),
        "raw_shards_changed": sum(_changed(shard, table) for shard, table in both),
    }


def _changed(shard: ListedShard, table: Path) -> bool:
    tar = table.with_suffix(".tar")
    return sha256_file(table) != shard.table_sha256 or (tar.is_file() and tar.stat().st_size != shard.tar_bytes)
