"""Writes data/raw: shards, each a result of a step, and the manifest last. Equal rows and pictures give equal bytes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from align.durable.files import fsync, sha256_file, write_text
from align.errors import DataError
from align.formats.raw import MANIFEST, WITHOUT_RIGHTS, ListedShard, MadeWith, RawManifest
from align.formats.statuses import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, NOT_FETCHED, SUCCESS
from align.formats.tar import TarWriter

#: Rows held in memory before they are written to the table.
_ROWS_AT_ONCE = 2048


class RowWriter:
    """Writes a table row by row. A context manager. There is no file until `flush`, or the end if there are rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._rows: list[Mapping[str, Any]] = []
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row, with a value for every column."""
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are in memory."""
        self._file = self._file or pq.ParquetWriter(self._path, self._schema, compression="zstd")
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows = []

    def __exit__(self, *error: object) -> None:
        if self._rows and error[0] is None:
            self.flush()
        if self._file is not None:
            self._file.close()


class RawShardWriter:
    """Writes NNNNN.tar, NNNNN.parquet and NNNNN_stats.json. A context manager; after a failure they are not whole.

    Args:
        directory: the folder.
        name: the shard's name, such as `00000`.
        position_digits: of a key, after the name.
        keep_tar: called with the finished tar and its sha256; it may move the tar elsewhere.
        schema: of the table.

    Attributes:
        num_rows: added so far.
        statuses: of these rows.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        position_digits: int,
        keep_tar: Callable[[Path, str], None],
        schema: pa.Schema = WITHOUT_RIGHTS,
    ) -> None:
        self._directory, self._name, self._position_digits = directory, name, position_digits
        self._keep_tar = keep_tar
        self._rows = RowWriter(directory / f"{name}.parquet", schema)
        self.statuses: Counter[str] = Counter()
        self._messages: Counter[str] = Counter()
        self.num_rows = 0

    def __enter__(self) -> Self:
        self._file = (self._directory / f"{self._name}.tar").open("wb")
        self._tar = TarWriter(self._file)
        return self

    @property
    def next_key(self) -> str:
        """The key of the next pair."""
        return f"{self._name}{self.num_rows:0{self._position_digits}d}"

    def add(self, row: dict[str, Any], image: bytes | None) -> None:
        """Adds one pair.

        Args:
            row: a value for every column of the schema; its key is `next_key`.
            image: the bytes to store under it; None for a row without bytes, or whose bytes are stored already.
        """
        self._rows.add(row)
        self.num_rows += 1
        self.statuses[row["status"]] += 1
        self._messages[row["error_message"] or SUCCESS] += 1
        if image is not None:
            key, text, about = row["key"], row["caption"].encode("utf-8"), json.dumps(row, ensure_ascii=False)
            self._tar.add((f"{key}.jpg", image), (f"{key}.txt", text), (f"{key}.json", about.encode("utf-8")))

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._rows.flush()
            self._tar.close()
        self._rows.__exit__(*error)
        self._file.close()
        if error[0] is None:
            self._finish()

    def _finish(self) -> None:
        tar, table = (self._directory / f"{self._name}{suffix}" for suffix in (".tar", ".parquet"))
        fsync(tar)
        fsync(table)
        stats: dict[str, Any] = {
            "count": self.num_rows,
            "successes": self.statuses[SUCCESS],
            "failed_to_download": self.statuses[FAILED_TO_DOWNLOAD],
            "failed_to_resize": self.statuses[FAILED_TO_RESIZE],
            "not_fetched": self.statuses[NOT_FETCHED],
            "status_dict": dict(sorted(self._messages.items())),
            "tar_sha256": sha256_file(tar),
            "tar_bytes": tar.stat().st_size,
            "table_sha256": sha256_file(table),
        }
        self._keep_tar(tar, stats["tar_sha256"])
        write_text(self._directory / f"{self._name}_stats.json", json.dumps(stats, indent=4, ensure_ascii=False) + "\n")


def write_raw_manifest(directory: Path, names: list[str], made_with: MadeWith | None = None) -> RawManifest:
    """Writes manifest.json from the stats of the shards, and returns it.

    Args:
        directory: with the shards.
        names: of the shards.
        made_with: with which values; None: nobody knows.

    Raises:
        DataError: the stats of a shard are missing.
    """
    shards = []
    for name in names:
        path = directory / f"{name}_stats.json"
        try:
            stats = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DataError(f"{path}: missing; run `align ingest` again") from None
        shards.append(
            ListedShard(
                name=name,
                num_pairs=stats["count"],
                tar_sha256=stats["tar_sha256"],
                tar_bytes=stats["tar_bytes"],
                table_sha256=stats["table_sha256"],
            )
        )
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.tar_sha256} {shard.table_sha256}\n".encode("ascii"))
    manifest = RawManifest(schema_version=1, digest=digest.hexdigest(), made_with=made_with, shards=tuple(shards))
    write_text(directory / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n")
    return manifest
