"""Inputs of `align embed`: a folder of images, a text file (one text per line) or a column of a parquet file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa

from align.display.console import say
from align.errors import ConfigError, DataError
from align.formats.parquet import ForeignTable, readable

#: Suffixes of the images in a folder; other files are counted and ignored.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif"})


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """One input to embed.

    Attributes:
        content: an image's bytes or a text; None if it cannot be read.
        path: of an image in a folder, relative to the folder.
        error: why there is no content.
    """

    content: bytes | str | None
    path: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class EmbedSource:
    """A readable source of inputs.

    Attributes:
        location: folder or file.
        shown: what an input has; None: nothing, as the bytes of an image in a table.
        num_rows: number of inputs; None if only reading tells.
        rows: reads the inputs in order, one at a time.
    """

    location: Path
    shown: Literal["path", "text"] | None
    num_rows: int | None
    rows: Callable[[], Iterator[EmbedInput]]


def open_source(location: Path, column: str | None) -> EmbedSource:
    """Finds out what kind of source a path is.

    Args:
        location: folder or file.
        column: of a parquet file; None for other sources.

    Raises:
        DataError: the path does not exist, or is a folder without images, or a parquet file that cannot be read.
        ConfigError: a parquet file without --column, --column without a parquet file, or no such column.
    """
    if not location.exists():
        raise DataError(f"{location}: no such file or folder")
    if location.is_dir():
        return _open_folder(location, column)
    if location.suffix.lower() in (".parquet", ".pq"):
        return _open_parquet(location, column)
    if column:
        raise ConfigError(f"--column {column}: {location} is not a parquet file")
    return EmbedSource(location, "text", None, partial(_line_rows, location))


def _open_folder(folder: Path, column: str | None) -> EmbedSource:
    if column:
        raise ConfigError(f"--column {column}: {folder} is a folder; only parquet files have columns")
    images, num_others = image_files(folder)
    if not images:
        raise DataError(f"{folder}: no image in it ({num_others:,} other files)")
    if num_others:
        say(f"embed: {num_others:,} files in {folder} have no suffix of an image and are ignored")
    return EmbedSource(folder, "path", len(images), partial(_image_rows, folder, images))


def _open_parquet(path: Path, column: str | None) -> EmbedSource:
    try:
        table = ForeignTable(path, str(path))
    except (pa.ArrowException, MemoryError, OSError) as error:
        raise DataError(f"{path}: not a parquet file that can be read: {str(error).splitlines()[0]}") from None
    schema = table.schema
    if column is None or column not in schema.names:
        problem = f"no column {column!r}" if column else "which column? Give --column NAME"
        raise ConfigError(f"{path}: {problem}; its columns: {', '.join(schema.names)}")
    kind = schema.field(column).type
    if not (_is_text(kind) or _is_bytes(kind) or _is_image_struct(kind)):
        raise ConfigError(f"{path}: column {column!r} is {kind}; expected texts or the bytes of images")
    rows = partial(_column_rows, path, table, column)
    return EmbedSource(path, "text" if _is_text(kind) else None, sum(table.group_rows), rows)


def _image_rows(folder: Path, images: Sequence[Path]) -> Iterator[EmbedInput]:
    for path in images:
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "replace")
        try:
            yield EmbedInput(path.read_bytes(), path=name)
        except OSError as error:
            yield EmbedInput(None, path=name, error=f"cannot be read: {error.strerror}")


def _line_rows(path: Path) -> Iterator[EmbedInput]:
    with path.open("rb") as file:
        for row, line in enumerate(file):
            try:
                text = line.decode("utf-8-sig" if row == 0 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield EmbedInput(None, error="not UTF-8")
                continue
            yield _text_input(text)


def _column_rows(path: Path, table: ForeignTable, column: str) -> Iterator[EmbedInput]:
    is_text = _is_text(table.schema.field(column).type)
    with readable(path, "damaged", "write it again"):
        for batch in table.batches([column], pictures=not is_text):
            for value in batch.column(0):
                content = value.as_py()
                if isinstance(content, dict):  # {"bytes": ..., "path": ...}, as in image columns of `datasets`
                    content = content["bytes"]
                if content is None:
                    yield EmbedInput(None, error="null")
                elif isinstance(content, str):
                    yield _text_input(content)
                else:
                    yield EmbedInput(content)


def _text_input(text: str) -> EmbedInput:
    return EmbedInput(text) if text.strip() else EmbedInput(None, error="empty text")


def image_files(folder: Path) -> tuple[list[Path], int]:
    """The images below a folder in order of their paths, and the number of other files. Hidden files are ignored."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    images = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    return images, len(files) - len(images)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type))
