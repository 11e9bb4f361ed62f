"""data/raw: the layout that img2dataset writes, so that a folder it made can take the place of our ingest.

    NNNNN.tar         <key>.jpg (bytes as they came, whatever the format), <key>.txt (caption), <key>.json (the row)
    NNNNN.parquet     one row per pair, failed ones included
    NNNNN_stats.json  counts per status

A row is a pair. Beyond img2dataset's columns ours have `page_url` and `image_key`, the key of the tar sample that holds
the bytes (an image that many pairs show is stored once). `read_table` fills in what a stock folder lacks.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.errors import DataError, FormatError

#: Most pairs in a shard: a key is five digits of its shard and four of its place in it.
MAX_SHARD_SIZE = 10_000

#: The columns that `read_table` returns. sha256 is the image_id; null where there are no bytes.
SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("caption", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
        ("page_url", pa.string()),
        ("image_key", pa.string()),
    ]
)

SUCCESS = "success"
#: The bytes are not there: no response, or one that is no 200.
FAILED_TO_DOWNLOAD = "failed_to_download"
#: The bytes are there and no picture can be made of them (img2dataset decodes in order to resize; hence the name).
FAILED_TO_RESIZE = "failed_to_resize"

_REQUIRED = ("url", "caption", "key", "status")
_NO_IMAGE = {"txt", "json"}


@dataclass(frozen=True)
class RawShard:
    """One shard of data/raw.

    Attributes:
        name: the file stem, such as `00000`.
        table: NNNNN.parquet.
        tar: NNNNN.tar.
    """

    name: str
    table: Path
    tar: Path


def raw_shards(raw: Path) -> list[RawShard]:
    """All shards of a folder in order of their names.

    Raises:
        DataError: no shard is there, or one has only half of its files.
    """
    tars = {path.stem: path for path in raw.glob("*.tar")}
    tables = {path.stem: path for path in raw.glob("*.parquet")}
    if not tars and not tables:
        raise DataError(
            f"{raw}: no NNNNN.tar + NNNNN.parquet here; run `align ingest`, or set paths.raw to a folder of img2dataset"
        )
    for name in sorted(tars.keys() ^ tables.keys()):
        there, missing = (".tar", ".parquet") if name in tars else (".parquet", ".tar")
        raise DataError(
            f"{raw / name}{missing}: missing, while {name}{there} exists; the folder is incomplete, make it again"
        )
    return [RawShard(name, tables[name], tars[name]) for name in sorted(tars)]


def read_table(shard: RawShard) -> pa.Table:
    """The rows of one shard with the columns of SCHEMA, in the order they were written.

    Absent optional columns become null; then image_key is the row's own key and sha256 is computed from the tar, for
    rows with status "success".

    Raises:
        DataError: the table is unreadable.
        FormatError: a column that img2dataset always writes is missing, or has another type.
    """
    try:
        table = pq.ParquetFile(shard.table).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{shard.table}: not a readable parquet file ({error}); make the folder again") from None
    for name in _REQUIRED:
        if name not in table.column_names:
            raise FormatError(
                f"{shard.table}: no column '{name}'; expected img2dataset's columns (was it run with a caption column?)"
            )
    columns = {
        field.name: _cast(table[field.name], field, shard)
        if field.name in table.column_names
        else pa.chunked_array([pa.nulls(len(table), field.type)])
        for field in SCHEMA
    }
    with_bytes = [status == SUCCESS for status in columns["status"].to_pylist()]
    if "image_key" not in table.column_names:
        keys = columns["key"].to_pylist()
        columns["image_key"] = pa.chunked_array(
            [pa.array([key if has else None for key, has in zip(keys, with_bytes, strict=True)], pa.string())]
        )
    hashes = columns["sha256"].to_pylist()
    if any(has and value is None for has, value in zip(with_bytes, hashes, strict=True)):
        computed = {key: hashlib.sha256(data).hexdigest() for key, data in iter_images(shard)}
        image_keys = columns["image_key"].to_pylist()
        hashes = [value or computed.get(key) for value, key in zip(hashes, image_keys, strict=True)]
        columns["sha256"] = pa.chunked_array([pa.array(hashes, pa.string())])
    return pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def _cast(column: pa.ChunkedArray, field: pa.Field, shard: RawShard) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        message = f"{shard.table}: column '{field.name}' is {column.type}, expected {field.type}"
        raise FormatError(message) from None


def iter_images(shard: RawShard) -> Iterator[tuple[str, bytes]]:
    """Yields (tar sample key, image bytes) in the order of the tar; one image in memory at a time.

    Raises:
        DataError: the tar is cut off or no tar.
    """
    try:
        with tarfile.open(shard.tar, "r|") as tar:
            for member in tar:
                key, _, extension = member.name.rpartition("/")[2].partition(".")
                if not member.isfile() or extension.lower() in _NO_IMAGE:
                    continue
                file = tar.extractfile(member)
                if file is not None:
                    yield key, file.read()
    except tarfile.TarError as error:
        raise DataError(f"{shard.tar}: not a readable tar ({error}); make the folder again") from None


class RawWriter:
    """Writes a folder of shards, the same bytes for the same pairs. A context manager; holds the rows of one shard.

    Args:
        directory: an existing, empty folder.
        shard_size: pairs per shard, at most MAX_SHARD_SIZE.
    """

    def __init__(self, directory: Path, shard_size: int) -> None:
        self._directory = directory
        self._shard_size = min(shard_size, MAX_SHARD_SIZE)
        self._shard = -1
        self._rows: list[dict[str, Any]] = []
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> RawWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_shard()

    def next_key(self) -> str:
        """The key of the pair that is added next."""
        if self._tar is None or len(self._rows) == self._shard_size:
            self._close_shard()
            self._shard += 1
            # img2dataset's names; USTAR headers hold no time, user or path of this machine
            path = self._directory / f"{self._shard:05d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed with the shard)
        return f"{self._shard:05d}{len(self._rows):04d}"

    def add(self, row: dict[str, Any], image: bytes | None) -> None:
        """Adds one pair.

        Args:
            row: a value for every column of SCHEMA; its key is that of `next_key`.
            image: the bytes to store, or None for a row without bytes or one whose bytes are stored already.
        """
        key = self.next_key()
        self._rows.append(row)
        if image is not None:
            self._add_member(f"{key}.jpg", image)
            self._add_member(f"{key}.txt", row["caption"].encode("utf-8"))
            self._add_member(f"{key}.json", json.dumps(row, ensure_ascii=False).encode("utf-8"))

    def _add_member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o644
        if self._tar is not None:
            self._tar.addfile(member, io.BytesIO(data))

    def _close_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        stem = self._directory / f"{self._shard:05d}"
        pq.write_table(pa.Table.from_pylist(self._rows, SCHEMA), stem.with_suffix(".parquet"), compression="zstd")
        statuses = Counter(row["status"] for row in self._rows)
        stats = {
            "count": len(self._rows),
            "successes": statuses[SUCCESS],
            "failed_to_download": statuses[FAILED_TO_DOWNLOAD],
            "failed_to_resize": statuses[FAILED_TO_RESIZE],
            "status_dict": dict(sorted(Counter(row["error_message"] or SUCCESS for row in self._rows).items())),
        }
        Path(f"{stem}_stats.json").write_text(json.dumps(stats, indent=4) + "\n", encoding="utf-8")
        self._rows = []
