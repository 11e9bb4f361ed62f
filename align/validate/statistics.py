"""What the quality gate measures: statistics over whole tables, as SQL that gives one number each.

Views: `raw` (data/raw), `decisions` and `images` (data/filtered), `evaluation_ids` (image_id of every evaluation image)
and `evaluation_hashes` (phash of every one that decodes). The SQL is such that DuckDB and Spark both run it: lists are
looked at as text, since their indices count from 1 in one and from 0 in the other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from align.errors import FormatError
from align.files import sha256_file
from align.protocols.sql import Rows

#: The columns that statistics and rows are judged on.
COLUMNS = {
    "raw": ("url", "caption", "key", "status", "width", "height"),
    "decisions": ("key", "keep", "reason", "reasons", "image_id", "image_key", "text"),
    "images": (
        "image_id", "image_key", "width_px", "height_px", "nsfw_score", "phash", "num_texts", "evaluation_sets",
    ),
}  # fmt: skip


def _share(condition: str, table: str) -> str:
    return f"SELECT count(*) FILTER (WHERE {condition}) / nullif(count(*), 0) FROM {table}"


def _repeated(column: str, table: str) -> str:
    return f"SELECT count(*) FROM (SELECT {column} FROM {table} GROUP BY {column} HAVING count(*) > 1) AS repeated"


def _without(table: str, other: str, column: str, where: str = "") -> str:
    """Rows of `table` that have no partner in `other`; `where` is a further condition on them."""
    more = f" AND {table}.{where}" if where else ""
    return (
        f"SELECT count(*) FROM {table} LEFT JOIN {other} ON {table}.{column} = {other}.{column} "
        f"WHERE {other}.{column} IS NULL{more}"
    )


#: What must be 0: name -> (what it counts, SQL), in the order of the gate. Leakage comes first: it would spoil every
#: later figure.
ZERO: dict[str, tuple[str, str]] = {
    "kept_evaluation_images": (
        "kept pairs that show an evaluation image, by the filter's word",
        "SELECT count(*) FROM decisions JOIN images ON decisions.image_id = images.image_id "
        "WHERE keep AND CAST(evaluation_sets AS STRING) <> '[]'",
    ),
    "kept_evaluation_bytes": (
        "kept pairs whose image has the very bytes of an evaluation image",
        "SELECT count(*) FROM decisions JOIN evaluation_ids ON decisions.image_id = evaluation_ids.image_id WHERE keep",
    ),
    "raw_duplicate_keys": ("keys that occur again", _repeated("key", "raw")),
    "raw_null_keys": ("rows without a key", "SELECT count(*) FROM raw WHERE key IS NULL"),
    "raw_null_urls": ("rows without an image URL", "SELECT count(*) FROM raw WHERE url IS NULL"),
    "raw_null_statuses": ("rows without a status", "SELECT count(*) FROM raw WHERE status IS NULL"),
    "raw_success_without_size": (
        "images without a width and height",
        "SELECT count(*) FROM raw WHERE status = 'success' AND (coalesce(width, 0) < 1 OR coalesce(height, 0) < 1)",
    ),
    "decisions_duplicate_keys": ("pairs decided on twice", _repeated("key", "decisions")),
    "rows_without_decision": ("pairs without a decision", _without("raw", "decisions", "key")),
    "decisions_without_row": ("decisions about no pair", _without("decisions", "raw", "key")),
    "decisions_null_keep": (
        "decisions that say neither keep nor drop",
        "SELECT count(*) FROM decisions WHERE keep IS NULL",
    ),
    "decisions_against_reason": (
        "pairs kept with a reason, or dropped without one",
        "SELECT count(*) FROM decisions WHERE keep <> (reason IS NULL)",
    ),
    "decisions_reason_not_first": (
        "decisions whose reason is not the first of their reasons",
        "SELECT count(*) FROM (SELECT reason, coalesce(CAST(reasons AS STRING), '') AS list FROM decisions) AS listed "
        "WHERE (reason IS NULL AND list <> '[]') OR "
        "substring(list, 1, length(reason) + 2) NOT IN ('[' || reason || ']', '[' || reason || ',')",
    ),
    "kept_without_image_or_text": (
        "kept pairs without an image or a text",
        "SELECT count(*) FROM decisions "
        "WHERE keep AND (image_id IS NULL OR image_key IS NULL OR coalesce(text, '') = '')",
    ),
    "kept_unknown_images": (
        "kept pairs whose image is not in images.parquet",
        _without("decisions", "images", "image_id", "keep"),
    ),
    "kept_unmeasured_images": (
        "kept pairs whose image was not hashed or not scored",
        "SELECT count(*) FROM decisions JOIN images ON decisions.image_id = images.image_id "
        "WHERE keep AND (phash IS NULL OR nsfw_score IS NULL)",
    ),
    "images_duplicate_ids": ("images listed twice", _repeated("image_id", "images")),
}  # fmt: skip

#: What has a threshold in params.yaml.
MEASURED = {
    "raw_pairs": "SELECT count(*) FROM raw",
    "raw_success_share": _share("status = 'success'", "raw"),
    "keep_rate": _share("keep", "decisions"),
    "kept_evaluation_hashes": (
        "SELECT count(evaluation_hashes.phash) / nullif(count(*), 0) FROM decisions "
        "JOIN images ON decisions.image_id = images.image_id "
        "LEFT JOIN evaluation_hashes ON images.phash = evaluation_hashes.phash WHERE keep"
    ),
}


def measure(rows: Rows, reasons: Iterable[str], incomplete: Iterable[str]) -> dict[str, float | int | None]:
    """Every statistic.

    Args:
        rows: runs SQL over the views.
        reasons: codes whose share of the pairs is measured, as `dropped_<reason>`; any other is `unlisted_reasons`.
        incomplete: views that lack a column. What needs them is None: its expectation fails beside the one on columns.
    """
    listed = tuple(reasons)
    queries = MEASURED | {name: query for name, (_, query) in ZERO.items()}
    names = ", ".join(f"'{reason}'" for reason in listed) or "''"
    queries["unlisted_reasons"] = f"SELECT count(*) FROM decisions WHERE reason NOT IN ({names})"
    queries |= {f"dropped_{reason}": _share(f"reason = '{reason}'", "decisions") for reason in listed}
    lacking = set(incomplete)
    return {
        name: None if lacking & set(re.findall(r"\w+", query)) else rows(query)[0][0] for name, query in queries.items()
    }


def manifest_faults(raw: Path) -> dict[str, int] | None:
    """Shards of data/raw that differ from its manifest; None where there is none (a folder that img2dataset made).

    Tables are hashed whole; of tars, a hundred times their size, the size is compared: readers check their bytes.

    Raises:
        FormatError: the manifest is not what `align ingest` writes.
    """
    path = raw / "manifest.json"
    try:
        listed = {shard["name"]: shard for shard in json.loads(path.read_bytes())["shards"]}
        there = {table.stem: table for table in raw.glob("*.parquet")}
        both = [(listed[name], there[name]) for name in sorted(listed.keys() & there.keys())]
        return {
            "raw_shards_unlisted_or_missing": len(listed.keys() ^ there.keys()),
            "raw_shards_of_another_count": sum(
                pq.read_metadata(table).num_rows != shard["num_pairs"] for shard, table in both
            ),
            "raw_shards_changed": sum(_changed(shard, table) for shard, table in both),
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: not a manifest of `align ingest` ({error!r}); run it again") from None


def _changed(shard: dict[str, Any], table: Path) -> bool:
    tar = table.with_suffix(".tar")
    return sha256_file(table) != shard["table_sha256"] or (tar.is_file() and tar.stat().st_size != shard["tar_bytes"])
