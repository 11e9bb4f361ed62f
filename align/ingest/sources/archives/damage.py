"""Archives that are cut off or damaged: which of their records are whole.

A file counts up to its first damage: what cannot be read as a record. The record before that is checked on its own,
since the damage may be in it: a gzip member must have its checksum, an uncompressed record must be followed by empty
lines or the next one, and one of Zstandard is never used there. The rest of the file is counted in bytes, not used.

Of a file that is compressed as a whole, nobody can tell whether the records just before the damage are as they were
written. An uncompressed file has no checksums: what is flipped in a body stays unknown.
"""

from __future__ import annotations

import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO

from fastwarc.stream_io import ZstdReader

from align.errors import DataError
from align.ingest.sources.archives import warc_records
from align.ingest.sources.archives.http_head import MAX_HEAD_BYTES
from align.ingest.sources.archives.warc_records import GZIP_MAGIC, ZSTD_DICTIONARY_MAGIC, ZSTD_MAGIC, NoRecord, Record
from align.ingest.sources.reading import count_damage

#: Bytes that are read at once. zlib makes at most 16 MiB of them.
_CHUNK_BYTES = 1 << 14
#: Bytes that are looked at where a record begins or ends.
_LOOKED_AT_BYTES = 1 << 10
#: Bytes that have a record's version and the name of its first header.
_VERSION_BYTES = 64
#: What may follow the last record of a file.
_FILLER = b"\0 \t\n\r\x0b\f"
_EMPTY_LINES = (b"\r\n\r\n", b"\n\n")


def whole_records(
    file: str, stream: BinaryIO, begins: Callable[[int], bool], max_bytes: int, counts: Counter[str]
) -> Iterator[Record]:
    """Yields the records before the first damage, pages with their bodies, as `warc_records.walk`. Holds two records.

    Nobody else may move the stream. `counts` gets the damage and `bytes_lost`. Raises DataError if no record can be
    read.
    """
    size = stream.seek(0, io.SEEK_END)
    packing = _packing(file, stream)
    last: Record | None = None
    error: OSError | None = None
    has_records = False
    try:
        head = _head(stream, packing)
        is_packed = packing != "plain"
        for record in warc_records.walk(stream, head, begins, max_bytes, None if is_packed else size):
            if last is not None:
                has_records = True
                yield last
            last = record
    except OSError as raised:
        error = raised
    reached = stream.tell()
    position, is_whole = (0, False) if last is None else _end(stream, packing, last, reached, error)
    if last is not None and is_whole:
        has_records = True
        yield last
    if has_records and is_whole and _is_filler(stream, position):
        return
    problem = " ".join(str(error or "").split())
    if not has_records:
        raise DataError(f"{file}: not a web archive ({problem or 'no record in it'})")
    num_lost = size - position
    counts["bytes_lost"] += num_lost
    count_damage(
        counts,
        file,
        f"cut off or damaged at byte {position:,} of {size:,} ({problem or 'no whole record is there'}; "
        f"{num_lost:,} bytes are not used)",
    )


def _packing(file: str, stream: BinaryIO) -> str:
    head = _read(stream, 0, _LOOKED_AT_BYTES)
    is_plain = warc_records.BEGINS.match(head) is not None
    for packing, magics, suffix in (
        ("gzip", (GZIP_MAGIC,), ".gz"),
        ("zstd", (ZSTD_MAGIC, ZSTD_DICTIONARY_MAGIC), ".zst"),
    ):
        if head.startswith(magics) or (file.lower().endswith(suffix) and not is_plain):
            return packing
    return "plain"


def _head(stream: BinaryIO, packing: str) -> bytes:
    """The first bytes of the first record, uncompressed; none if they are damaged. Raises as `zstd_dictionary`."""
    stream.seek(0)
    if packing == "zstd":
        num_bytes, dictionary = warc_records.zstd_dictionary(stream)
        stream.seek(num_bytes)
        try:
            # no more, since the frame after it may be damaged
            return bytes(ZstdReader(stream, dictionary=dictionary).read(_VERSION_BYTES))
        except OSError:
            return b""
    head = stream.read(_LOOKED_AT_BYTES)
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _LOOKED_AT_BYTES) if packing == "gzip" else head
    except zlib.error:
        return b""


def _end(stream: BinaryIO, packing: str, last: Record, reached: int, error: OSError | None) -> tuple[int, bool]:
    """Up to which byte the file is used, and whether its last record is whole.

    The file was read up to the byte `reached`; `error` ended that, if it was not the end of the file.
    """
    if packing == "plain":
        return _end_of_plain(stream, 0 if last.offset is None else last.offset)
    if packing == "zstd":  # fastwarc reports every incomplete frame
        return (reached, True) if error is None else (reached if last.offset is None else last.offset, False)
    if last.offset is not None:
        end = next(_ends_of_members(stream, last.offset), None)
        return (last.offset, False) if end is None else (end, True)
    end = max(_ends_of_members(stream, 0), default=0)
    # what follows the last member is an error for fastwarc
    is_whole = _is_filler(stream, end) and not isinstance(error, NoRecord)
    return (end, True) if is_whole else (max(0, reached - _CHUNK_BYTES), False)


def _end_of_plain(stream: BinaryIO, offset: int) -> tuple[int, bool]:
    num_bytes = warc_records.num_bytes(_read(stream, offset, MAX_HEAD_BYTES))
    if num_bytes is None:
        return offset, False
    end = offset + num_bytes
    tail = _read(stream, end, _LOOKED_AT_BYTES)
    for lines in _EMPTY_LINES:
        if tail.startswith(lines):
            return end + len(lines), True
    rest = tail.lstrip(_FILLER)
    return (offset, False) if rest and not warc_records.BEGINS.match(rest) else (end, True)


def _ends_of_members(stream: BinaryIO, offset: int) -> Iterator[int]:
    """Yields where each whole gzip member from a byte on ends, up to the first damage. Each byte is read once."""
    stream.seek(offset)
    position, packed, member = offset, b"", zlib.decompressobj(wbits=31)
    while packed := packed or stream.read(_CHUNK_BYTES):
        try:
            member.decompress(packed)
        except zlib.error:
            return
        position += len(packed) - len(member.unused_data)
        packed = member.unused_data
        if member.eof:
            yield position
            member = zlib.decompressobj(wbits=31)


def _is_filler(stream: BinaryIO, position: int) -> bool:
    """Whether the rest of the file has no more than what may follow the last record."""
    stream.seek(position)
    while chunk := stream.read(_CHUNK_BYTES):
        if chunk.strip(_FILLER):
            return False
    return True


def _read(stream: BinaryIO, position: int, num_bytes: int) -> bytes:
    stream.seek(position)
    return stream.read(num_bytes)
