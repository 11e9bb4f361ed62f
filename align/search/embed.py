"""embed: a folder of images, a text file or a parquet column -> parquet of embeddings.

Owns the output: one row an input, in order, with `row` (position in the input, from 0), `path` or `text` where the
input has one, `embedding` (list of float32, L2-normalised) and `error`. What cannot be embedded is a row with a null
embedding and the reason. Parts are written as they are done into `OUT.parts`, so that a killed run goes on where it
was; the output appears complete or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config import Params
from align.config.embed import EmbedConfig
from align.config.paths import PathsConfig
from align.console import say, track
from align.errors import ConfigError, DataError
from align.files import write_bytes
from align.model.embedder import Embedder, model_digest
from align.model.preprocess import centre_crop, decode

#: Suffixes taken for images in a folder; other files are counted and left alone.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif"})

#: Where the output names what it was made from.
_PLAN_KEY = b"align_embed_plan"


@dataclass(frozen=True, slots=True)
class Input:
    """One thing to embed: bytes of an image, a text, or None with the reason why there is neither."""

    row: int
    content: bytes | str | None
    path: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Source:
    """A readable input.

    Attributes:
        location: folder or file.
        kind: `folder`, `lines` or `column`.
        column: of a parquet file.
        num_rows: how many there are; None where only reading tells.
        fingerprint: changes when the input changes (names, sizes, modification times).
    """

    location: Path
    kind: str
    column: str | None
    num_rows: int | None
    fingerprint: str

    def rows(self) -> Iterator[Input]:
        """Reads the inputs in order, one at a time."""
        if self.kind == "folder":
            return _folder_rows(self.location)
        if self.kind == "column":
            return _column_rows(self.location, str(self.column))
        return _line_rows(self.location)


@dataclass(frozen=True)
class Outcome:
    """What a run did. `num_resumed` rows were there from a run before."""

    num_rows: int
    num_failed: int
    num_resumed: int


def open_source(location: Path, column: str | None) -> Source:
    """Finds out what kind of input a path is.

    Raises:
        DataError: it does not exist, or is a folder without images, or a parquet file that does not read.
        ConfigError: a parquet file without --column, --column without a parquet file, or no such column.
    """
    if not location.exists():
        raise DataError(f"{location}: no such file or folder")
    if location.is_dir():
        if column:
            raise ConfigError(f"--column {column}: {location} is a folder; columns belong to parquet files")
        images, others = _image_files(location)
        if not images:
            raise DataError(f"{location}: no image in it ({others:,} other files)")
        if others:
            say(f"embed: {others:,} files in {location} do not end like images and are left out")
        stamps = ((path.relative_to(location).as_posix(), path.stat()) for path in images)
        return Source(location, "folder", None, len(images), _fingerprint(stamps))
    stamp = _fingerprint([(location.name, location.stat())])
    if location.suffix.lower() not in (".parquet", ".pq"):
        if column:
            raise ConfigError(f"--column {column}: {location} is not a parquet file")
        return Source(location, "lines", None, None, stamp)
    try:
        schema, num_rows = pq.read_schema(location), pq.read_metadata(location).num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{location}: not a parquet file that can be read: {str(error).splitlines()[0]}") from None
    if column not in schema.names:
        missing = f"it has no column {column!r}" if column else "which column? Give --column NAME"
        raise ConfigError(f"{location}: {missing}; there are: {', '.join(schema.names)}")
    kind = schema.field(column).type
    if not (_is_text(kind) or _is_bytes(kind) or _is_image_struct(kind)):
        raise ConfigError(f"{location}: column {column!r} is {kind}; expected texts or the bytes of images")
    return Source(location, "column", column, num_rows, stamp)


def embed(config: EmbedConfig, source: Source, *, embedder: Embedder, model_digest: str, out: Path) -> Outcome:
    """Embeds everything a source holds. Memory is bounded by `rows_per_part` embeddings and one batch of images.

    Raises:
        DataError: `out` exists and was made from another input or with another model.
    """
    plan = json.dumps(
        {
            "schema_version": 1, "model_digest": model_digest, "column": source.column, "input": source.fingerprint,
            "rows_per_part": config.rows_per_part,
        },
        sort_keys=True,
    ).encode()  # fmt: skip
    parts = out.with_name(out.name + ".parts")
    if out.exists():
        outcome = _finished(out, plan)
        shutil.rmtree(parts, ignore_errors=True)  # left by a kill between the last two steps
        return outcome
    _prepare(parts, plan)
    num_failed = num_resumed = num_rows = 0
    rows = track(source.rows(), what="embed", total=source.num_rows)
    for number in range(10**9):
        path = parts / f"{number:06d}.parquet"
        if path.exists():
            there = pq.read_table(path, columns=["error"])
            for _ in islice(rows, len(there)):
                pass
            num_resumed += len(there)
        else:
            table = _embed_part(islice(rows, config.rows_per_part), embedder)
            if not len(table):
                break
            _write(table, path)
            there = table
        num_rows += len(there)
        num_failed += len(there) - there["error"].null_count
    if not num_rows:
        raise DataError(f"{source.location}: nothing in it to embed")
    _join(parts, out, plan)
    shutil.rmtree(parts)
    return Outcome(num_rows, num_failed, num_resumed)


def _embed_part(rows: Iterable[Input], embedder: Embedder) -> pa.Table:
    """Embeds a few rows. Columns that the input has no values for are null throughout."""
    columns: dict[str, list[Any]] = {"row": [], "path": [], "text": [], "error": []}
    texts: list[tuple[int, str]] = []
    images: list[int] = []

    def crops() -> Iterator[NDArray[np.uint8]]:
        for position, item in enumerate(rows):
            error = item.error
            if isinstance(item.content, str):
                texts.append((position, item.content))
            elif item.content is not None:
                try:
                    pixels = decode(item.content, embedder.config.resize_px)
                except DataError as failure:
                    error = str(failure)
                else:
                    images.append(position)
                    yield centre_crop(pixels, embedder.config.image_px)
            columns["row"].append(item.row)
            columns["path"].append(item.path)
            columns["text"].append(item.content if isinstance(item.content, str) else None)
            columns["error"].append(error)

    image_embeds = embedder.embed_pixels(crops())  # reads every row, texts too
    text_embeds = embedder.embed_texts([text for _, text in texts])
    embeddings: list[NDArray[np.float32] | None] = [None] * len(columns["row"])
    for position, vector in zip(images, image_embeds, strict=True):
        embeddings[position] = vector
    for (position, _), vector in zip(texts, text_embeds, strict=True):
        embeddings[position] = vector
    return pa.table(
        {
            "row": pa.array(columns["row"], pa.int64()),
            "path": pa.array(columns["path"], pa.string()),
            "text": pa.array(columns["text"], pa.string()),
            "embedding": pa.array(embeddings, pa.list_(pa.float32())),
            "error": pa.array(columns["error"], pa.string()),
        }
    )


def _folder_rows(folder: Path) -> Iterator[Input]:
    for row, path in enumerate(_image_files(folder)[0]):
        name = path.relative_to(folder).as_posix()
        try:
            yield Input(row, path.read_bytes(), path=name)
        except OSError as error:
            yield Input(row, None, path=name, error=f"cannot be read: {error.strerror}")


def _line_rows(path: Path) -> Iterator[Input]:
    with path.open("rb") as file:
        for row, line in enumerate(file):
            try:
                text = line.decode("utf-8-sig" if row == 0 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                yield Input(row, None, error="not UTF-8")
                continue
            yield _text_input(row, text)


def _column_rows(path: Path, column: str) -> Iterator[Input]:
    row = 0
    with pq.ParquetFile(path, pre_buffer=False) as file:  # or pyarrow keeps all images it has read
        for batch in file.iter_batches(batch_size=64, columns=[column]):
            for value in batch.column(0):
                content = value.as_py()
                if isinstance(content, dict):  # {"bytes": ..., "path": ...}, as image columns of `datasets` are
                    content = content["bytes"]
                if content is None:
                    yield Input(row, None, error="null")
                elif isinstance(content, str):
                    yield _text_input(row, content)
                else:
                    yield Input(row, content)
                row += 1


def _text_input(row: int, text: str) -> Input:
    return Input(row, text) if text.strip() else Input(row, None, error="empty text")


def _image_files(folder: Path) -> tuple[list[Path], int]:
    """The images below a folder in order of their paths, and the number of other files. Hidden files are neither."""
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


def _finished(out: Path, plan: bytes) -> Outcome:
    try:
        same = (pq.read_schema(out).metadata or {}).get(_PLAN_KEY) == plan
    except (pa.ArrowException, OSError):
        same = False
    if not same:
        raise DataError(f"{out}: exists, and not from this input and this model; remove it or choose another --out")
    errors = pq.read_table(out, columns=["error"])["error"]
    return Outcome(len(errors), len(errors) - errors.null_count, len(errors))


def _prepare(parts: Path, plan: bytes) -> None:
    """Keeps the parts of a killed run of the same plan, and clears those of another."""
    path = parts / "plan.json"
    if parts.exists() and not (path.exists() and path.read_bytes() == plan):
        say(f"embed: {parts} is from another input or model; starting again")
        shutil.rmtree(parts)
    if not path.exists():
        write_bytes(path, plan)


def _write(table: pa.Table, path: Path) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def _join(parts: Path, out: Path, plan: bytes) -> None:
    """Concatenates the parts, one in memory at a time, and drops `path` or `text` where the input has none at all."""
    files = sorted(parts.glob("*.parquet"))
    used = [
        name
        for name in pq.read_schema(files[0]).names
        if name not in ("path", "text") or any(_has_values(file, name) for file in files)
    ]
    joined = parts / "joined"
    schema = pa.schema([pq.read_schema(files[0]).field(name) for name in used], metadata={_PLAN_KEY: plan})
    with pq.ParquetWriter(joined, schema, compression="zstd") as writer:
        for file in files:
            writer.write_table(pq.read_table(file, columns=used).cast(schema))
    with joined.open("rb") as file_to_sync:
        os.fsync(file_to_sync.fileno())
    joined.replace(out)


def _has_values(file: Path, column: str) -> bool:
    values = pq.read_table(file, columns=[column])[column]
    return bool(values.null_count < len(values))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `align embed`."""
    parser.add_argument("input", type=Path, help="a folder of images, a text file (a text a line) or a parquet file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.parquet", help="where the embeddings go")
    parser.add_argument("--column", metavar="NAME", help="of a parquet file: texts, or the bytes of images")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align embed`."""
    config, paths = params.section(EmbedConfig), params.section(PathsConfig)
    source = open_source(args.input, args.column)
    digest = model_digest(paths.finetuned, paths.tokenizer)
    embedder = Embedder.load(paths.finetuned, paths.tokenizer)
    outcome = embed(config, source, embedder=embedder, model_digest=digest, out=args.out)
    resumed = f", {outcome.num_resumed:,} of them from before" if outcome.num_resumed else ""
    say(f"embed: {outcome.num_rows:,} rows{resumed}, {outcome.num_failed:,} without an embedding -> {args.out}")
