"""Archives that are cut off or damaged: which of their records are whole, and where reading resumes.

A walk reads the records from one byte up to the first thing that it cannot read. The record before that is checked on
its own, since the damage may be in it: a gzip member must have its checksum, a Zstandard frame must decode, and an
uncompressed record must be followed by empty lines or the next one. Then the next place is searched at which a member,
frame or line begins whose content begins like a record. The bytes between are a gap: they are counted, not used.

A file that is compressed as a whole has no such places. Its records are used up to the damage, and nobody can tell
whether those just before it are as they were written. An uncompressed file has no checksums: what is flipped in a body
stays unknown, and text in a damaged body that looks like a record is taken for one.

The work is linear in the size of a file, even if it was made to look damaged everywhere: at most _READ_AGAIN times its
size is read again. Then the rest of the file is one gap, and the report names the bound.
"""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from fastwarc.stream_io import ZstdReader

from align.errors import DataError
from align.ingest.sources.archives import warc_bytes
from align.ingest.sources.archives.http_head import MAX_HEAD_BYTES
from align.ingest.sources.archives.warc_bytes import GZIP_MAGIC, ZSTD_DICTIONARY_MAGIC, ZSTD_MAGIC, Spans
from align.ingest.sources.reading import count_damage

if TYPE_CHECKING:
    from align.ingest.sources.archives.warc_records import Record

#: Bytes that are read at once. zlib makes at most 16 MiB of them.
_CHUNK_BYTES = 1 << 14
#: Bytes that are looked at where a record may begin: as stored, and uncompressed. Zstandard decodes whole blocks.
_TRIED_BYTES, _TRIED_ZSTD_BYTES = 1 << 10, (1 << 17) + 64
#: What may follow the last record of a file.
_FILLER = b"\0 \t\n\r\x0b\f"
#: Bytes that may be read again: this many times the size of the file, and this many more.
_READ_AGAIN, _READ_AGAIN_BYTES = 16, 32 << 20
_SEARCHED_BYTES = 1 << 16
_MARKS = {
    "gzip": re.compile(re.escape(GZIP_MAGIC) + rb"\x08[\x00-\x1f]"),  # the method, and flags without the reserved ones
    "zstd": re.compile(re.escape(ZSTD_MAGIC)),
}
#: A walk takes as long as reading its bytes so many times, and a look at one place as long as reading so many bytes.
_WALK_COSTS = {"plain": 1, "gzip": 8, "zstd": 8}
_TRIAL_COSTS = {"plain": 1 << 8, "gzip": 1 << 10, "zstd": 1 << 14}
_BEHIND_BYTES = 4
_BOUND = "the bound on reading parts of a file again ended the search"


class NoRecord(OSError):
    """What could be read is not a record, or not a whole one."""


class Layout(NamedTuple):
    """How the records of a kind of archive look, uncompressed.

    Attributes:
        begins: matches the first bytes of a record.
        mark: finds where one may begin in an uncompressed file. It looks behind 4 bytes at most.
        ends: matches what follows a record.
        num_bytes: of a record, headers included, by its first bytes; None if they have no whole header.
    """

    begins: re.Pattern[bytes]
    mark: re.Pattern[bytes]
    ends: re.Pattern[bytes]
    num_bytes: Callable[[bytes], int | None]


#: Reads records from a byte to the end, or to what it cannot read: there it raises OSError with the reason, and the
#: stream is where reading ended.
Walk = Callable[[BinaryIO, int], Iterator["Record"]]


class _Stop(NamedTuple):
    """Where a walk ended.

    Attributes:
        position: the first byte that it did not use.
        is_whole: whether its last record is whole.
        resume: before this byte no record is searched.
    """

    position: int
    is_whole: bool
    resume: int = 0


