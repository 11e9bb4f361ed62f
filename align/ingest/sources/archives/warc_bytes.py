"""Bytes of web archives: where records and Zstandard frames begin and end, and parts of a file as a stream."""

from __future__ import annotations

import io
from typing import BinaryIO

from fastwarc.stream_io import ZstdReader

from align.ingest.limits import TooLarge, read_at_most

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: A frame that other readers skip; at the start of a .warc.zst it has the dictionary of all records (IIPC's draft).
ZSTD_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"
#: Bytes of a file's dictionary; `zstd --train` makes 110 KiB.
MAX_DICTIONARY_BYTES = 16 << 20
#: Bytes of a frame's header: of the dictionary's number and of the content's size, by their flags (RFC 8878).
_DICTIONARY_NUMBER_BYTES, _CONTENT_SIZE_BYTES = (0, 1, 2, 4), (0, 2, 4, 8)
#: Kinds of blocks; higher numbers mean none.
_REPEATED, _COMPRESSED = 1, 2


def begins_a_record(stream: BinaryIO) -> bool:
    """Whether the next bytes are the beginning of a record, plain or compressed."""
    head = stream.read(5)
    return head == b"WARC/" or head.startswith((GZIP_MAGIC, ZSTD_MAGIC))


def zstd_dictionary(stream: BinaryIO) -> tuple[int, bytes | None]:
    """Bytes of the frame with the dictionary at the start of a file, and the dictionary; 0 and None if there is none.

    The stream must be at its start.

    Raises:
        TooLarge: there is one of more than MAX_DICTIONARY_BYTES.
        OSError: it cannot be decompressed.
    """
    head = stream.read(8)
    if not head.startswith(ZSTD_DICTIONARY_MAGIC):
        return 0, None
    size = int.from_bytes(head[4:], "little")
    if size > MAX_DICTIONARY_BYTES:
        raise TooLarge(f"its dictionary has {size:,} bytes, above {MAX_DICTIONARY_BYTES:,}")
    frame = stream.read(size)
    if frame[:4] == ZSTD_MAGIC:
        frame = read_at_most(ZstdReader(io.BytesIO(frame)), MAX_DICTIONARY_BYTES)
    return 8 + size, frame


def end_of_frame(stream: BinaryIO, offset: int, most: int) -> int | None:
    """Where a Zstandard frame ends, by its blocks; None if none begins there, or if it ends after byte `most`."""
    stream.seek(offset)
    head = stream.read(5)
    if not head.startswith(ZSTD_MAGIC) or len(head) < 5:
        return None
    flags = head[4]
    is_single = flags >> 5 & 1
    num_bytes_of_size = _CONTENT_SIZE_BYTES[flags >> 6] or is_single
    stream.seek((1 - is_single) + _DICTIONARY_NUMBER_BYTES[flags & 3] + num_bytes_of_size, io.SEEK_CUR)
    is_last = False
    while not is_last:
        block = stream.read(3)
        if len(block) < 3 or stream.tell() > most:
            return None
        value = int.from_bytes(block, "little")
        is_last, kind, size = bool(value & 1), value >> 1 & 3, value >> 3
        if kind > _COMPRESSED:
            return None
        stream.seek(1 if kind == _REPEATED else size, io.SEEK_CUR)
    end = stream.seek(4 if flags >> 2 & 1 else 0, io.SEEK_CUR)  # the checksum
    return end if end <= most else None


class Spans(io.RawIOBase):
    """Parts of a file, one after the other, as a stream. Nobody else may move the file."""

    def __init__(self, stream: BinaryIO, *spans: tuple[int, int]) -> None:
        """Takes the first byte of each part, and the byte after its last."""
        self._stream, self._spans, self._num_read = stream, list(spans), 0
        stream.seek(spans[0][0])

    def readable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """How many bytes were read."""
        return self._num_read

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, none at the end."""
        while self._spans:
            start, end = self._spans[0]
            num_bytes = end - start if size < 0 else min(size, end - start)
            data = self._stream.read(num_bytes)
            if data or not num_bytes:
                self._spans[0] = (start + len(data), end)
                self._num_read += len(data)
                if data or size == 0:
                    return data
            self._spans.pop(0)
            if self._spans:
                self._stream.seek(self._spans[0][0])
        return b""
