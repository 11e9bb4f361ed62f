"""The records of ARC files, which crawlers wrote before WARC (Common Crawl until 2012, the Internet Archive).

A record is a line (address, IP, date, content type, length; in version 2 also result code, checksum, location, offset
and file name), then `length` bytes: the HTTP head and the body. The first record describes the file. Records are
compressed one by one, each a gzip member, or not at all.

Decisions: the version that the first record states is not used, since reading may begin anywhere: the fields tell it.
Addresses and content types may contain spaces. Records that hold no HTTP response (filedesc:, dns:, ftp:) are of
another kind.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from align.ingest.limits import too_large
from align.ingest.sources.archives.damage import Layout, NoRecord
from align.ingest.sources.archives.http_head import text_of
from align.ingest.sources.archives.warc_bytes import GZIP_MAGIC
from align.ingest.sources.archives.warc_records import OTHER, Record, response_of

SUFFIXES = (".arc", ".arc.gz")

_NONE_BEGINS, _CUT_OFF = "no record begins there", "the record that starts there is cut off"
_MAX_LINE_BYTES = 1 << 16
#: Bytes that are read at once: what remains of them is copied at the end of each gzip member.
_CHUNK_BYTES = 1 << 14
_UNPACKED_BYTES = 1 << 16
_LOOKED_AT_BYTES = 64
_SCHEME = rb"[a-zA-Z][a-zA-Z0-9+.-]{0,31}+:"
_ADDRESS = re.compile(_SCHEME)
_DATE = re.compile(rb"\d{12,17}")
_NUMBER = re.compile(rb"\d{1,18}")  # Python refuses to parse very long ones
_RESULT_CODE = re.compile(rb"-?\d{1,4}")
_NEWLINES = re.compile(rb"[\r\n]*+")
#: The fields of a version 2 line, from the date to its end.
_NUM_FIELDS_FROM_DATE = 8


def is_arc(file: str) -> bool:
    """Whether a file is one, by its name."""
    return file.lower().endswith(SUFFIXES)


class Line(NamedTuple):
    """The first line of a record.

    Attributes:
        url: as recorded.
        content_type: in lower case, without parameters.
        num_bytes: of the content.
    """

    url: str
    content_type: str
    num_bytes: int


def parse_line(line: bytes) -> Line | None:
    """The fields of a record's first line; None if it is not such a line."""
    fields = line.rstrip(b"\r\n").split(b" ")
    if not _ADDRESS.match(line) or not line.endswith(b"\n") or not _NUMBER.fullmatch(fields[-1]):
        return None
    date = len(fields) - _NUM_FIELDS_FROM_DATE
    if date >= 2 and _DATE.fullmatch(fields[date]) and _RESULT_CODE.fullmatch(fields[date + 2]):
        content_type = fields[date + 1]
    else:
        date = next((at for at in range(len(fields) - 2, 1, -1) if _DATE.fullmatch(fields[at])), 0)
        content_type = b" ".join(fields[date + 1 : -1])
    if not date:
        return None
    url = b" ".join(fields[: date - 1])
    return Line(text_of(url), text_of(content_type).partition(";")[0].strip().lower(), int(fields[-1]))


def _num_bytes(head: bytes) -> int | None:
    line, newline, _ = head.partition(b"\n")
    parsed = parse_line(line + newline)
    return None if parsed is None else len(line) + 1 + parsed.num_bytes


LAYOUT = Layout(
    begins=re.compile(_SCHEME + rb"(?>[^\n]*? [^ \n]* \d{12,17} )[^\r\n]*+(?<=\d)\r?\n"),
    mark=re.compile(rb"(?<=\n)" + _SCHEME),
    ends=re.compile(rb"\r?\n"),
    num_bytes=_num_bytes,
)


class Walker:
    """Walks one file, in pieces where it is damaged; see `align.ingest.sources.archives.damage.Walk`."""

    def __init__(self, max_bytes: int) -> None:
        """Of a body of more than `max_bytes`, one byte more is read."""
        self._max_bytes = max_bytes

    def __call__(self, stream: BinaryIO, start: int) -> Iterator[Record]:
        """Yields every complete record from a byte on, pages with their bodies. Holds one record.

        Raises:
            OSError: the file is damaged or cut off.
        """
        reader = _reader(stream, start, stream.seek(0, io.SEEK_END))
        try:
            while reader.begins_another():
                yield _whole(reader, self._max_bytes)
        except NoRecord:
            reader.unskip()
            raise


def read_record(stream: BinaryIO, offset: int, max_bytes: int) -> Record | None:
    """The record at a byte of a file, with its body; None if none begins there.

    Raises:
        OSError: it is damaged or cut off.
        TooLarge: its body has more than `max_bytes`.
    """
    reader = _reader(stream, offset)
    return _record(reader, max_bytes, is_scan=False) if reader.begins_another() else None


def _whole(reader: _Plain | _Members, max_bytes: int) -> Record:
    try:
        record = _record(reader, max_bytes)
    except OSError as error:  # even if the filler after the last member follows
        raise NoRecord(*error.args) from None
    if record is None:
        raise NoRecord(_NONE_BEGINS)
    return record


def _record(reader: _Plain | _Members, max_bytes: int, *, is_scan: bool = True) -> Record | None:
    """A scan needs the bodies of pages only, and continues after one that is too large."""
    offset = reader.offset
    line = parse_line(reader.line())
    if line is None:
        return None
    if not reader.may_have(line.num_bytes):
        raise NoRecord(_CUT_OFF)
    content = _Content(reader, line.num_bytes)
    if line.url[:8].lower().startswith(("http:", "https:")):
        record, begin = response_of(line.url, offset, content, line.content_type)
        if record.problem is None and (record.is_page or not is_scan):
            record = record._replace(body=content.all_after(begin, max_bytes + 1))
        if len(record.body) > max_bytes and not is_scan:
            raise too_large(max_bytes)
    else:
        record = Record(OTHER, line.url, offset)
    if content.skip():
        raise NoRecord(_CUT_OFF)
    return record


