"""data/raw: the layout that img2dataset writes, so that a folder made by img2dataset can replace our ingest.

    NNNNN.tar         <key>.jpg (bytes as they came, in any format), <key>.txt (the text), <key>.json (the row)
    NNNNN.parquet     one row per pair, failed ones included
    NNNNN_stats.json  counts per status, checksums
    manifest.json     ours: the shards and their checksums, with which values they were made; written last

A row is a pair; its text is in img2dataset's column `caption`. Our tables also have `page_url`, `text_source` (alt,
figcaption, ...), `retryable` (the failure may be temporary) and `image_key`, the key of the tar sample that holds the
bytes. Where a page says so, they have `licence` (the address that it links to, a claim that nobody has checked) and
`reservation` (a mark such as noai), see `align.ingest.sources.rights`. A tar has a sample per image, with the text of
the first pair that shows it; the texts of its other pairs are in the table only. (img2dataset's own tars have a sample
per pair.) `read_table` adds what a stock folder lacks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc

from align.durable.files import require_utf8, sha256_file
from align.errors import CorruptError, DataError, FormatError
from align.formats.img2dataset import image_key, refused, stated_sizes, without_tar
from align.formats.json_file import StoredModel, read_if_exists
from align.formats.parquet import ForeignTable, readable
from align.formats.statuses import SUCCESS
from align.formats.tar_members import DamagedTar, read_members
from align.interfaces.store import FetchTar

#: The columns that `read_table` returns. sha256 is the image_id, null if there are no bytes.
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
        ("text_source", pa.string()),
        ("retryable", pa.bool_()),
        ("licence", pa.string()),
        ("reservation", pa.string()),
    ]
)
#: What pages say of rights; all tables of a folder have these columns if a page says anything, else none has them.
RIGHTS = ("licence", "reservation")
WITHOUT_RIGHTS = pa.schema([field for field in SCHEMA if field.name not in RIGHTS])

#: The error_message of a row whose status is `not_fetched`.
HOPELESS = "no text of it can pass the filter"
#: The code of an error_message: its page reserves the picture, and download.obey_robots is on.
RESERVED = "reserved"

#: Written last by ingest; a folder made by img2dataset has none.
MANIFEST = "manifest.json"

_REQUIRED = ("url", "caption", "key", "status")
#: Not in SCHEMA: the sha256 that a foreign table states. It is of other bytes, see `align.formats.img2dataset`.
STATED_SHA256 = "stated_sha256"
#: Columns that a stock folder lacks, and those of the size that it states.
_COMPUTED = {"sha256", "image_key", STATED_SHA256}
_SIZE = ("original_width", "original_height")
#: Columns that are computed from others, which must be read for them.
_TOGETHER = ((_COMPUTED, {"key", "status", "sha256", "image_key"}), (_SIZE, {*_SIZE}))


class ListedShard(StoredModel):
    """A shard in manifest.json: its file stem, and what its files must be."""

    name: str
    num_pairs: int
    tar_sha256: str
    tar_bytes: int
    table_sha256: str


class MadeWith(StoredModel):
    """The values that decided what is in data/raw.

    They are plain values, not the sections' own classes: a reader of data/raw needs none of them, and a key that these
    classes no longer have, or have gained since, makes no folder unreadable.

    Attributes:
        archive: `paths.archive`, as it was given.
        ingest: that section.
        download: that section; values that say how patiently to ask are those of the last run.
        code: names what examined the pictures (`align.project.provenance`); None: it is not known, or not the same for
            all.
    """

    archive: str
    ingest: dict[str, Any]
    download: dict[str, Any]
    code: str | None = None


class RawManifest(StoredModel):
    """manifest.json.

    Attributes:
        schema_version: of this layout.
        digest: names the data: a sha256 over those of all tars and tables.
        made_with: None: nobody knows.
        shards: in order of their names.
    """

    schema_version: Literal[1]
    digest: str
    made_with: MadeWith | None = None
    shards: tuple[ListedShard, ...]


def kept_scan(raw: Path) -> Path:
    """The folder beside a data/raw for the scan of its ingest, which has the addresses and texts of all pairs."""
    return raw.with_name(f".{raw.name}.scan")


@dataclass(frozen=True)
class RawShard:
    """One shard of data/raw. Can be pickled.

    Attributes:
        name: the file stem, such as `00000`.
        table: NNNNN.parquet.
        tar: NNNNN.tar; it may be in the object store instead, under `sha256`.
        sha256: of the tar, from manifest.json; None in a folder without a manifest.
        num_bytes: of the tar; None in a folder without a manifest.
        table_sha256: of the table; None in a folder without a manifest.
        table_bytes: of the table, if it is in the object store, too; else None.
        fetch: gets a tar or a table from the object store.
    """

    name: str
    table: Path
    tar: Path
    sha256: str | None = None
    num_bytes: int | None = None
    table_sha256: str | None = None
    table_bytes: int | None = None
    fetch: FetchTar | None = None

    def local_table(self) -> Path:
        """The table on this machine, fetched if necessary. Raises as `local_tar`."""
        if self.fetch is None or self.table_sha256 is None or self.table_bytes is None or self.table.is_file():
            return self.table
        return self.fetch(self.table_sha256, self.table_bytes)

    def local_tar(self) -> Path:
        """The tar on this machine, fetched if necessary. Raises DataError if it is not here and cannot be fetched."""
        if self.sha256 is None or self.num_bytes is None or self.tar.is_file():
            return self.tar
        if self.fetch is None:
            raise DataError(f"{self.tar}: missing; run `dvc pull`, or set store.objects to where it was put")
        return self.fetch(self.sha256, self.num_bytes)

    def require_whole(self) -> None:
        """Compares the files with manifest.json, if there is one; a tar of the object store is checked on its way here.
        Raises CorruptError if a byte of one of them has changed.
        """
        for path, sha256 in ((self.table, self.table_sha256), (self.tar, self.sha256)):
            if sha256 is not None and path.is_file() and sha256_file(path) != sha256:
                raise CorruptError(
                    f"{path}: damaged: its sha256 is not the one in {MANIFEST}; get it back with `dvc checkout`, or "
                    "run `align ingest` again"
                )


def raw_shards(raw: Path, fetch: FetchTar | None = None) -> list[RawShard]:
    """All shards of a folder in order of their names. A tar that manifest.json names need not be in the folder.

    Args:
        raw: the folder.
        fetch: gets tars from the object store (`align.services.s3.store.fetcher`).

    Raises:
        DataError: there is no shard, or one lacks its tar or its table, or its name is not UTF-8.
        FormatError: manifest.json cannot be read.
    """
    tars = {path.stem: path for path in raw.glob("*.tar")}
    tables = {path.stem: path for path in raw.glob("*.parquet")}
    manifest = read_raw_manifest(raw)
    listed = {shard.name: shard for shard in manifest.shards} if manifest else {}
    if not tars and not tables:
        if any(raw.glob("*_stats.json")):
            raise refused(str(raw), "dummy")
        raise DataError(
            f"{raw}: no NNNNN.tar + NNNNN.parquet here; run `align ingest`, or set paths.raw to a folder of img2dataset"
        )
    for name in sorted((tars.keys() | listed.keys()) ^ tables.keys()):
        if name not in tables:
            raise DataError(
                f"{raw / name}.parquet: missing, while {name}.tar exists; the folder is incomplete, make it again"
            )
        if (raw / name).is_dir():
            raise refused(str(raw / name), "files")
        raise without_tar(str(tables[name]), tables[name], has_records=(raw / f"{name}.tfrecord").is_file())
    shards = []
    for name in sorted(tables):
        require_utf8(str(tables[name]))
        row = listed.get(name)
        tar, num_bytes, table = (row.tar_sha256, row.tar_bytes, row.table_sha256) if row else (None, None, None)
        shards.append(RawShard(name, tables[name], raw / f"{name}.tar", tar, num_bytes, table, fetch=fetch))
    return shards


def state_of(raw: Path) -> str | list[tuple[str, int, int]]:
    """A value that changes when data/raw does: the sha256 of its manifest, else the sizes and times of its files."""
    manifest = raw / MANIFEST
    if manifest.is_file():
        return sha256_file(manifest)
    files = sorted(path for path in raw.iterdir() if path.suffix in (".tar", ".parquet"))
    return [(path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in files]


def read_raw_manifest(raw: Path) -> RawManifest | None:
    """Reads manifest.json; None if the folder has none, as one made by img2dataset. Raises FormatError if it has
    another schema_version or layout.
    """
    return read_if_exists(RawManifest, raw / MANIFEST, "run `align ingest` again")


def read_table(shard: RawShard, wanted: Collection[str] = SCHEMA.names) -> pa.Table:
    """The rows of one shard with some columns of SCHEMA, in the order of the file; perhaps also STATED_SHA256.

    Strings have at most `align.pairs.text.MAX_CHARACTERS`; the rest is cut off. Missing optional columns become null,
    as does an original size with a side that is not above 0. For rows with status "success" of a table that is not
    ours, image_key becomes the row's own key, and sha256 is computed from the tar. Raises DataError if the table is
    unreadable, or takes too much memory; FormatError if a column that img2dataset always writes is missing or has
    another type.
    """
    needed = set(wanted)
    for group, sources in _TOGETHER:
        if not needed.isdisjoint(group):
            needed |= sources
    fields = [field for field in SCHEMA if field.name in needed]
    with readable(shard.table, "not a readable parquet file", "make the folder again"):
        file = ForeignTable(shard.local_table(), str(shard.table))
        names = file.schema.names
        present = [field.name for field in fields if field.name in names]
        batches = list(file.batches(present))
        schema = batches[0].schema if batches else pa.schema([file.schema.field(name) for name in present])
        table = pa.Table.from_batches(batches, schema)
    for name in _REQUIRED:
        if name not in names:
            raise FormatError(
                f"{shard.table}: no column '{name}'; expected img2dataset's columns (was it run with a caption column?)"
            )
    if needed.issuperset(_SIZE):
        for name, sizes in zip(_SIZE, stated_sizes(*(_column(table, name) for name in _SIZE)), strict=True):
            table = table.set_column(table.column_names.index(name), name, sizes) if name in present else table
    columns = {field.name: _cast(_column(table, field.name), field, shard) for field in fields}
    if not needed.isdisjoint(_COMPUTED):
        _compute(columns, shard, is_ours="image_key" in names)
    return pa.table({name: columns[name] for name in (*SCHEMA.names, STATED_SHA256) if name in wanted})


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table[name] if name in table.column_names else pa.chunked_array([pa.nulls(len(table))])


def _compute(columns: dict[str, pa.ChunkedArray], shard: RawShard, *, is_ours: bool) -> None:
    """Adds `image_key`, `sha256` and STATED_SHA256."""
    with_bytes = pc.equal(columns["status"], SUCCESS)
    nothing = pa.chunked_array([pa.nulls(len(with_bytes), pa.string())])
    columns[STATED_SHA256] = nothing
    if not is_ours:
        columns["image_key"] = pc.if_else(with_bytes, columns["key"], None)
        columns[STATED_SHA256], columns["sha256"] = columns["sha256"], nothing
    if pc.any(pc.and_(with_bytes, pc.is_null(columns["sha256"]))).as_py():
        computed = {key: hashlib.sha256(data).hexdigest() for key, data in iter_images(shard)}
        hashes, image_keys = columns["sha256"].to_pylist(), columns["image_key"].to_pylist()
        hashes = [value or computed.get(key) for value, key in zip(hashes, image_keys, strict=True)]
        columns["sha256"] = pa.chunked_array([pa.array(hashes, pa.string())])


def _cast(column: pa.ChunkedArray, field: pa.Field, shard: RawShard) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        message = f"{shard.table}: column '{field.name}' is {column.type}, expected {field.type}"
        raise FormatError(message) from None


def iter_images(shard: RawShard) -> Iterator[tuple[str, bytes]]:
    """Yields (tar sample key, image bytes) in the order of the tar; one image in memory at a time. Raises DataError if
    the tar is cut off, or not a tar.
    """
    with shard.local_tar().open("rb") as file:
        for key, offset, size in image_spans(file, str(shard.tar)):
            file.seek(offset)
            yield key, file.read(size)


def image_spans(file: BinaryIO, name: str) -> Iterator[tuple[str, int, int]]:
    """Yields (tar sample key, offset, bytes) of the images in a tar, without empty files.

    Only headers are read; `file` must be seekable. Raises DataError if the tar, called `name`, is cut off, or not a
    tar.
    """
    try:
        for member in read_members(file):
            key = image_key(member.name)
            if member.problem is None and key is not None and member.size:
                yield key, member.offset, member.size
    except DamagedTar as error:
        raise DataError(f"{name}: not a readable tar ({error}); make the folder again") from None
