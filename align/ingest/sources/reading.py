"""Shared by the sources: rows collected into batches, files kept open for random access, paths and their checks."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from align.display.console import say
from align.errors import DataError
from align.ingest.sources.candidates import CANDIDATES, RESPONSES, Candidate, bounded
from align.ingest.sources.pages import PageImage
from align.ingest.sources.rights import Rights
from align.interfaces.store import Files
from align.pairs.text import MAX_CHARACTERS

_ROWS_AT_ONCE = 4096
_IMPOSSIBLE = re.compile("[\0\ud800-\udfff]")
_BATCH_INLINE_BYTES = 16 << 20
_OPEN_FILES = 8
#: So many skipped parts of a file are named; more are only counted.
_NAMED = 10
#: A count of a scan with this beginning says which file is damaged, and how.
_DAMAGE = "damage: "


class Batches:
    """Collects rows into batches of a few thousand.

    Add rows, yield from `full()` regularly, and from `rest()` at the end.
    """

    def __init__(self) -> None:
        self._candidates: list[tuple[Any, ...]] = []
        self._responses: list[tuple[Any, ...]] = []
        self._inline_bytes = 0

    def add(self, candidate: Candidate) -> None:
        """Adds a row of CANDIDATES."""
        self._candidates.append(bounded(candidate))
        if candidate.inline is not None:
            self._inline_bytes += len(candidate.inline)

    def add_page(self, page_url: str, images: Sequence[PageImage], rights: Rights) -> None:
        """Adds the pairs of a page; their pictures are to be fetched by address."""
        self._candidates += [
            bounded(Candidate(url, text, text_source, page_url, problem, inline=inline, **rights._asdict()))
            for url, text, text_source, problem, inline in images
        ]
        self._inline_bytes += sum(len(image.inline) for image in images if image.inline is not None)

    def add_response(
        self, url: str, status: int, location: str | None, file: str, offset: int | None, reservation: str | None
    ) -> None:
        """Adds a row of RESPONSES. An address that is too long for any pair stays too long when it is cut."""
        self._responses.append((url[: MAX_CHARACTERS + 1], status, location, file, offset, reservation))

    def full(self) -> Iterator[pa.RecordBatch]:
        """Yields the batches that are large enough, if any."""
        yield from self._of(_ROWS_AT_ONCE)

    def _of(self, least: int) -> Iterator[pa.RecordBatch]:
        if len(self._candidates) >= least or self._inline_bytes >= _BATCH_INLINE_BYTES:
            yield _batch(self._candidates, CANDIDATES)
            self._candidates, self._inline_bytes = [], 0
        if len(self._responses) >= least:
            yield _batch(self._responses, RESPONSES)
            self._responses = []

    def rest(self) -> Iterator[pa.RecordBatch]:
        """Yields the remaining rows."""
        return self._of(1)


def _batch(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.record_batch([_array(column, field) for column, field in zip(columns, schema, strict=True)], schema)


def _array(values: tuple[Any, ...], field: pa.Field) -> pa.Array:
    try:
        return pa.array(values, field.type)
    except UnicodeEncodeError:  # half a surrogate pair, such as \\ud83d in JSON: no table can store it
        whole = [None if value is None else value.encode("utf-8", "replace").decode() for value in values]
        return pa.array(whole, field.type)


class OpenFiles:
    """Keeps the most recently used files open for random access. A pickled copy has none open."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def at(self, uri: str, offset: int) -> BinaryIO:
        """The file, positioned at this byte. Do not close it. Raises as `Files.open`."""
        stream = self._open.pop(uri, None) or self._files.open(uri)
        self._open[uri] = stream
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        stream.seek(offset)
        return stream

    def __del__(self) -> None:
        for stream in self._open.values():
            stream.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_open": OrderedDict()}


def skip(counts: Counter[str], count: str, name: str, reason: object) -> None:
    """Counts what is not read, and names the first few of a file in the output."""
    counts[count] += 1
    if counts[count] <= _NAMED:
        say(f"ingest: {name}: skipped: {reason}" + (" (more are only counted)" if counts[count] == _NAMED else ""))


def count_damage(counts: Counter[str], file: str, what: str) -> None:
    """Counts a file that is cut off or damaged. All that can be read of it counts as read."""
    counts["damaged_files"] += 1
    counts[f"{_DAMAGE}{file}: {what}"] += 1


def damage_in(counts: Iterable[str]) -> list[str]:
    """The damaged files of a scan, each with what is wrong with it."""
    return [count.removeprefix(_DAMAGE) for count in counts if count.startswith(_DAMAGE)]


def is_file(files: Files, uri: str) -> bool:
    """Whether the file exists; costs one small request where it is on a server."""
    if is_local(uri):
        try:
            return Path(uri).is_file()
        except (OSError, ValueError):  # no name that a file can have
            return False
    try:
        files.stamp(uri)
    except DataError:
        return False
    return True


def is_local(uri: str) -> bool:
    """Whether this is a path, not an s3:// URI."""
    return "://" not in uri


def is_on_web(uri: str) -> bool:
    """Whether this is an address of a web server, which lists no folder."""
    return uri.lower().startswith(("https://", "http://"))


def is_within(folder: str, uri: str) -> bool:
    """Whether a file is in a folder, symbolic links resolved. It keeps the machine's other files out of data sets."""
    if is_local(folder):
        return Path(uri).resolve().is_relative_to(Path(folder).resolve())
    return uri.startswith(folder.rstrip("/") + "/")


class Within:
    """`is_within` for many files of one folder: each of its folders is resolved once."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._known: dict[str, bool] = {}

    def holds(self, uri: str) -> bool:
        """Whether the file is in the folder, symbolic links resolved."""
        if not is_local(uri) or Path(uri).is_symlink():
            return is_within(self._folder, uri)
        folder = parent(uri)
        if folder not in self._known:
            self._known[folder] = is_within(self._folder, folder)
        return self._known[folder]


def joined(folder: str, *parts: str) -> str | None:
    """The path of a file in a folder, `.` and `..` resolved; None if the parts are empty, lead out of it, or no file
    can have such a name (it has a zero byte or half a surrogate pair).
    """
    segments: list[str] = []
    for segment in "/".join(parts).split("/"):
        if segment == "..":
            if not segments:
                return None
            segments.pop()
        elif _IMPOSSIBLE.search(segment):
            return None
        elif segment not in ("", "."):
            segments.append(segment)
    return "/".join([folder.rstrip("/") or folder, *segments]) if segments else None


def parent(uri: str) -> str:
    """The folder that contains a file or folder."""
    head, slash, _ = uri.rstrip("/").rpartition("/")
    return head or (slash if slash else ".")
