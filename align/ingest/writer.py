"""Writes data/raw: one shard at a time, each complete or not at all, and the manifest last.

A shard is NNNNN.tar, NNNNN_stats.json and NNNNN.parquet, which get their names in this order: a shard that has its
table is complete. Equal rows and pictures give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.durable.files import fsync, sha256_file, temporary_name, write_text
from align.errors import DataError
from align.formats.raw import MANIFEST, WITHOUT_RIGHTS, ListedShard, MadeWith, RawManifest
from align.formats.statuses import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, NOT_FETCHED, SUCCESS
from align.formats.tar import TarWriter

#: Rows held in memory before they are written to the table.
_ROWS_AT_ONCE = 2048


class RawShardWriter:
    """Writes one shard. A context manager: it commits when the block succeeds, and writes nothing when it fails.

    Args:
        directory: the work folder.
        name: the shard's name, such as `00000`.
        position_digits: of a key, after the name.
        keep_tar: called with the finished tar and its sha256 before the shard is complete; it may move the tar
            elsewhere.
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
        self._directory, self._name, self._position_digits, self._schema = directory, name, position_digits, schema
        self._keep_tar = keep_tar
        self._temporary = {suffix: temporary_name(directory / f"{name}{suffix}") for suffix in (".tar", ".parquet")}
        self.statuses: Counter[str] = Counter()
        self._messages: Counter[str] = Counter()
        self._rows: list[dict[str, Any]] = []
        self.num_rows = 0

    def __enter__(self) -> RawShardWriter:
        self._file = self._temporary[".tar"].open("wb")
        self._tar = TarWriter(self._file)
        self._table = pq.ParquetWriter(self._temporary[".parquet"], self._schema, compression="zstd")
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
        self._rows.append(row)
        self.num_rows += 1
        self.statuses[row["status"]] += 1
        self._messages[row["error_message"] or SUCCESS] += 1
        if image is not None:
            key, text, about = row["key"], row["caption"].encode("utf-8"), json.dumps(row, ensure_ascii=False)
            self._tar.add((f"{key}.jpg", image), (f"{key}.txt", text), (f"{key}.json", about.encode("utf-8")))
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._write_rows()

    def _write_rows(self) -> None:
        if self._rows:
            self._table.write_table(pa.Table.from_pylist(self._rows, self._schema))
            self._rows = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write_rows()
                self._tar.close()
            self._table.close()
            self._file.close()
            if kind is None:
                self._commit()
        finally:
            for path in self._temporary.values():
                path.unlink(missing_ok=True)

    def _commit(self) -> None:
        for path in self._temporary.values():
            fsync(path)
        tar = self._temporary[".tar"]
        stats: dict[str, Any] = {
            "count": self.num_rows,
            "successes": self.statuses[SUCCESS],
            "failed_to_download": self.statuses[FAILED_TO_DOWNLOAD],
            "failed_to_resize": self.statuses[FAILED_TO_RESIZE],
            "not_fetched": self.statuses[NOT_FETCHED],
            "status_dict": dict(sorted(self._messages.items())),
            "tar_sha256": sha256_file(tar),
            "tar_bytes": tar.stat().st_size,
            "table_sha256": sha256_file(self._temporary[".parquet"]),
        }
        os.replace(tar, self._directory / f"{self._name}.tar")
        self._keep_tar(self._directory / f"{self._name}.tar", stats["tar_sha256"])
        write_text(self._directory / f"{self._name}_stats.json", json.dumps(stats, indent=4, ensure_ascii=False) + "\n")
        os.replace(self._temporary[".parquet"], self._directory / table_of(self._name))
        fsync(self._directory)


def table_of(name: str) -> str:
    """The file of a shard that gets its name last."""
    return f"{name}.parquet"


def files_beside_table(directory: Path, name: str) -> list[str]:
    """The other files of a complete shard; its tar may be in the object store."""
    tar = f"{name}.tar"
    return [*([tar] if (directory / tar).exists() else []), f"{name}_stats.json"]


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
