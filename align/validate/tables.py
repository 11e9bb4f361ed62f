"""The tables that the gate judges: views of them for the engine, a sample of their rows, and the digest of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from align.errors import DataError
from align.formats.filtered import DECISIONS, IMAGES, decision_parts, pattern_of
from align.formats.raw import raw_shards
from align.interfaces.sql import Engine
from align.pairs.text import MAX_CHARACTERS

#: View -> the columns that it must have.
COLUMNS = {
    "raw": ("url", "caption", "key", "status", "width", "height"),
    "decisions": ("key", "keep", "reason", "reasons", "image_id", "image_key", "text", "language"),
    "images": (
        "image_id",
        "image_key",
        "width_px",
        "height_px",
        "nsfw_score",
        "phash",
        "num_texts",
        "evaluation_sets",
    ),
}
#: View -> the column that orders its sample.
_KEYS = {"raw": "key", "decisions": "key", "images": "image_id"}


@dataclass(frozen=True)
class JudgedData:
    """What the gate judges.

    Attributes:
        raw: data/raw.
        filtered: data/filtered, with decisions and images.parquet.
        evaluation: the evaluation sets.
        checked_sets: the evaluation sets whose images the filter searched for, name -> sha256 of the tar.
    """

    raw: Path
    filtered: Path
    evaluation: Path
    checked_sets: Mapping[str, str]

    def has_text_sources(self) -> bool:
        """Whether data/raw says where texts are from."""
        return "text_source" in _columns(raw_shards(self.raw)[0].table)


def make_views(engine: Engine, data: JudgedData) -> list[str]:
    """Makes the views `raw`, `decisions` and `images`.

    Returns:
        Those that lack a column.

    Raises:
        DataError: a table is missing.
    """
    decisions = pattern_of(data.filtered, DECISIONS)
    files = {"raw": data.raw / "*.parquet", "decisions": decisions, "images": data.filtered / IMAGES}
    first_files = files | {"raw": raw_shards(data.raw)[0].table, "decisions": decision_parts(data.filtered)[0]}
    for name, path in files.items():
        if not first_files[name].exists():
            raise DataError(f"{path}: no such file; run `align filter` first")
        engine.view(name, path)
    return [name for name, columns in COLUMNS.items() if not set(columns) <= _columns(first_files[name])]


def sample_rows(engine: Engine, data: JudgedData, num_rows: int, incomplete: Sequence[str]) -> dict[str, pd.DataFrame]:
    """At most `num_rows` rows of each view, chosen by a hash of their keys: the same rows each time.

    Args:
        engine: has the views.
        data: what they show.
        num_rows: of each sample.
        incomplete: views that lack a column, which may be the key; any of their rows are taken.
    """
    samples = {}
    for name, key in _KEYS.items():
        order = "" if name in incomplete else f"ORDER BY md5({key}), {key}"
        columns = "*"
        if name == "raw":
            columns = ", ".join(_raw_columns(data)) or "*"
            order = order or "ORDER BY 1"  # without an order, an engine collects rows before it cuts strings
        path = engine.scratch / f"sample_{name}.parquet"
        engine.write(f"SELECT {columns} FROM {name} {order} LIMIT {num_rows}", path)
        samples[name] = pd.read_parquet(path)
    return samples


def _raw_columns(data: JudgedData) -> list[str]:
    """The columns of data/raw, with strings cut: in a foreign file, 500 bytes can hold gigabytes of captions."""
    present = _columns(raw_shards(data.raw)[0].table)
    return [
        f"left({name}, {MAX_CHARACTERS}) AS {name}" if name in ("url", "caption") else name
        for name in COLUMNS["raw"]
        if name in present
    ]


def _columns(path: Path) -> set[str]:
    return set(pq.ParquetDataset(path).schema.names)
