"""What img2dataset writes apart from the layout of data/raw: its output formats, and what its tables state.

    webdataset   NNNNN.tar + NNNNN.parquet: usable as data/raw, and read by `ingest.source: shards`
    files        NNNNN/ + NNNNN.parquet: read by `ingest.source: shards` only
    parquet      NNNNN.parquet, the pictures in one of its columns: refused, as are the other two
    tfrecord     NNNNN.tfrecord + NNNNN.parquet
    dummy        NNNNN_stats.json

Its column `sha256` is of the bytes before img2dataset resized them. They are not stored, so it names no picture here:
only a take-down looks at it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from align.errors import DataError
from align.formats.parquet import ForeignTable

#: Endings of pictures, in lower case.
IMAGE_EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "avif", "heic", "heif", "tif", "tiff")
)
#: In output format `parquet`, the column of the pictures is named after their format.
_PICTURE_COLUMNS = ("jpg", "png", "webp")
_MAX_SIDE_PX = 2**31 - 1


def image_key(name: str) -> str | None:
    """The key of a tar member or file, by its name; None if it is not a picture."""
    key, _, extension = name.rpartition("/")[2].partition(".")
    return key if extension.lower() in IMAGE_EXTENSIONS else None


def stated_size(width: Any, height: Any) -> tuple[int, int] | None:
    """The size in pixels before resizing that a row states; None if that is not a size."""
    sides = [int(side) for side in (width, height) if isinstance(side, int | float) and 1 <= side <= _MAX_SIDE_PX]
    return (sides[0], sides[1]) if len(sides) == 2 else None


def stated_sizes(width: pa.ChunkedArray, height: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """`stated_size` of all rows, as two int32 columns; null if that is not a size."""
    if not width.type == height.type == pa.int32():
        rows = [stated_size(*row) or (None, None) for row in zip(width.to_pylist(), height.to_pylist(), strict=True)]
        columns = list(zip(*rows, strict=True)) or [(), ()]
        width, height = (pa.chunked_array([pa.array(column, pa.int32())]) for column in columns)
    is_size = pc.and_(pc.greater(width, 0), pc.greater(height, 0))
    return pc.if_else(is_size, width, None), pc.if_else(is_size, height, None)


def without_tar(table: str, file: Path | BinaryIO, *, has_records: bool) -> DataError:
    """The error for a table NNNNN.parquet with neither NNNNN.tar nor NNNNN/ beside it; maybe NNNNN.tfrecord is."""
    if has_records:
        return refused(table, "tfrecord")
    try:
        schema = ForeignTable(file, table).schema
    except (pa.ArrowInvalid, OSError) as error:
        return DataError(f"{table}: not a readable parquet file ({error}); make the folder again")
    for name in _PICTURE_COLUMNS:
        if name in schema.names and pa.types.is_binary(schema.field(name).type):
            return refused(table, "parquet")
    stem = table.removesuffix(".parquet")
    return DataError(
        f"{stem}.tar: missing, while {stem.rpartition('/')[2]}.parquet exists; the folder is incomplete, make it again"
    )


def refused(where: str, output_format: str) -> DataError:
    """The error for an output format of img2dataset that is not read."""
    advice = "make the folder again with --output_format webdataset"
    if output_format == "files":
        advice = f"read the folder with ingest.source: shards, or {advice}"
    return DataError(f"{where}: img2dataset's output format '{output_format}', which cannot be read here; {advice}")
