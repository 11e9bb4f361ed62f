"""Files on this machine and objects in S3, read in the same way: the `Files` that the sources of ingest need."""

from __future__ import annotations

import gzip
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from align.config.store import StoreConfig
from align.errors import DataError
from align.services.store_client import is_s3, list_objects, read_range, split_uri, stat

#: A stream's first request has this many bytes, and each further one twice as many, up to the second number: a jump to
#: one picture costs little, and a whole archive needs few requests.
_FIRST_BYTES, _MOST_BYTES = 1 << 16, 1 << 23
_LISTS = (".txt", ".paths", ".txt.gz", ".paths.gz")


@dataclass(frozen=True)
class StoreFiles:
    """`align.protocols.store.Files`, for local paths and s3:// alike. Read only; can be pickled."""

    config: StoreConfig

    def list(self, location: str, suffixes: Sequence[str]) -> list[str]:
        """All files of a location, sorted by name, each once.

        Args:
            location: a file, a folder (walked through), a pattern (`*` within a folder, `**` across), or a list file
                with one location per line: absolute, s3://, or relative to the list; empty and `#` lines are skipped.
            suffixes: of the files to list in a folder or bucket, in lower case; empty: all files. A file that ends in
                .txt or .paths (also .gz) is a list file, unless its suffix is among these.

        Raises:
            DataError: no file is there, or the credentials are refused.
            ServiceError: the server is unavailable or refuses.
        """
        ending = tuple(suffixes)
        if location.lower().endswith(_LISTS) and not (ending and location.lower().endswith(ending)):
            files = {file for line in _lines(self, location) for file in _entry(self.config, line, location, ending)}
        else:
            files = set(_expand(self.config, location, ending))
        if not files:
            what = f"no file that ends in {', '.join(ending)}" if ending else "no file"
            raise DataError(f"{location}: {what} exists there; check the path")
        return sorted(files)

    def open(self, uri: str) -> BinaryIO:
        """A seekable stream; objects are read ahead, by range requests. Raises as `list`."""
        if is_s3(uri):
            status = stat(self.config, uri)
            if status is None:
                raise DataError(f"{uri}: no such object")
            return cast(BinaryIO, io.BufferedReader(_Ranges(self.config, uri, status.num_bytes, status.etag), 1 << 16))
        try:
            return Path(uri).open("rb")
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise DataError(f"{uri}: cannot be read ({error.strerror}); check the path") from None

    def read(self, uri: str, offset: int, size: int) -> bytes:
        """These bytes only, fewer at the end of the file. Raises as `list`."""
        if is_s3(uri):
            return read_range(self.config, uri, offset, size)
        with self.open(uri) as file:
            file.seek(offset)
            return file.read(size)

    def stamp(self, uri: str) -> str:
        """A text that changes when the file does: its size and time, or its ETag. Raises as `list`."""
        if is_s3(uri):
            status = stat(self.config, uri)
            if status is None:
                raise DataError(f"{uri}: no such object")
            return f"{status.num_bytes} {status.etag}"
        try:
            local = Path(uri).stat()
        except OSError as error:
            raise DataError(f"{uri}: cannot be read ({error.strerror}); check the path") from None
        return f"{local.st_size} {local.st_mtime_ns}"


def _lines(files: StoreFiles, location: str) -> Iterator[str]:
    with files.open(location) as file:
        data = file.read()
    try:
        text = (gzip.decompress(data) if location.lower().endswith(".gz") else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{location}: not a list of locations, one per line ({error})") from None
    lines = (line.strip() for line in text.splitlines())
    return (line for line in lines if line and not line.startswith("#"))


def _entry(config: StoreConfig, line: str, location: str, ending: tuple[str, ...]) -> Iterable[str]:
    if not is_s3(line) and not line.startswith("/"):
        line = f"{location.rpartition('/')[0] or '.'}/{line}"
    if is_s3(line) and "*" not in line and not line.endswith("/"):
        return (line,)  # not checked one by one: a list may have ten thousand, and `open` reports a missing one
    return _expand(config, line, ending)


def _expand(config: StoreConfig, location: str, ending: tuple[str, ...]) -> Iterable[str]:
    return _expand_s3(config, location, ending) if is_s3(location) else _expand_local(location, ending)


def _expand_s3(config: StoreConfig, location: str, ending: tuple[str, ...]) -> Iterable[str]:
    bucket, key = split_uri(location)
    if "*" in key:
        pattern = re.compile(_pattern(key))
        keys = [each for each in list_objects(config, bucket, key[: key.index("*")]) if pattern.fullmatch(each)]
    elif key and not key.endswith("/") and stat(config, location) is not None:
        keys = [key]
    else:
        folder = f"{key.rstrip('/')}/" if key else ""
        keys = [each for each in list_objects(config, bucket, folder) if _counts(each, ending)]
    return (f"s3://{bucket}/{each}" for each in keys if not each.endswith("/"))


def _expand_local(location: str, ending: tuple[str, ...]) -> Iterable[str]:
    path = Path(location)
    if path.is_file():
        return (str(path),)
    if path.is_dir():
        return (str(file) for file in path.rglob("*") if file.is_file() and _counts(file.name, ending))
    if "*" in location:
        first = next(index for index, part in enumerate(path.parts) if "*" in part)
        pattern = "/".join(path.parts[first:])
        pattern += "/*" if pattern.endswith("**") else ""
        return (str(file) for file in Path(*path.parts[:first]).glob(pattern) if file.is_file())
    return ()


def _counts(name: str, ending: tuple[str, ...]) -> bool:
    return not ending or name.lower().endswith(ending)


def _pattern(key: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*)", key)
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(meaning.get(part, re.escape(part)) for part in parts)


class _Ranges(io.RawIOBase):
    """An object as a seekable stream. Memory: two windows of at most 8 MiB, one of them read ahead."""

    def __init__(self, config: StoreConfig, uri: str, num_bytes: int, etag: str) -> None:
        self._config, self._uri, self._num_bytes, self._etag = config, uri, num_bytes, etag
        self._at = self._start = 0
        self._window = b""
        self._length = _FIRST_BYTES
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._num_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"negative seek position {origin + offset}")
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # typeshed requires a Buffer, which 3.11 cannot name
        if self._at >= self._num_bytes or not view:
            return 0
        if not self._start <= self._at < self._start + len(self._window):
            self._load()
        begin = self._at - self._start
        data = self._window[begin : begin + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _load(self) -> None:
        """Loads the window at the current position; a small step forward continues the read, a large one is a jump."""
        end = self._start + len(self._window)
        reads_on = bool(self._window) and end <= self._at < end + _FIRST_BYTES
        self._length = min(2 * self._length, _MOST_BYTES) if reads_on else _FIRST_BYTES
        start, window = self._at, b""
        if self._ahead is not None:
            ahead_start, future = self._ahead
            self._ahead = None
            if reads_on and self._at >= ahead_start:
                start, window = ahead_start, future.result()
        if not start <= self._at < start + len(window):
            start, window = self._at, self._fetch(self._at, self._length)
            if not window:
                raise DataError(f"{self._uri}: it ends before its size of {self._num_bytes:,} bytes; run again")
        self._start, self._window = start, window
        after = start + len(window)
        if reads_on and after < self._num_bytes:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
            self._ahead = after, self._pool.submit(self._fetch, after, self._length)

    def _fetch(self, start: int, length: int) -> bytes:
        return read_range(self._config, self._uri, start, min(length, self._num_bytes - start), self._etag)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._ahead, self._window = None, b""
        super().close()
