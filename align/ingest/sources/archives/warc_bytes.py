"""Bytes of web archives: how records begin, and the dictionary of a file that is compressed by Zstandard."""

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


def begins_a_record(stream: BinaryIO) -> bool:
    """Whether the next bytes are the beginning of a record, plain or compressed."""
    head = stream.read(5)
    return head == b"WARC/" or head.startswith((GZIP_MAGIC, ZSTD_MAGIC))


def zstd_dictionary(stream: BinaryIO) -> tuple[int, bytes | None]:
    """Bytes of the frame with the dictionary at the start of a file, and the dictionary; 0 and None if there is none.

    The stream must be at its start. Raises TooLarge for one of more than MAX_DICTIONARY_BYTES, OSError if it cannot be
    decompressed.
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
