"""Files on this machine, in S3 and on web servers, read in the same way: the `Files` that sources need."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat as stat_module
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig
from align.display.console import say, track
from align.durable.processes import in_threads
from align.errors import DataError
from align.services.files import file_lists
from align.services.files.file_lists import MISSING, UnusableLocationError, is_web
from align.services.files.web_files import WebFiles
from align.services.s3.client import list_stats, read_range, stat
from align.services.s3.locations import Stat, is_s3, split_uri

#: The number of unreadable files that are named; then the search ends.
_NAMED = 10


@dataclass(frozen=True)
class StoreFiles:
    """`align.interfaces.store.Files`, for local paths, s3:// and https:// alike. Read only; can be pickled.

    A server says once what a file is: in a listing, or when it is asked first. A pickled copy knows it, too: what
    another process reads is that file, or an error if it was replaced.

    Attributes:
        config: how often and how patiently servers are asked.
        download: the rules for web servers; None: they are not read.
    """

    config: StoreConfig
    download: DownloadConfig | None = None
    _known: dict[str, Stat] = field(default_factory=dict, init=False, repr=False, compare=False)

    def list(self, location: str, suffixes: Sequence[str], root: str | None = None) -> list[str]:
        """See `Files`. `*` is within a folder, `**` across; in a list, empty lines and those with `#` are skipped.

        A file with the name of a list is one unless its suffix is among these. Lines that cannot be used are named or
        counted; those on a server are not asked for one by one: `stamps` does that.
        """
        ending = tuple(suffixes)
        try:
            file_lists.require_usable(location)
            if file_lists.is_list(location, ending):
                return sorted(self._listed(location, ending, root))
            files = set(_expand(self, location, ending))
        except UnusableLocationError as error:
            raise DataError(f"{file_lists.shown(location)}: {error}") from None
        if not files:
            what = f"no file that ends in {', '.join(ending)}" if ending else "no file"
            raise DataError(f"{file_lists.shown(location)}: {what} exists there; check the path")
        return sorted(files)

    def _listed(self, location: str, ending: tuple[str, ...], root: str | None) -> set[str]:
        with self.open(location) as stream:
            lines = file_lists.lines_of(stream, location)
        files: set[str] = set()
        num_repeated, unusable = 0, defaultdict[str, list[str]](list)
        for line in lines:
            try:
                entry = file_lists.absolute(line, location, root)
                file_lists.require_usable(entry)
                found = _entry(self, entry, ending)
            except UnusableLocationError as error:
                unusable[str(error)].append(line)
                continue
            if not found:
                unusable[MISSING].append(line)
            num_repeated += len(found) - len(found - files)
            files |= found
        file_lists.require_all_usable(unusable, location, len(lines), root)
        if not files:
            raise DataError(f"{location}: an empty list; write one location per line")
        if num_repeated:
            say(f"ingest: {location}: files that are named more than once: {num_repeated:,}; each is read once")
        return files

    def open(self, uri: str) -> BinaryIO:
        """A seekable stream; files on servers are read ahead, by range requests. Raises as `list`."""
        if _is_remote(uri):
            status = self._stat(uri)
            ranges = _Ranges(uri, status.num_bytes, partial(self._fetch, uri, status))
            return cast(BinaryIO, io.BufferedReader(ranges, 1 << 16))
        try:
            descriptor = os.open(uri, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would keep its reader waiting
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"{uri}: cannot be read ({error.strerror}); check the path") from None
        except ValueError:
            raise DataError(f"{uri!r}: no name of a file") from None
        if not stat_module.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise DataError(f"{uri}: cannot be read (a folder, a device or a pipe, not a file); check the path")
        return os.fdopen(descriptor, "rb")

    def read(self, uri: str, offset: int, size: int) -> bytes:
        """These bytes only, fewer at the end of the file. Raises as `list`."""
        if _is_remote(uri):
            return self._fetch(uri, None, offset, size)
        with self.open(uri) as file:
            file.seek(offset)
            return file.read(size)

    def stamp(self, uri: str) -> str:
        """A text that changes when the file does: its size and time, or its ETag. Raises as `list`.

        Of a folder (`uri` ends in `/`): when the names, sizes, times or ETags of the files in it change. A folder that
        does not exist is empty, as in S3.
        """
        try:
            if uri.endswith("/") and not is_web(uri):
                digest = hashlib.sha256()
                for each in self._stamps_in(uri):
                    digest.update(f"{each}\n".encode("utf-8", "surrogateescape"))
                return digest.hexdigest()
            if _is_remote(uri):
                status = self._stat(uri)
                return f"{status.num_bytes} {status.etag}"
            return _stamp_of(Path(uri))
        except OSError as error:
            raise DataError(f"{uri}: cannot be read ({error.strerror}); check the path") from None
        except ValueError:
            raise DataError(f"{uri!r}: no name of a file") from None

    def _stamps_in(self, folder: str) -> Iterator[str]:
        if is_s3(folder):
            bucket, prefix = split_uri(folder)
            for key, status in list_stats(self.config, bucket, prefix):
                yield f"{key} {status.num_bytes} {status.etag}"
            return
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                yield f"{file} {_stamp_of(file)}"

    def stamps(self, uris: Sequence[str]) -> Sequence[str]:
        """`stamp` of each, with `store.num_connections` requests at a time; names the first ten without one."""
        if not any(map(_is_remote, uris)):
            return [self.stamp(uri) for uri in uris]
        asked = in_threads(self._stamp_or_error, uris, self.config.num_connections)
        stamps, errors = [], []
        for outcome in track(asked, what="ingest: files looked up", total=len(uris)):
            if isinstance(outcome, str):
                stamps.append(outcome)
                continue
            errors.append(outcome)
            if len(errors) == _NAMED:
                break
        if len(errors) > 1:
            at_least = "at least " if len(errors) == _NAMED else ""
            raise DataError(f"{at_least}{len(errors)} of {len(uris):,} files: " + "; ".join(map(str, errors)))
        if errors:
            raise errors[0]
        return stamps

    def _stamp_or_error(self, uri: str) -> str | DataError:
        try:
            return self.stamp(uri)
        except DataError as error:
            return error

    def exists(self, uri: str) -> bool:
        """Whether there is an object in S3."""
        if uri not in self._known and (status := stat(self.config, uri)) is not None:
            self._known[uri] = status
        return uri in self._known

    def objects(self, bucket: str, prefix: str, counts: Callable[[str], object]) -> Iterable[str]:
        """The objects in S3 whose keys begin with this and count. What they are is known now."""
        every = list_stats(self.config, bucket, prefix)
        found = {f"s3://{bucket}/{key}": status for key, status in every if counts(key) and not key.endswith("/")}
        self._known.update(found | self._known)
        return found

    def _stat(self, uri: str) -> Stat:
        if is_web(uri):
            if uri not in self._known:
                self._known[uri] = self._web(uri).stat(uri)
        elif not self.exists(uri):
            raise DataError(f"{uri}: no such object")
        return self._known[uri]

    def _fetch(self, uri: str, known: Stat | None, offset: int, size: int) -> bytes:
        if is_web(uri):
            return self._web(uri).read_range(uri, offset, size, known)
        return read_range(self.config, uri, offset, size, None if known is None else known.etag)

    def _web(self, uri: str) -> WebFiles:
        if self.download is None:
            raise DataError(f"{uri}: only `align ingest` reads from web servers; give a path or s3://...")
        return WebFiles(self.config, self.download)


def _stamp_of(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _is_remote(uri: str) -> bool:
    return is_s3(uri) or is_web(uri)


def _entry(files: StoreFiles, location: str, ending: tuple[str, ...]) -> set[str]:
    if file_lists.is_list(location, ending):
        raise UnusableLocationError("a list in a list is not read")
    if is_s3(location) and "*" not in location and not location.endswith("/"):
        return {location}  # not checked one by one: a list may have ten thousand, and `stamps` reports a missing one
    return set(_expand(files, location, ending))


def _expand(files: StoreFiles, location: str, ending: tuple[str, ...]) -> Iterable[str]:
    if is_web(location):
        return (location,)
    if is_s3(location):
        return _expand_s3(files, location, ending)
    try:
        return list(_expand_local(location, ending))
    except (OSError, ValueError, NotImplementedError) as error:  # no name that a file can have, no pattern, no right
        raise UnusableLocationError(f"cannot be looked up ({getattr(error, 'strerror', None) or error})") from None


def _expand_s3(files: StoreFiles, location: str, ending: tuple[str, ...]) -> Iterable[str]:
    bucket, key = split_uri(location)
    if "*" in key:
        is_named = re.compile(_pattern(key)).fullmatch
        return files.objects(bucket, key[: key.index("*")], is_named)
    if key and not key.endswith("/") and files.exists(location):
        return [location]
    folder = f"{key.rstrip('/')}/" if key else ""
    return files.objects(bucket, folder, partial(_counts, ending=ending))


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


#: A stream's first request has this many bytes, and each further one twice as many, up to the second number: a jump to
#: one picture costs little, and a whole archive needs few requests.
_FIRST_BYTES, _MOST_BYTES = 1 << 16, 1 << 23


class _Ranges(io.RawIOBase):
    """A file on a server as a seekable stream. In memory are two windows of at most 8 MiB, one of them read ahead.

    Args:
        uri: what errors call it.
        num_bytes: its size.
        fetch: (offset, size) -> these bytes; one thread beside the reader's calls it, too. Each read raises what it
            raises, and DataError if the file ends early.
    """

    def __init__(self, uri: str, num_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        self._uri, self._num_bytes, self._fetch_range = uri, num_bytes, fetch
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
        return self._fetch_range(start, min(length, self._num_bytes - start))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._ahead, self._window = None, b""
        super().close()
