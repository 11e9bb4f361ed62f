"""The gate over tables, as a list: which statistic and which rows must be what. Thresholds are in params.yaml.

One of them is that data/raw is what its manifest says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from align.config.validate import ValidateConfig
from align.durable.files import sha256_file
from align.formats.raw import ListedShard, read_raw_manifest
from align.formats.statuses import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, NOT_FETCHED, SUCCESS
from align.interfaces.expectations import Expectation, statistic
from align.validate.statistics import KEPT_FROM, ZERO
from align.validate.tables import COLUMNS

#: What must be 0: statistic -> what it counts.
RAW_FAULTS = {
    "raw_shards_unlisted_or_missing": "raw shards that are missing, or that manifest.json does not list",
    "raw_shards_of_another_count": "raw shards with another number of rows than manifest.json says",
    "raw_shards_changed": "raw shards whose bytes differ from manifest.json",
}


def manifest_faults(raw: Path) -> dict[str, int] | None:
    """Counts the shards of data/raw that differ from its manifest, for each of RAW_FAULTS.

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


#: The figure whose drift is measured -> its name in words.
DRIFT = {
    "keep_rate": "drift of the keep rate",
    "text_length": "drift of text lengths",
    "image_size": "drift of image sizes",
    "language": "drift of languages",
}
_STATUSES = (SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, NOT_FETCHED)


def gate(config: ValidateConfig, measured: Mapping[str, Any]) -> list[Expectation]:
    """All expectations in the order of the report; those on manifest and drift only if they were `measured`."""
    limits = config.max_drift.model_dump()
    return [
        *(_columns(table) for table in COLUMNS),
        statistic("pairs", "raw_pairs", config.min_pairs, None),
        statistic(
            "evaluation sets that the filter searched for in training images",
            "checked_sets",
            config.min_evaluation_sets,
            None,
        ),
        statistic("evaluation sets that the filter did not search for as they are now", "unchecked_sets", 0, 0),
        statistic(
            "share of kept pairs with the perceptual hash of an evaluation image",
            "kept_evaluation_hashes",
            0,
            config.max_evaluation_hash_share,
        ),
        *(statistic(what, name, 0, 0) for name, (what, _) in ZERO.items()),
        *(statistic(what, name, 0, 0) for name, what in RAW_FAULTS.items() if name in measured),
        statistic(
            "share of pairs with an image, of those to be fetched", "raw_success_share", config.min_success_share, 1
        ),
        statistic("keep rate", "keep_rate", *config.keep_rate),
        *(
            statistic(f"keep rate of texts from {source}", f"{KEPT_FROM}{source}", *band)
            for source, band in config.keep_rate_by_source.items()
        ),
        *(
            statistic(f"share dropped as {reason}", f"dropped_{reason}", *band)
            for reason, band in config.dropped_share.items()
        ),
        *(
            statistic(what, f"drift_{name}", 0, limits[name])
            for name, what in DRIFT.items()
            if f"drift_{name}" in measured
        ),
        *_rows(),
    ]


def _columns(table: str) -> Expectation:
    arguments = {"column_set": list(COLUMNS[table]), "exact_match": False}
    kind, threshold = "expect_table_columns_to_match_set", ", ".join(COLUMNS[table])
    return Expectation(f"{table}-columns", f"columns of {table}", table, kind, arguments, threshold)


def _rows() -> list[Expectation]:
    digest = {"threshold": "64 hexadecimal digits", "regex": r"^[0-9a-f]{64}$"}
    return [
        _values("raw", "key", "match_regex", "digits", regex=r"^\d+$"),
        _values("raw", "status", "be_in_set", ", ".join(_STATUSES), value_set=list(_STATUSES)),
        _values("decisions", "image_id", "match_regex", **digest),
        _values("images", "width_px", "be_between", "at least 1", min_value=1),
        _values("images", "height_px", "be_between", "at least 1", min_value=1),
        _values("images", "nsfw_score", "be_between", "0 to 1", min_value=0, max_value=1),
        _values("images", "num_texts", "be_between", "at least 0", min_value=0),
    ]


def _values(table: str, column: str, kind: str, threshold: str, **arguments: Any) -> Expectation:
    """An expectation on each row of a sample."""
    name = f"{table}-{column.replace('_', '-')}"
    what, kind = f"{column} of each row of {table}", f"expect_column_values_to_{kind}"
    return Expectation(name, what, table, kind, {"column": column, **arguments}, threshold)
