"""Writes plain tars: USTAR headers without times, owners or users, so that equal members are equal bytes.

`tarfile` needs some 60 µs per member, more than everything else that a small picture costs; this needs 1 µs. Names are
short and ASCII here (a key and an extension), so they fit into USTAR's 100 characters.
"""

from __future__ import annotations

import struct
from typing import IO

BLOCK = 512
#: Name, permissions, owner and group, size, time, checksum, the rest; each filled up with zeros.
_HEADER = struct.Struct("100s 8s 16s 12s 12s 8s 356s")
_OWNER = b"0000000\0" * 2
_TIME = b"00000000000\0"
_REST = b"0" + bytes(100) + b"ustar\0" + b"00"
_FIXED_SUM = sum(_OWNER) + sum(_TIME) + 8 * ord(" ") + sum(_REST)
_MAX_BYTES = 8**11 - 1


def header(name: str, num_bytes: int, mode: int = 0o644) -> bytes:
    """The 512 bytes before a member's data; `mode` is its permissions. Raises ValueError if USTAR has no room."""
    encoded = name.encode("ascii")
    if len(encoded) > 100 or num_bytes > _MAX_BYTES:
        raise ValueError(f"no USTAR header can hold {name!r} of {num_bytes:,} bytes")
    size, permissions = b"%011o\0" % num_bytes, b"%07o\0" % mode
    checksum = _FIXED_SUM + sum(encoded + permissions + size)
    return _HEADER.pack(encoded, permissions, _OWNER, size, _TIME, b"%06o\0 " % checksum, _REST)


def padding(num_bytes: int) -> bytes:
    """The zeros that fill up a member's last block."""
    return bytes(-num_bytes % BLOCK)


class TarWriter:
    """Appends members to an open file; `close` writes the end of the archive, padded to 10 KiB as `tar` does."""

    def __init__(self, file: IO[bytes], mode: int = 0o644) -> None:
        self._file, self._mode = file, mode
        self._num_bytes = 0

    def add(self, *members: tuple[str, bytes]) -> list[int]:
        """Appends members, each its name and its data; returns the offsets of the data."""
        lines: list[bytes] = []
        offsets = []
        for name, data in members:
            offsets.append(self._num_bytes + BLOCK)
            fill = padding(len(data))
            lines += (header(name, len(data), self._mode), data, fill)
            self._num_bytes += BLOCK + len(data) + len(fill)
        self._file.writelines(lines)
        return offsets

    def close(self) -> None:
        """Ends the archive. The file stays open."""
        end = 2 * BLOCK
        self._file.writelines((bytes(end + -(self._num_bytes + end) % (20 * BLOCK)),))