class _Content:
    """The content of a record as a stream."""

    def __init__(self, reader: _Plain | _Members, num_bytes: int) -> None:
        self._reader, self._left = reader, num_bytes

    def read(self, size: int = -1, /) -> bytes:
        piece = self._reader.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(piece)
        return piece

    def all_after(self, first: bytes, max_bytes: int) -> bytes:
        """These bytes and the rest of the content, together at most `max_bytes`."""
        pieces, left = [first[:max_bytes]], max_bytes - len(first)
        while left > 0 and (piece := self.read(left)):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def skip(self) -> int:
        """Skips the rest. Returns the number of bytes that are missing."""
        self._left -= self._reader.skip(self._left)
        return self._left


def _check_ends_line(before: bytes) -> None:
    if before not in (b"\n", b"\r"):
        raise NoRecord(_NONE_BEGINS)


def _reader(stream: BinaryIO, start: int, size: int | None = None) -> _Plain | _Members:
    """`size`: of the file, if it is known. Asking for it discards what was read ahead."""
    stream.seek(start)
    packed = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    return _Members(stream, start) if packed else _Plain(stream, start, size)


class _Plain:
    """An uncompressed file."""

    def __init__(self, stream: BinaryIO, start: int, size: int | None) -> None:
        self._stream, self.offset, self._size = stream, stream.seek(start), size
        self._start, self._num_read = start, start  # up to what was skipped last

    def begins_another(self) -> bool:
        """Skips what is between records; False at the end. Then `offset` is that of the record.

        Raises:
            NoRecord: what is there does not begin a line: it may be the rest of an address.
        """
        while piece := self._stream.read(_LOOKED_AT_BYTES):
            newlines = _NEWLINES.match(piece)
            if newlines and newlines.end() < len(piece):
                self.offset = self._stream.seek(newlines.end() - len(piece), io.SEEK_CUR)
                if not newlines.end() and self.offset > self._start:
                    self._stream.seek(-1, io.SEEK_CUR)
                    _check_ends_line(self._stream.read(1))
                return True
        return False

    def may_have(self, num_bytes: int) -> bool:
        """Whether the file may have so many bytes more."""
        return self._size is None or self._stream.tell() + num_bytes <= self._size

    def line(self) -> bytes:
        return self._stream.readline(_MAX_LINE_BYTES)

    def read(self, size: int) -> bytes:
        return self._stream.read(size)

    def skip(self, num_bytes: int) -> int:
        """Returns how many were there."""
        self._num_read = position = self._stream.tell()
        if not num_bytes:
            return 0
        if self._size is None:
            self._size = self._stream.seek(0, io.SEEK_END)
        return self._stream.seek(min(position + num_bytes, max(self._size, position))) - position

    def unskip(self) -> None:
        """Moves the stream back to where it was read up to."""
        self._stream.seek(self._num_read)


class _Members:
    """A file of gzip members: their contents, one after the other. All errors are OSError."""

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self._stream, self._position = stream, stream.seek(start)  # after what was read
        self._member, self._member_at = zlib.decompressobj(wbits=31), start
        self._packed = b""
        self._data, self._at = b"", 0  # of this member alone
        self._before = b""  # the byte before them
        self._is_at_start = True
        self.offset: int | None = start

    def begins_another(self) -> bool:
        """As `_Plain`, but any member may begin with a record; `offset` is None for a record that is not there."""
        while self._has_data():
            newlines = _NEWLINES.match(self._data, self._at)
            self._at = newlines.end() if newlines else self._at
            if self._at < len(self._data):
                self.offset = self._member_at if self._is_at_start else None
                if not self._is_at_start:
                    _check_ends_line(self._data[self._at - 1 : self._at] if self._at else self._before)
                return True
        return False

    def line(self) -> bytes:
        line = b""
        while len(line) < _MAX_LINE_BYTES and not line.endswith(b"\n") and self._has_data():
            line += self._taken(self._data.find(b"\n", self._at) + 1 or len(self._data))
        return line

    def read(self, size: int) -> bytes:
        return self._taken(self._at + size) if size > 0 and self._has_data() else b""

    def skip(self, num_bytes: int) -> int:
        left = num_bytes
        while left > 0 and (piece := self.read(left)):
            left -= len(piece)
        return num_bytes - left

    def may_have(self, num_bytes: int) -> bool:
        """As `_Plain`: nobody can tell."""
        return True

    def unskip(self) -> None:
        """As `_Plain`: nothing is skipped unread."""

    def _taken(self, end: int) -> bytes:
        piece = self._data[self._at : end]
        self._at += len(piece)
        self._is_at_start = False
        return piece

    def _has_data(self) -> bool:
        """Decompresses more where nothing is left. False at the end of the file."""
        while self._at >= len(self._data):
            is_next, self._packed = self._member.eof, self._member.unused_data or self._packed
            if not self._packed:
                self._packed = self._stream.read(_CHUNK_BYTES)
                self._position += len(self._packed)
            if not self._packed:
                if is_next:
                    return False
                raise OSError("a gzip member is cut off")
            if is_next:
                self._member, self._member_at = zlib.decompressobj(wbits=31), self._position - len(self._packed)
                self._is_at_start = True
            self._before = self._data[-1:] or self._before
            try:
                self._data, self._at = self._member.decompress(self._packed, _UNPACKED_BYTES), 0
            except zlib.error as error:
                raise OSError(str(error)) from None
            self._packed = self._member.unconsumed_tail
        return True
