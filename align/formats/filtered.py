"""data/filtered: what `align filter` decided, for all stages after it.

    decisions/NNNNN.parquet   one row per pair: keep it or not, why, and its normalised text
    facts/NNNNN.parquet       one row per pair: every value that a rule used
    images.parquet            one row per distinct image with bytes, in order of `image_id`

The first two have a part for each raw shard. Rows of pairs are in order of `key` through all parts, in row groups of
ROWS_AT_ONCE, so that finding one pair reads little. The files carry no version: a reader checks the columns that it
needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.durable.files import sha256_folder
from align.errors import DataError

#: Tables of pairs.
DECISIONS, FACTS = "decisions", "facts"
IMAGES = "images.parquet"
#: Pattern of the files with decisions.
DECISION_FILES = f"{DECISIONS}/*.parquet"

#: Rows per row group of decisions and facts.
ROWS_AT_ONCE = 10_000

#: `keep` is true, `reason` null and `reasons` empty together.
DECISIONS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        ("reason", pa.string()),  # the first in rule order
        ("reasons", pa.list_(pa.string())),  # all, in rule order
        ("image_id", pa.string()),
        ("image_key", pa.string()),  # of the tar sample with the bytes; null if there are none
        ("text", pa.string()),
        ("language", pa.string()),  # ISO 639-1; null: cannot be told, or not guessed since the pair is dropped
    ]
)

FACTS_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),  # of data/raw
        ("opted_out", pa.string()),  # "kind:value" of the entry of data/policy/opted_out.csv; null: none
        ("status", pa.string()),  # of the download
        ("has_bytes", pa.bool_()),
        ("decodable", pa.bool_()),  # null without bytes
        ("width_px", pa.int32()),  # at the source
        ("height_px", pa.int32()),
        ("nsfw_score", pa.float64()),  # null: not computed, since other rules drop all pairs of the image
        ("num_texts", pa.int64()),  # distinct texts of the image content; 0 without an image
        ("num_evaluation_sets", pa.int32()),  # sets with an image that this one resembles
        ("twin", pa.string()),  # SET/KEY of the closest one
        ("twin_cosine", pa.float64()),  # null if equal bytes or hashes matched it
        ("num_images", pa.int64()),  # distinct images of the text; null for an empty text
        ("rare_ngram", pa.bool_()),
        ("num_characters", pa.int32()),  # of the text before the cut; data/raw stores 8,192 of it at most
        ("num_words", pa.int32()),  # of what was not cut
        ("is_filename", pa.bool_()),
        ("similarity", pa.float64()),  # of image and text, by a given model; null: not computed
        ("language", pa.string()),  # as in the decisions
        ("num_emails", pa.int32()),
        ("num_phones", pa.int32()),
        ("repeats", pa.bool_()),  # a kept pair with a smaller key shows the same image (and text); null: not checked
    ]
)

IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # hex sha256 of the bytes
        ("image_key", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("nsfw_score", pa.float64()),
        ("phash", pa.uint64()),  # null if the picture does not decode
        ("num_texts", pa.int64()),
        ("evaluation_sets", pa.list_(pa.string())),  # those with an image that this one resembles
    ]
)


def pattern_of(filtered: Path, table: str) -> Path:
    """The files of `decisions` or `facts`, as a path whose last part is a pattern."""
    return filtered / table / "*.parquet"


def parts_of(filtered: Path, table: str) -> list[Path]:
    """The files of `decisions` or `facts`, in order of their keys; empty if there is no such table."""
    return sorted((filtered / table).glob("*.parquet"))


def decision_parts(filtered: Path) -> list[Path]:
    """The files of the decisions, in order of their keys. Raises DataError if there are none."""
    parts = parts_of(filtered, DECISIONS)
    if not parts:
        raise DataError(f"{filtered / DECISIONS}: no such file; run `align filter` first")
    return parts


def find_pair(filtered: Path, table: str, key: str) -> dict[str, Any] | None:
    """The row of a pair in `decisions` or `facts`; None if there is none. Few of the parts are opened."""
    parts = parts_of(filtered, table)
    low, high = 0, len(parts)
    while high - low > 1:
        middle = (low + high) // 2
        metadata = pq.read_metadata(parts[middle])
        if metadata.num_rows == 0:
            parts.pop(middle)
            high -= 1
            continue
        column = metadata.schema.to_arrow_schema().get_field_index("key")
        if metadata.row_group(0).column(column).statistics.min <= key:
            low = middle
        else:
            high = middle
    rows: list[dict[str, Any]] = pq.read_table(parts[low], filters=[("key", "==", key)]).to_pylist() if parts else []
    return rows[0] if rows else None


def decisions_digest(filtered: Path) -> str:
    """Hex sha256 of the decisions, which hold every key, image and text: the name of filtered data, in verdicts too.
    Raises DataError if there are no decisions.
    """
    decision_parts(filtered)
    return sha256_folder(filtered / DECISIONS)
