"""data/filtered: what `align filter` decided, for all stages after it.

    decisions.parquet   one row per pair: keep it or not, why, and its normalised text
    facts.parquet       one row per pair: every value that a rule used
    images.parquet      one row per distinct image with bytes, in order of `image_id`
    held_out/           an evaluation set of pairs that are kept out of training, if `filter.hold_out` is above 0

Rows of pairs are in order of `key`, in row groups of ROW_GROUP_SIZE, so that finding one pair reads little. The files
carry no version: a reader checks the columns that it needs.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from align.durable.files import sha256_file, sha256_folder
from align.errors import DataError

DECISIONS = "decisions.parquet"
FACTS = "facts.parquet"
IMAGES = "images.parquet"
FILES = (DECISIONS, FACTS, IMAGES)

#: Rows per row group of decisions.parquet and facts.parquet.
ROW_GROUP_SIZE = 10_000

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
        (
            "num_characters",
            pa.int32(),
        ),  # of the text before the cut; 8,192: data/raw stores no more of it
        ("num_words", pa.int32()),  # of what was not cut
        ("is_filename", pa.bool_()),
        ("similarity", pa.float64()),  # of image and text, by a given model; null: not computed
        ("language", pa.string()),  # as in decisions.parquet
        ("num_emails", pa.int32()),
        ("num_phones", pa.int32()),
        ("repeats", pa.bool_()),  # a kept pair with a smaller key shows the same image (and text); null: not checked
        ("held_out", pa.bool_()),  # it is in the evaluation set `held_out`; null: not asked
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


def decisions_digest(filtered: Path) -> str:
    """Hex sha256 of the decisions, which hold every key, image and text: the name of filtered data, in verdicts too.

    Raises:
        DataError: there are no decisions.
    """
    path = filtered / DECISIONS
    if not path.exists():
        raise DataError(f"{path}: no such file; run `align filter` first")
    return sha256_folder(path) if path.is_dir() else sha256_file(path)
