"""Pictures with their texts: img2dataset's folders, and webdataset's tars alone.

The table NNNNN.parquet of img2dataset has one row per pair, failed ones included; beside it are the pictures, in
NNNNN.tar or in the folder NNNNN (its output formats webdataset and files; the others are refused by name). The size
before it shrank a picture, and why a picture failed, are taken from the table, as `align filter` takes them when it
reads such a folder itself.

If a tar has no table, all members are read: those of one name make a sample (`a/0001.jpg`, `a/0001.txt`,
`a/0001.json`), whose text is in the first of TEXT_EXTENSIONS or under one of TEXT_KEYS of the JSON (a list gives one
row per text). `ingest.columns.text` names other columns, or keys and extensions. Pictures are read by their offset in
the tar. A member that is not a plain file, or a text above 1 MiB, is skipped, counted and named; the rest of the tar is
read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.display.console import say
from align.errors import DataError
from align.formats.img2dataset import IMAGE_EXTENSIONS, image_key, refused, stated_size, without_tar
from align.formats.parquet import ForeignTable
from align.formats.sample_texts import MAX_TEXT_BYTES, TEXT_EXTENSIONS, TEXT_KEYS, sample_name
from align.formats.statuses import FAILED_TO_RESIZE, NOT_FETCHED, SUCCESS
from align.formats.table import PICTURE_SUFFIXES
from align.formats.table_rows import object_of
from align.formats.tar_members import DamagedTar, Member, member_at, read_members
from align.ingest.limits import read_at_most, too_large
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.reading import Batches, OpenFiles, count_damage, is_file, is_on_web, is_within, parent, skip
from align.ingest.sources.rights import MAX_CHARACTERS
from align.ingest.sources.texts import texts_of, texts_of_each
from align.interfaces.store import Files
from align.pairs.urls import canonical_or_as_is

_URL_KEYS = ("url", "URL", "image_url")
_TAR, _TABLE, _STATISTICS = ".tar", ".parquet", "_stats.json"
#: Optional columns of the table.
_COLUMNS = (
    "url", "caption", "key", "status", "error_message", "page_url", "text_source", "image_key", "original_width",
    "original_height", "sha256", "licence", "reservation",
)  # fmt: skip
_SHA256_CHARACTERS = 64
#: The name of a shard of img2dataset ends in its number.
_NUMBERED = re.compile(r"\d{5}$")
#: So many tables that are left out are named; more are only counted.
_NAMED = 10


class Shards:
    """A source, see `align.ingest.sources.Source`."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has neither tars nor img2dataset's tables."""
        listed = _list(location, config.paths_root, files)
        tars = [file for file in listed if not file.endswith(_TABLE)]
        tables = {file for file in listed if file.endswith(_TABLE)}
        tables |= {table for tar in tars if (table := _table_of(tar)) not in tables and is_file(files, table)}
        beside = {_table_of(tar) for tar in tars} & tables
        folders = {parent(table) for table in beside}
        self._store = files
        # A table given alone belongs to a folder of pictures, or its tar is missing. Elsewhere it may be anything.
        alone = {
            table for table in tables - beside if not tars or parent(table) in folders or self._is_of_img2dataset(table)
        }
        if left_out := sorted(tables - beside - alone):
            more = f" and {len(left_out) - _NAMED:,} more" if len(left_out) > _NAMED else ""
            say(
                f"ingest: {location}: {len(left_out):,} tables left out: they have no tar, nor are they img2dataset's: "
                f"{', '.join(left_out[:_NAMED])}{more}"
            )
        self.files = sorted([*tars, *alone])
        # for a table given alone, the folder of its pictures; web servers list no folder
        pictures = [_folder_of(table) for table in alone if not is_on_web(table)]
        self.inputs = sorted([*self.files, *beside, *pictures])
        self._tables, self._columns = beside, config.columns.texts
        self._max_bytes = config.max_record_bytes
        self._open = OpenFiles(files)

    def _is_of_img2dataset(self, table: str) -> bool:
        """Whether a table without a tar beside it is img2dataset's anyway, as its files or its columns tell."""
        stem = table.removesuffix(_TABLE)
        if is_file(self._store, stem + _STATISTICS) or self._in_folder(table):
            return True
        if _NUMBERED.search(stem) is None:
            return False
        try:
            with self._store.open(table) as stream:
                return {"url", "key", "status"} <= set(ForeignTable(stream, table).schema.names)
        except (pa.ArrowException, OSError):
            return True  # damaged: `scan` says so

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`."""
        if file.endswith(_TABLE):
            yield from self._with_table(file, self._in_folder(file), counts)
        elif _table_of(file) in self._tables:
            pictures = {
                key: (file, member.start)
                for member in self._members(file, counts)
                if (key := image_key(member.name)) is not None
            }
            yield from self._with_table(_table_of(file), pictures, counts)
        else:
            yield from self._alone(file, counts)

    def _in_folder(self, table: str) -> dict[str, tuple[str, None]]:
        """The pictures of the folder NNNNN beside NNNNN.parquet, by key."""
        try:
            files = self._store.list(_folder_of(table), PICTURE_SUFFIXES)
        except DataError:
            return {}
        return {key: (file, None) for file in files if (key := image_key(file)) and is_within(parent(table), file)}

    def _with_table(
        self, table: str, pictures: Mapping[str, tuple[str, int | None]], counts: Counter[str]
    ) -> Iterator[pa.RecordBatch]:
        batches = Batches()
        for row in self._rows(table):
            columns = self._columns or ("caption",)
            texts, unreadable = texts_of_each(map(row.get, columns), columns)
            pair = _candidate(row, table, pictures)
            if pair.file is None and pair.problem is None and not pictures and table in self.files:
                raise self._without_pictures(table)
            if unreadable:
                pair = pair._replace(problem=unreadable, file=None, offset=None, status=None)
            counts["rows"] += len(texts)
            if unreadable or (pair.file is None and pair.problem is None):
                counts["rows_unreadable"] += len(texts)
            for text, column in texts:
                stated = pair.text_source if column in (None, "caption") else None  # of a folder of ours
                batches.add(pair._replace(text=text, text_source=stated or column))
            yield from batches.full()
        yield from batches.rest()

    def _without_pictures(self, table: str) -> DataError:
        with self._store.open(table) as stream:
            has_records = is_file(self._store, table.removesuffix(_TABLE) + ".tfrecord")
            return without_tar(table, stream, has_records=has_records)

    def _rows(self, table: str) -> Iterator[dict[str, Any]]:
        try:
            with self._store.open(table) as stream:
                parquet = ForeignTable(stream, table)
                names = parquet.schema.names
                for name in ("url", "key", "status", *(self._columns or ("caption",))):
                    if name not in names:
                        raise DataError(
                            f"{table}: no column '{name}'; expected img2dataset's columns (was it run with a caption "
                            f"column?), and those of ingest.columns.text; it has {', '.join(names)[:500]}"
                        )
                for batch in parquet.batches([name for name in names if name in (*_COLUMNS, *self._columns)]):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{table}: not a readable parquet file ({reason}); make the folder again") from None

    def _alone(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        batches = Batches()
        for stem, members in groupby(self._members(file, counts), lambda member: sample_name(member.name)[0]):
            offset: int | None = None
            found: dict[str, bytes] = {}
            for member in members:
                extension = sample_name(member.name)[1]
                if extension in IMAGE_EXTENSIONS:
                    offset = member.start
                elif extension in (*TEXT_EXTENSIONS, "json") and member.size > MAX_TEXT_BYTES:
                    skip(counts, "records_unreadable", f"{file}: {member.name}", f"a text of {member.size:,} bytes")
                elif extension in (*TEXT_EXTENSIONS, "json"):
                    found[extension] = self._open.at(file, member.offset).read(member.size)
            if offset is None and not found:
                continue  # a member that is neither picture nor text, such as a list of classes
            written, texts, unreadable = _url_and_texts(found, self._columns)
            url = canonical_or_as_is(written) if written else _name(file.removesuffix(_TAR), stem)
            problem = "no picture in its sample" if offset is None else unreadable
            pair = Candidate(url, "", None, None, problem, *((None, None) if problem else (file, offset)))
            if unreadable:
                counts["rows_unreadable"] += 1
            for text, text_source in texts or [("", None)]:
                counts["rows"] += 1
                batches.add(pair._replace(text=text, text_source=text_source))
            yield from batches.full()
        yield from batches.rest()

    def _members(self, file: str, counts: Counter[str]) -> Iterator[Member]:
        """The plain files of a tar, in order; their bytes are skipped."""
        num_members = 0
        with self._store.open(file) as stream:
            try:
                for member in read_members(stream):
                    num_members += 1
                    if member.problem is None:
                        yield member
                    else:
                        skip(counts, "records_unreadable", f"{file}: {member.name}", member.problem)
            except DamagedTar as error:
                if not num_members:
                    raise DataError(f"{file}: not a complete tar ({error}); fetch it again") from None
                count_damage(counts, file, f"not a complete tar ({error})")

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the tar member whose headers begin at the offset; without one, the whole file."""
        if offset is None:
            with self._store.open(file) as stream:
                return read_at_most(stream, self._max_bytes)
        stream = self._open.at(file, offset)
        try:
            member = member_at(stream, offset)
        except DamagedTar:
            raise DataError(
                f"{file}: no tar member at byte {offset:,}; did the file change? Run `align ingest` again"
            ) from None
        if member.size > self._max_bytes:
            raise too_large(self._max_bytes)
        stream.seek(member.offset)
        data = stream.read(member.size)
        return data if member.problem is None and len(data) == member.size else None


def _url_and_texts(
    found: Mapping[str, bytes], columns: Sequence[str]
) -> tuple[str | None, Sequence[tuple[str, str | None]], str | None]:
    """Of a sample's texts, by extension: the address, if the JSON has one; the texts, each with the extension or key it
    is from; and why the texts cannot be read, or None. `columns` are the keys and extensions that have texts; empty:
    the usual ones.
    """
    values = object_of(found.get("json", b"")) or {}
    url = next((values[key] for key in _URL_KEYS if isinstance(values.get(key), str) and values[key]), None)
    if columns:
        members = {name: data.decode("utf-8", "replace") for name, data in found.items()}
        return url, *texts_of_each((values.get(name, members.get(name)) for name in columns), columns)
    listed = next((values[key] for key in TEXT_KEYS if isinstance(values.get(key), list) and values[key]), None)
    if listed is not None:  # all texts of a picture; its .txt repeats one of them
        texts, unreadable = texts_of(listed)
        return url, [(text, "json" if text.strip() else None) for text in texts], unreadable
    for extension in TEXT_EXTENSIONS:
        if extension in found:
            text = found[extension].decode("utf-8", "replace")
            return url, [(text, extension if text.strip() else None)], None
    return url, next(([(values[key], key)] for key in TEXT_KEYS if isinstance(values.get(key), str)), []), None


def _candidate(row: dict[str, Any], table: str, pictures: Mapping[str, tuple[str, int | None]]) -> Candidate:
    """A row of img2dataset's table, or of ours, without its text; `pictures` are the files and offsets of its keys."""
    key = str(row["key"])
    problem = status = None
    if row["status"] != SUCCESS:
        problem = str(row.get("error_message") or row["status"])
        status = row["status"] if row["status"] in (FAILED_TO_RESIZE, NOT_FETCHED) else None
    # in our own folders, several pairs of one picture name the row that has its bytes
    file, offset = (None, None) if problem else pictures.get(str(row.get("image_key") or key), (None, None))
    width, height = stated_size(row.get("original_width"), row.get("original_height")) or (None, None)
    stated_sha256 = row.get("sha256")
    return Candidate(
        canonical_or_as_is(str(row["url"])) if row["url"] else _name(table.removesuffix(_TABLE), key),
        "",
        _text(row.get("text_source")),
        _text(row.get("page_url")),
        problem,
        file,
        offset,
        status=status,
        original_width=width,
        original_height=height,
        stated_sha256=stated_sha256[:_SHA256_CHARACTERS] if isinstance(stated_sha256, str) else None,
        licence=(_text(row.get("licence")) or "")[:MAX_CHARACTERS] or None,
        reservation=(_text(row.get("reservation")) or "")[:MAX_CHARACTERS] or None,
    )


def _list(location: str, root: str | None, files: Files) -> list[str]:
    """The tars and tables of a location."""
    try:
        return files.list(location, (_TAR, _TABLE), root)
    except DataError:
        try:
            statistics = files.list(location, (_STATISTICS,), root)
        except DataError:
            statistics = []
        if any(file.endswith(_STATISTICS) for file in statistics):
            raise refused(location, "dummy") from None
        raise


def _table_of(tar: str) -> str:
    return tar.removesuffix(_TAR) + _TABLE


def _folder_of(table: str) -> str:
    return table.removesuffix(_TABLE) + "/"


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _name(shard: str, key: str) -> str:
    """A name that is unique in the source, unless two shards of one name are in folders of one name."""
    return f"{parent(shard).rpartition('/')[2]}/{shard.rpartition('/')[2]}/{key}"