class Repaired:
    """The whole records of one file, with anything between them.

    Attributes:
        num_dictionary_bytes: at the start of a file that is compressed by Zstandard.
    """

    def __init__(self, file: str, stream: BinaryIO, layout: Layout) -> None:
        """Moves the stream.

        Args:
            file: its name.
            stream: of the file. Nobody else may move it.
            layout: of its records.
        """
        self._file, self._stream, self._layout = file, stream, layout
        self._size = stream.seek(0, io.SEEK_END)
        self._left, self._is_bounded = _READ_AGAIN * self._size + _READ_AGAIN_BYTES, False
        self._packing = self._told_packing()
        stream.seek(0)
        is_zstd = self._packing == "zstd"
        self.num_dictionary_bytes, self._dictionary = warc_bytes.zstd_dictionary(stream) if is_zstd else (0, None)

    @property
    def is_packed(self) -> bool:
        """Whether the file is compressed."""
        return self._packing != "plain"

    def head(self, start: int) -> bytes:
        """The first bytes of the record at a byte, uncompressed; none if they are damaged. Moves the stream."""
        start = max(start, self.num_dictionary_bytes)
        return self._unpacked(start, self._read(start, _TRIED_BYTES))

    def records(self, walk: Walk, counts: Counter[str]) -> Iterator[Record]:
        """What walks yield, without what is damaged. Holds two records.

        Args:
            walk: of this kind of archive.
            counts: gets the damage and `bytes_lost`; `reading_bounds_reached` where a bound ended the search for
                further records.

        Raises:
            DataError: no record can be read.
        """
        start, has_records, num_lost, first_gap = 0, False, 0, ""
        while True:
            last: Record | None = None
            error: OSError | None = None
            try:
                for record in walk(self._stream, start):
                    if last is not None:
                        has_records = True
                        yield last
                    last = record
            except OSError as raised:
                error = raised
            problem = " ".join(str(error or "").split())
            reached = self._stream.tell()
            stop = self._stop(last, start, reached, error)
            if last is not None and (stop.is_whole or last.offset is None):
                has_records = True
                yield last
            if stop.is_whole and self._is_filler(stop.position):
                break
            begun = start if last is None or last.offset is None else last.offset
            found = self._next_record(max(stop.position, stop.resume, begun + 1))
            self._left -= _WALK_COSTS[self._packing] * max(0, reached - (self._size if found is None else found))
            if found == stop.position:  # the walk did not get to the record that is damaged
                start = found
                continue
            if found is None and not has_records:
                break
            first_gap = (
                first_gap or f"byte {stop.position:,} of {self._size:,} ({problem or 'no whole record is there'}"
            )
            num_lost += (self._size if found is None else found) - stop.position
            if found is None:
                break
            start = found
        if not has_records:
            reasons = [problem or "no record in it", *([_BOUND] if self._is_bounded else [])]
            raise DataError(f"{self._file}: not a web archive ({'; '.join(reasons)})")
        if self._is_bounded:
            counts["reading_bounds_reached"] += 1
        if first_gap:
            bound = f"; {_BOUND}" if self._is_bounded else ""
            counts["bytes_lost"] += num_lost
            count_damage(
                counts, self._file, f"cut off or damaged at {first_gap}; {num_lost:,} bytes cannot be read{bound})"
            )

    def _told_packing(self) -> str:
        self._stream.seek(0)
        head = self._stream.read(_TRIED_BYTES)
        is_plain = self._layout.begins.match(head) is not None
        for packing, magics, suffix in (
            ("gzip", (GZIP_MAGIC,), ".gz"),
            ("zstd", (ZSTD_MAGIC, ZSTD_DICTIONARY_MAGIC), ".zst"),
        ):
            if head.startswith(magics) or (self._file.lower().endswith(suffix) and not is_plain):
                return packing
        return "plain"

    # where a walk stopped

    def _stop(self, last: Record | None, start: int, reached: int, error: OSError | None) -> _Stop:
        if last is None:
            return _Stop(max(start, self.num_dictionary_bytes), False)
        if self._packing == "plain":
            return self._end_of_plain(start if last.offset is None else last.offset)
        if self._packing == "gzip":
            return (
                self._end_of_members(start, reached, error) if last.offset is None else self._end_of_member(last.offset)
            )
        if error is None:  # fastwarc reports every incomplete frame
            return _Stop(self._size, True)
        return (
            _Stop(max(start, reached - _CHUNK_BYTES), False) if last.offset is None else self._end_of_frame(last.offset)
        )

    def _end_of_plain(self, offset: int) -> _Stop:
        head = self._read(offset, _CHUNK_BYTES)
        num_bytes = self._layout.num_bytes(head)
        if num_bytes is None and len(head) == _CHUNK_BYTES:
            num_bytes = self._layout.num_bytes(self._read(offset, MAX_HEAD_BYTES))
        if num_bytes is None or offset + num_bytes > self._size:
            return _Stop(offset, False)
        end = offset + num_bytes
        tail = self._read(end - _BEHIND_BYTES, _BEHIND_BYTES + _TRIED_BYTES)
        if ends := self._layout.ends.match(tail, _BEHIND_BYTES):
            return _Stop(end - _BEHIND_BYTES + ends.end(), True)
        rest = len(tail) - len(tail[_BEHIND_BYTES:].lstrip(_FILLER))
        # the mark, too: the rest of an address looks like one
        is_whole = rest == len(tail) or bool(
            self._layout.begins.match(tail, rest) and self._layout.mark.match(tail, rest)
        )
        return _Stop(end, True) if is_whole else _Stop(offset, False)

    def _end_of_member(self, offset: int) -> _Stop:
        position, member = offset, zlib.decompressobj(wbits=31)
        while not member.eof:
            chunk = self._read(position, _CHUNK_BYTES)
            position += len(chunk)
            try:
                member.decompress(chunk)
            except zlib.error:
                return _Stop(offset, False)
            if not chunk:
                return _Stop(offset, False)
        return _Stop(position - len(member.unused_data), True)

    def _end_of_members(self, offset: int, reached: int, error: OSError | None) -> _Stop:
        """The end of all members that a walk read.

        Each byte is read once. Members may be whole even if their records are not.
        """
        begun = position = offset
        end = self._size if error is None else reached
        member, packed, is_damaged = zlib.decompressobj(wbits=31), b"", False
        while not is_damaged and (packed or position < end):
            chunk = packed or self._read(position, _CHUNK_BYTES)
            if not chunk:
                break
            position += 0 if packed else len(chunk)
            try:
                member.decompress(chunk)
            except zlib.error:
                is_damaged = True
            packed = member.unused_data
            if member.eof:
                begun, member = position - len(packed), zlib.decompressobj(wbits=31)
        if self._is_filler(begun):
            is_read = error is None or (begun < self._size and not isinstance(error, NoRecord))
            if is_read:
                return _Stop(begun, True)
        elif is_damaged:
            return _Stop(max(begun, position - _CHUNK_BYTES), False, begun + 1)
        return _Stop(max(offset, end - _CHUNK_BYTES), False, end)

    def _end_of_frame(self, offset: int) -> _Stop:
        end = warc_bytes.end_of_frame(self._stream, offset, self._size)
        if end is None:
            return _Stop(offset, False)
        self._left -= end - offset
        reader = ZstdReader(Spans(self._stream, (offset, end)), dictionary=self._dictionary)
        try:
            while reader.read(_CHUNK_BYTES):
                pass
        except OSError:
            return _Stop(offset, False)
        return _Stop(end, True)

    def _is_filler(self, position: int) -> bool:
        """Whether the rest of the file has no more than what may follow the last record."""
        while chunk := self._read(position, _CHUNK_BYTES):
            if chunk.strip(_FILLER):
                return False
            position += len(chunk)
        return True

    # where the next record begins

    def _next_record(self, start: int) -> int | None:
        """The first at or after this byte; None if there is none, or enough was read."""
        mark = _MARKS.get(self._packing, self._layout.mark)
        self._is_bounded = False
        while start < self._size:
            if self._left <= 0:
                self._is_bounded = True
                break
            behind = max(0, start - _BEHIND_BYTES)
            chunk = self._read(behind, _SEARCHED_BYTES)
            is_last = behind + len(chunk) >= self._size
            # what begins near the end of a chunk is left to the next one, which has more of it
            end = len(chunk) if is_last else len(chunk) - _TRIED_BYTES
            for match in mark.finditer(chunk, start - behind):
                if match.start() >= end:
                    break
                stored = chunk[match.start() : match.start() + _TRIED_BYTES]
                if self._layout.begins.match(self._unpacked(behind + match.start(), stored)):
                    return behind + match.start()
            start = behind + end
        return None

    def _unpacked(self, position: int, stored: bytes) -> bytes:
        """The first bytes of what is stored there; none if they are damaged."""
        self._left -= _TRIAL_COSTS[self._packing]
        try:
            if self._packing == "gzip":
                return zlib.decompressobj(wbits=31).decompress(stored, _TRIED_BYTES)
            if self._packing == "zstd":
                most = min(position + _TRIED_ZSTD_BYTES, self._size)
                # without the frame after it, which may be damaged
                span = Spans(self._stream, (position, warc_bytes.end_of_frame(self._stream, position, most) or most))
                stored = ZstdReader(span, dictionary=self._dictionary).read(_TRIED_BYTES)
                self._left -= span.tell()
        except (OSError, zlib.error):
            return b""
        return stored

    def _read(self, position: int, num_bytes: int) -> bytes:
        self._stream.seek(position)
        chunk = self._stream.read(num_bytes)
        self._left -= len(chunk)
        return chunk
