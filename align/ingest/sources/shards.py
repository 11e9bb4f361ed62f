"""Tars of pictures with their texts: img2dataset's folders (NNNNN.tar + NNNNN.parquet), and webdataset's tars alone.

The parquet table next to a tar has one row per pair, failed ones included. Of a tar alone all members are read: those
of one name make a sample (`a/0001.jpg`, `a/0001.txt`, `a/0001.json`), whose text is in the first of TEXT_EXTENSIONS or
under one of TEXT_KEYS of the JSON (a list gives one row per text). Pictures are read by their offset in the tar.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.reading import Batches, OpenFiles, is_file, parent
from align.pairs.urls import canonical_or_as_is
from align.protocols.store import Files

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "avif", "tif", "tiff")
TEXT_EXTENSIONS = ("txt", "text", "caption", "cap")
TEXT_KEYS = ("caption", "captions", "text", "texts", "TEXT", "alt")
_URL_KEYS = ("url", "URL", "image_url")
_SUCCESS = "success"
_BATCH_ROWS = 4096
_MAX_TEXT_BYTES = 1 << 20


class Shards:
    """A source, see `align.ingest.sources.Source`."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has no tar."""
        self.files = self.inputs = files.list(location, (".tar",))
        self._allow_truncated = config.allow_truncated
        self._store = files
        self._open = OpenFiles(files)

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`.

        Raises:
            DataError: the tar or its table is damaged; or the tar is cut off, unless `allow_truncated`.
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
                offsets[stem] = _header_offset(member)
        batches = Batches()
        for row in self._rows(table):
            counts["rows"] += 1
            key, text = str(row["key"]), row.get("caption") or ""
            problem = None
            if row["status"] != _SUCCESS:
                problem = str(row.get("error_message") or row["status"])
            # in our own folders, several pairs of one picture name the row that has its bytes
            offset = None if problem else offsets.get(str(row.get("image_key") or key))
            if problem is None and offset is None:
                counts["rows_unreadable"] += 1
            url = canonical_or_as_is(row["url"]) if row["url"] else _name(file, key)
            text_source = row.get("text_source") or ("caption" if text.strip() else None)
            holder = None if offset is None else file
            batches.add(Candidate(url, text, text_source, row.get("page_url"), problem, holder, offset))
            yield from batches.full()
        yield from batches.rest()

    def _rows(self, table: str) -> Iterator[dict[str, Any]]:
        wanted = ("url", "caption", "key", "status", "error_message", "page_url", "text_source", "image_key")
        try:
            with self._store.open(table) as stream:
                parquet = pq.ParquetFile(stream)
                names = parquet.schema_arrow.names
                for name in ("url", "key", "status"):
                    if name not in names:
                        raise DataError(
                            f"{table}: no column '{name}'; expected img2dataset's table for the tar of the same name"
                        )
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=[name for name in wanted if name in names]):
                    yield from batch.to_pylist()
        except pa.ArrowInvalid as error:
            raise DataError(f"{table}: not a readable parquet file ({error}); make the folder again") from None

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
                sample.offset = _header_offset(member)
            elif extension in (*TEXT_EXTENSIONS, "json") and member.size <= _MAX_TEXT_BYTES:
                sample.texts[extension] = self._open.at(file, member.offset_data).read(member.size)
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

    def _members(self, file: str, counts: Counter[str]) -> Iterator[tarfile.TarInfo]:
        """The regular files of a tar, in order; their bytes are skipped."""
        num_members, problem = 0, None
        try:
            with self._store.open(file) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    num_members += 1
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them; not in typeshed
                    if member.isreg():
                        yield member
                stream.seek(tar.offset)  # tarfile treats a damaged header as the end
                if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    problem = f"damaged header at byte {tar.offset:,}"
        except tarfile.ReadError as error:
            problem = str(error)
        if problem is None:
            return
        if not num_members or not self._allow_truncated:
            raise DataError(
                f"{file}: not a complete tar ({problem}); fetch it again, or set ingest.allow_truncated to take the "
                "part before"
            )
        counts["truncated_files"] += 1

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the tar member whose header is at the offset."""
        if offset is None:
            return None
        stream = self._open.at(file, offset)
        try:
            member = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise DataError(
                f"{file}: no tar member at byte {offset:,}; did the file change? Run `align ingest` again"
            ) from None
        data = stream.read(member.size)
        return data if len(data) == member.size else None


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


def _json_object(data: bytes) -> dict[str, Any]:
    """The parsed object; empty where the bytes are not a JSON object."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _split(name: str) -> tuple[str, str]:
    """Name and extension as webdataset defines them: the extension begins at the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _header_offset(member: tarfile.TarInfo) -> int:
    """The offset of the header that states the size; headers of long names precede it."""
    return int(member.offset_data) - tarfile.BLOCKSIZE


def _name(file: str, key: str) -> str:
    """A name that is unique in the source, unless two tars of one name are in folders of one name."""
    return f"{parent(file).rpartition('/')[2]}/{file.rpartition('/')[2].removesuffix('.tar')}/{key}"
