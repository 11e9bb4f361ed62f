"""embed: a folder of images, a text file or a parquet column -> parquet of embeddings.

The output has one row per input, in order: `row` (position in the input, from 0), `path` of an image in a folder or
`text`, `embedding` (list of float32, L2-normalised) and `error`. An input that cannot be embedded is a row with a null
embedding and the reason. The output appears complete or not at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config import Params
from align.config.paths import PathsConfig
from align.display.console import say, track
from align.durable.files import replaced
from align.errors import DataError
from align.formats.model_folder import unpacked
from align.model.embedder import Crop, Embedder
from align.search.inputs import EmbedInput, EmbedSource, open_source
from align.services.dvc.outs import require_output_file

#: Inputs that are embedded at a time: a row group of the output.
_ROWS_AT_ONCE = 1000
_SCHEMA = pa.schema([
    ("row", pa.int64()), ("path", pa.string()), ("text", pa.string()), ("embedding", pa.list_(pa.float32())),
    ("error", pa.string()),
])  # fmt: skip


def embed_rows(rows: Iterable[EmbedInput], embedder: Embedder, first: int) -> pa.Table:
    """Embeds inputs: columns row, from `first` on, path, text, embedding, error. What an input has not is null."""
    columns: dict[str, list[Any]] = {"path": [], "text": [], "error": []}
    texts: list[tuple[int, str]] = []
    images: list[int] = []

    def crops() -> Iterator[Crop]:
        for position, item in enumerate(rows):
            error = item.error
            if isinstance(item.content, str):
                texts.append((position, item.content))
            elif item.content is not None:
                try:
                    crop = embedder.crop(item.content)
                except DataError as failure:
                    error = str(failure)
                else:
                    images.append(position)
                    yield crop
            columns["path"].append(item.path)
            columns["text"].append(item.content if isinstance(item.content, str) else None)
            columns["error"].append(error)

    image_embeds = embedder.embed_pixels(crops())  # reads every row, including texts
    text_embeds = embedder.embed_texts([text for _, text in texts])
    numbers = range(first, first + len(columns["path"]))
    embeddings: list[NDArray[np.float32] | None] = [None] * len(numbers)
    for position, vector in zip(images, image_embeds, strict=True):
        embeddings[position] = vector
    for (position, _), vector in zip(texts, text_embeds, strict=True):
        embeddings[position] = vector
    return pa.table(columns | {"row": numbers, "embedding": embeddings}, schema=_SCHEMA)


def embed(source: EmbedSource, *, embedder: Embedder, out: Path) -> tuple[int, int]:
    """Embeds all inputs of a source. Memory holds a row group, and one batch of images.

    Returns:
        The number of rows, and of those without an embedding.

    Raises:
        DataError: the source is empty.
    """
    rows = track(source.rows(), what="embed", total=source.num_rows)
    num_rows = num_failed = 0
    names = [name for name in _SCHEMA.names if name not in ("path", "text") or name == source.shown]
    with replaced(out) as beside:
        with pq.ParquetWriter(beside, pa.schema([_SCHEMA.field(name) for name in names]), compression="zstd") as writer:
            while len(part := embed_rows(islice(rows, _ROWS_AT_ONCE), embedder, num_rows)):
                writer.write_table(part.select(names))
                num_rows += len(part)
                num_failed += len(part) - part["error"].null_count
        if not num_rows:
            raise DataError(f"{source.location}: nothing in it to embed")
    return num_rows, num_failed


def main(params: Params, args: argparse.Namespace) -> None:
    """`align embed`."""
    model = unpacked(args.model or params.section(PathsConfig).finetuned)
    require_output_file("--out", args.out, ".parquet")
    if args.out.exists():
        raise DataError(f"{args.out}: exists; remove it, or choose another --out")
    source = open_source(args.input, args.column)
    num_rows, num_failed = embed(source, embedder=Embedder.load(model), out=args.out)
    say(f"embed: {num_rows:,} rows, {num_failed:,} without an embedding -> {args.out}")
