"""Output of `align embed`: one parquet file per part while it runs, then all parts joined into one file.

A killed run resumes after its last part: `OUT.parts/plan.json` and the metadata of the output name the inputs and the
model, so that parts of another run are never mixed in.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from align.display.console import say
from align.durable.files import write_bytes
from align.errors import DataError

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
