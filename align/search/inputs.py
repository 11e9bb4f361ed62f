"""Inputs of `align embed`: a folder of images, a text file (one text per line) or a column of a parquet file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from align.display.console import say
from align.errors import ConfigError, DataError

#: Suffixes of the images in a folder; other files are counted and ignored.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif"})


@dataclass(frozen=True, slots=True)
class EmbedInput:
    """One input to embed.

    Attributes:
        row: its position, from 0.
        content: an image's bytes or a text; None if it cannot be read.
        path: of an image in a folder, relative to the folder.
        error: why there is no content.
    """

    row: int
    content: bytes | str | None
    path: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class EmbedSource:
    """A readable source of inputs.

    Attributes:
        location: folder or file.
        kind: `folder`, `lines` or `column`.
        column: of a parquet file.
        num_rows: number of inputs; None if only reading tells.
        fingerprint: changes when the inputs change (names, sizes, modification times).
    """

    location: Path
    kind: Literal["folder", "lines", "column"]
    column: str | None
    num_rows: int | None
    fingerprint: str

    def rows(self) -> Iterator[EmbedInput]:
        """Reads the inputs in order, one at a time."""
        if self.kind == "folder":
            return _folder_rows(self.location)
        if self.kind == "column":
            return _column_rows(self.location, str(self.column))
        return _line_rows(self.location)


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
    fingerprint = _fingerprint([(location.name, location.stat())])
    if location.suffix.lower() in (".parquet", ".pq"):
        return _open_parquet(location, column, fingerprint)
    if column:
        raise ConfigError(f"--column {column}: {location} is not a parquet file")
    return EmbedSource(location, "lines", None, None, fingerprint)


def _open_folder(folder: Path, column: str | None) -> EmbedSource:
    if column:
        raise ConfigError(f"--column {column}: {folder} is a folder; only parquet files have columns")
    images, num_others = _image_files(folder)
    if not images:
        raise DataError(f"{folder}: no image in it ({num_others:,} other files)")
    if num_others:
        say(f"embed: {num_others:,} files in {folder} have no suffix of an image and are ignored")
    stamps = ((path.relative_to(folder).as_posix(), path.stat()) for path in images)
    return EmbedSource(folder, "folder", None, len(images), _fingerprint(stamps))


def _open_parquet(path: Path, column: str | None, fingerprint: str) -> EmbedSource:
    try:
        schema, num_rows = pq.read_schema(path), pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file that can be read: {str(error).splitlines()[0]}") from None
    if column not in schema.names:
        problem = f"no column {column!r}" if column else "which column? Give --column NAME"
        raise ConfigError(f"{path}: {problem}; its columns: {', '.join(schema.names)}")
    kind = schema.field(column).type
    if not (_is_text(kind) or _is_bytes(kind) or _is_image_struct(kind)):
        raise ConfigError(f"{path}: column {column!r} is {kind}; expected texts or the bytes of images")
    return EmbedSource(path, "column", column, num_rows, fingerprint)


def _folder_rows(folder: Path) -> Iterator[EmbedInput]:
    for row, path in enumerate(_image_files(folder)[0]):
        name = path.relative_to(folder).as_posix()
        try:
            yield EmbedInput(row, path.read_bytes(), path=name)
        except OSError as error:
            yield EmbedInput(row, None, path=name, error=f"cannot be read: {error.strerror}")


def _line_rows(path: Path) -> Iterator[EmbedInput]:
    with path.open("rb") as file:
        for row, line in enumerate(file):
            try:
                text = line.decode("utf-8-sig" if row == 0 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield EmbedInput(row, None, error="not UTF-8")
                continue
            yield _text_input(row, text)


def _column_rows(path: Path, column: str) -> Iterator[EmbedInput]:
    row = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:  # with it, pyarrow keeps all images that it has read
        for batch in file.iter_batches(batch_size=64, columns=[column]):
            for value in batch.column(0):
                content = value.as_py()
                if isinstance(content, dict):  # {"bytes": ..., "path": ...}, as in image columns of `datasets`
                    content = content["bytes"]
                if content is None:
                    yield EmbedInput(row, None, error="null")
                elif isinstance(content, str):
                    yield _text_input(row, content)
                else:
                    yield EmbedInput(row, content)
                row += 1


def _text_input(row: int, text: str) -> EmbedInput:
    return EmbedInput(row, text) if text.strip() else EmbedInput(row, None, error="empty text")


def _image_files(folder: Path) -> tuple[list[Path], int]:
    """The images below a folder in order of their paths, and the number of other files. Hidden files are ignored."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    images = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    return images, len(files) - len(images)


def _fingerprint(stamps: Iterable[tuple[str, os.stat_result]]) -> str:
    digest = hashlib.sha256()
    for name, stat in stamps:
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_image_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_bytes(kind.field("bytes").type))
