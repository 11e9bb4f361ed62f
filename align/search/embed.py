"""embed: a folder of images, a text file or a parquet column -> parquet of embeddings.

The output has one row per input, in order: `row` (position in the input, from 0), `path` or `text` if the input has
one, `embedding` (list of float32, L2-normalised) and `error`. An input that cannot be embedded is a row with a null
embedding and the reason. Parts are written to `OUT.parts` as they are finished, so that a killed run resumes; the
output appears complete or not at all.

`OUT.parts/plan.json` and the metadata of the output name the inputs and the
model, so that parts of another run are never mixed in.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config import Params
from align.config.infrastructure import EmbedConfig
from align.config.paths import PathsConfig
from align.display.console import say, track
from align.durable.files import write_bytes
from align.errors import DataError
from align.formats.model_folder import CONFIG, model_digest
from align.model.embedder import Embedder
from align.model.preprocess import centre_crop, decode
from align.search.inputs import EmbedInput, EmbedSource, open_source
from align.search.output_file import require_output_file

#: Key of the plan in the output's metadata.
_PLAN_KEY = b"align_embed_plan"


@dataclass(frozen=True)
class EmbedParts:
    """The parts of one output.

    Attributes:
        out: the output.
        plan: names the inputs, the model and the size of a part.
    """

    out: Path
    plan: bytes

    @property
    def folder(self) -> Path:
        """Where the parts are stored until they are joined."""
        return self.out.with_name(self.out.name + ".parts")

    def finished(self) -> pa.Table | None:
        """Column `error` of an output that exists; None if there is none.

        Raises:
            DataError: the output has another plan.
        """
        if not self.out.exists():
            return None
        try:
            same = (pq.read_schema(self.out).metadata or {}).get(_PLAN_KEY) == self.plan
        except (pa.ArrowException, OSError):
            same = False
        if not same:
            raise DataError(
                f"{self.out}: exists, but not from this input and this model; remove it or choose another --out"
            )
        self.clear()  # a run killed between joining and clearing left parts behind
        return pq.read_table(self.out, columns=["error"])

    def prepare(self) -> None:
        """Keeps the parts of a killed run with the same plan, and removes those of another.

        Raises:
            DataError: the folder of parts is not ours.
        """
        path = self.folder / "plan.json"
        if self.folder.is_dir() and not path.exists() and any(self.folder.iterdir()):
            raise DataError(f"{self.folder}: is not a folder of parts; move it away, or choose another --out")
        if self.folder.exists() and not (path.exists() and path.read_bytes() == self.plan):
            say(f"embed: {self.folder} is from another input or model; starting again")
            shutil.rmtree(self.folder)
        if not path.exists():
            write_bytes(path, self.plan)

    def read(self, number: int) -> pa.Table | None:
        """Column `error` of a part; None if the part does not exist."""
        path = self._path(number)
        return pq.read_table(path, columns=["error"]) if path.exists() else None

    def write(self, number: int, table: pa.Table) -> None:
        """Writes a part atomically."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write_bytes(self._path(number), sink.getvalue().to_pybytes())

    def join(self) -> None:
        """Writes the output from its parts, with one in memory at a time, and removes the parts.

        Columns `path` and `text` are dropped if no input has a value for them.
        """
        files = sorted(self.folder.glob("*.parquet"))
        names = pq.read_schema(files[0]).names
        used = [
            name for name in names if name not in ("path", "text") or any(_has_values(file, name) for file in files)
        ]
        joined = self.folder / "joined"
        schema = pa.schema([pq.read_schema(files[0]).field(name) for name in used], metadata={_PLAN_KEY: self.plan})
        with pq.ParquetWriter(joined, schema, compression="zstd") as writer:
            for file in files:
                writer.write_table(pq.read_table(file, columns=used).cast(schema))
        with joined.open("rb") as file_to_sync:
            os.fsync(file_to_sync.fileno())
        joined.replace(self.out)
        self.clear()

    def clear(self) -> None:
        """Removes the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"


def _has_values(file: Path, column: str) -> bool:
    values = pq.read_table(file, columns=[column])[column]
    return bool(values.null_count < len(values))


def embed_rows(rows: Iterable[EmbedInput], embedder: Embedder) -> pa.Table:
    """Embeds inputs: columns row, path, text, embedding, error. Columns without values in the input hold nulls."""
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

    image_embeds = embedder.embed_pixels(crops())  # reads every row, including texts
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


@dataclass(frozen=True)
class EmbedCounts:
    """What a run did. `num_resumed` rows come from an earlier run."""

    num_rows: int
    num_failed: int
    num_resumed: int


def embed(config: EmbedConfig, source: EmbedSource, *, embedder: Embedder, model_digest: str, out: Path) -> EmbedCounts:
    """Embeds all inputs of a source. Memory holds at most `rows_per_part` embeddings and one batch of images.

    Raises:
        DataError: the source is empty, or `out` exists and was made from another input or with another model.
    """
    plan = {
        "schema_version": 1,
        "model_digest": model_digest,
        "column": source.column,
        "input": source.fingerprint,
        "rows_per_part": config.rows_per_part,
    }
    parts = EmbedParts(out, json.dumps(plan, sort_keys=True).encode())
    finished = parts.finished()
    if finished is not None:
        return EmbedCounts(len(finished), _num_failed(finished), len(finished))
    parts.prepare()
    num_rows = num_failed = num_resumed = 0
    rows = track(source.rows(), what="embed", total=source.num_rows)
    for number in count():
        part = parts.read(number)
        if part is not None:
            for _ in islice(rows, len(part)):
                pass
            num_resumed += len(part)
        else:
            part = embed_rows(islice(rows, config.rows_per_part), embedder)
            if not len(part):
                break
            parts.write(number, part)
        num_rows += len(part)
        num_failed += _num_failed(part)
    if not num_rows:
        raise DataError(f"{source.location}: nothing in it to embed")
    parts.join()
    return EmbedCounts(num_rows, num_failed, num_resumed)


def _num_failed(part: pa.Table) -> int:
    return len(part) - int(part["error"].null_count)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align embed`."""
    config, paths = params.section(EmbedConfig), params.section(PathsConfig)
    model = _model_folder(args.model or paths.finetuned)
    require_output_file("--out", args.out, ".parquet")
    source = open_source(args.input, args.column)
    digest = model_digest(model)
    embedder = Embedder.load(model)
    counts = embed(config, source, embedder=embedder, model_digest=digest, out=args.out)
    resumed = f" ({counts.num_resumed:,} from an earlier run)" if counts.num_resumed else ""
    say(f"embed: {counts.num_rows:,} rows{resumed}, {counts.num_failed:,} without an embedding -> {args.out}")


def _model_folder(folder: Path) -> Path:
    """The model folder itself, or the one in a packaged model."""
    inner = sorted(folder.glob(f"artifacts/*/{CONFIG}"))
    return inner[0].parent if len(inner) == 1 and not (folder / CONFIG).is_file() else folder
