"""Tars of pictures with their texts: img2dataset's folders (NNNNN.tar + NNNNN.parquet), and webdataset's tars alone.

The parquet table next to a tar has one row per pair, failed ones included. Of a tar alone all members are read: those
of one name make a sample (`a/0001.jpg`, `a/0001.txt`, `a/0001.json`), whose text is in the first of TEXT_EXTENSIONS or
under one of TEXT_KEYS of the JSON (a list gives one row per text). Pictures are read by their offset in the tar.
A member that is no plain file, or a text above 1 MiB, is skipped, counted and named; the rest of the tar is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.formats.parquet import ForeignTable
from align.formats.tar_members import DamagedTar, Member, member_at, read_members
from align.ingest.limits import too_large
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.reading import Batches, OpenFiles, is_file, parent, skip
from align.pairs.urls import canonical_or_as_is
from align.protocols.store import Files

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "avif", "tif", "tiff")
TEXT_EXTENSIONS = ("txt", "text", "caption", "cap")
TEXT_KEYS = ("caption", "captions", "text", "texts", "TEXT", "alt")
_URL_KEYS = ("url", "URL", "image_url")
_SUCCESS = "success"
_MAX_TEXT_BYTES = 1 << 20


class Shards:
    """A source, see `align.ingest.sources.Source`."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has no tar."""
        self.files = self.inputs = files.list(location, (".tar",), config.paths_root)
        self._allow_damaged = config.allow_damaged
        self._max_bytes = config.max_record_bytes
        self._store = files
        self._open = OpenFiles(files)

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`.

        Raises:
            DataError: the tar or its table is damaged; or the tar is cut off, unless `allow_damaged`.
        """
        table = file.removesuffix(".tar") + ".parquet"
        if is_file(self._store, table):
            yield from self._with_table(file, table, counts)
        else:
            yield from self._alone(file, counts)

    def _with_table(self, file: str, table: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        offsets: dict[str, int] = {}
        for member in self._members(file, counts):
            stem, extension = _split(member.name)
            if extension in IMAGE_EXTENSIONS:
                offsets[stem] = member.start
        batches = Batches()
        for row in self._rows(table):
            counts["rows"] += 1
            key, text = str(row["key"]), str(row.get("caption") or "")
            problem = None
            if row["status"] != _SUCCESS:
                problem = str(row.get("error_message") or row["status"])
            # in our own folders, several pairs of one picture name the row that has its bytes
            offset = None if problem else offsets.get(str(row.get("image_key") or key))
            if problem is None and offset is None:
                counts["rows_unreadable"] += 1
            url = canonical_or_as_is(str(row["url"])) if row["url"] else _name(file, key)
            text_source = _text(row.get("text_source")) or ("caption" if text.strip() else None)
            holder = None if offset is None else file
            batches.add(Candidate(url, text, text_source, _text(row.get("page_url")), problem, holder, offset))
            yield from batches.full()
        yield from batches.rest()

    def _rows(self, table: str) -> Iterator[dict[str, Any]]:
        wanted = ("url", "caption", "key", "status", "error_message", "page_url", "text_source", "image_key")
        try:
            with self._store.open(table) as stream:
                parquet = ForeignTable(stream, table)
                names = parquet.schema.names
                for name in ("url", "key", "status"):
                    if name not in names:
                        raise DataError(
                            f"{table}: no column '{name}'; expected img2dataset's table for the tar of the same name"
                        )
                for batch in parquet.batches([name for name in wanted if name in names]):
                    yield from batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{table}: not a readable parquet file ({reason}); make the folder again") from None

    def _alone(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        batches = Batches()
        sample = _Sample("")
        for member in self._members(file, counts):
            stem, extension = _split(member.name)
            if stem != sample.stem:
                self._add_sample(file, sample, batches, counts)
                yield from batches.full()
                sample = _Sample(stem)
            if extension in IMAGE_EXTENSIONS:
                sample.offset = member.start
            elif extension not in (*TEXT_EXTENSIONS, "json"):
                continue
            elif member.size > _MAX_TEXT_BYTES:
                skip(counts, "records_unreadable", f"{file}: {member.name}", f"a text of {member.size:,} bytes")
            else:
                sample.texts[extension] = self._open.at(file, member.offset).read(member.size)
        self._add_sample(file, sample, batches, counts)
        yield from batches.rest()

    def _add_sample(self, file: str, sample: _Sample, batches: Batches, counts: Counter[str]) -> None:
        if sample.offset is None and not sample.texts:
            return  # a member that is neither picture nor text, such as a list of classes
        written, texts = sample.url_and_texts()
        url = canonical_or_as_is(written) if written else _name(file, sample.stem)
        problem, holder = (None, file) if sample.offset is not None else ("no picture in its sample", None)
        for text, text_source in texts or [("", None)]:
            counts["rows"] += 1
            batches.add(Candidate(url, text, text_source, None, problem, holder, sample.offset))

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
                if not num_members or not self._allow_damaged:
                    raise DataError(
                        f"{file}: not a complete tar ({error}); fetch it again, or set ingest.allow_damaged to take "
                        "the part before"
                    ) from None
                counts["damaged_files"] += 1

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the tar member whose headers begin at the offset."""
        if offset is None:
            return None
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


class _Sample:
    """The members of one name: `texts` by extension, and the `offset` of the picture's header."""

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.offset: int | None = None
        self.texts: dict[str, bytes] = {}

    def url_and_texts(self) -> tuple[str | None, Sequence[tuple[str, str | None]]]:
        """The address, if the JSON has one, and the texts, each with the extension or key it is from."""
        values = _json_object(self.texts.get("json", b"{}"))
        url = next((values[key] for key in _URL_KEYS if isinstance(values.get(key), str) and values[key]), None)
        listed = next((values[key] for key in TEXT_KEYS if isinstance(values.get(key), list) and values[key]), None)
        if listed is not None:  # all texts of a picture; its .txt repeats one of these
            return url, [(str(text), "json") for text in listed if text is not None]
        for extension in TEXT_EXTENSIONS:
            if extension in self.texts:
                text = self.texts[extension].decode("utf-8", "replace")
                return url, [(text, extension if text.strip() else None)]
        return url, next(([(values[key], key)] for key in TEXT_KEYS if isinstance(values.get(key), str)), [])


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _json_object(data: bytes) -> dict[str, Any]:
    """The parsed object; empty where the bytes are not a JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _split(name: str) -> tuple[str, str]:
    """Name and extension as webdataset defines them: the extension begins at the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _name(file: str, key: str) -> str:
    """A name that is unique in the source, unless two tars of one name are in folders of one name."""
    return f"{parent(file).rpartition('/')[2]}/{file.rpartition('/')[2].removesuffix('.tar')}/{key}"
