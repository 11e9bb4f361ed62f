"""Reads the headers of a tar (USTAR, GNU, PAX) of any bytes.

`tarfile` follows sizes below zero in a circle, and what it cannot read ends the archive. Here each step moves forward.
A member that is not a plain file has a `problem` and is passed over. A header with a wrong checksum or an impossible
size, or an end without one, damages the tar: it ends there.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from align.formats.tar import BLOCK

#: Bytes of a long name, or of PAX's values for one member.
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_DIGITS = 20
_REGULAR = (b"0", b"\0", b"7")
_DIRECTORY = b"5"
_WITHOUT_DATA = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    _DIRECTORY: "a directory",
    b"6": "a named pipe",
}
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"


class DamagedTar(Exception):
    """The rest of a tar cannot be read; the message says why."""


class Member(NamedTuple):
    """One member of a tar; directories are left out.

    Attributes:
        name: as the tar has it; bytes that are not UTF-8 as `\\xff`. It may lead out of any folder: do not use it as a
            path.
        start: where its headers begin; `member_at` takes it.
        offset: of its data.
        size: of its data in bytes.
        problem: why it has no bytes that can be read; else None.
    """

    name: str
    start: int
    offset: int
    size: int
    problem: str | None


@dataclass
class _Extension:
    """What the headers before a member's own say about it."""

    name: bytes | None = None
    size: bytes | None = None
    problem: str | None = None
    pax: dict[bytes, bytes] = field(default_factory=dict)


def read_members(file: BinaryIO) -> Iterator[Member]:
    """The members from the start of a tar to its end, in order. `file` must be seekable; only headers are read.

    Raises:
        DamagedTar: a header has a wrong checksum or an impossible size, or the tar is cut off.
    """
    end = file.seek(0, io.SEEK_END)
    position = 0
    if not end:
        raise DamagedTar("an empty file")
    while position < end:
        member, position = _next(file, position, end)
        if member is None:
            return
        if member.problem != _WITHOUT_DATA[_DIRECTORY]:
            yield member
    if position > end:
        raise DamagedTar(f"cut off at byte {end:,}")


def member_at(file: BinaryIO, start: int) -> Member:
    """The member whose headers begin at an offset. Raises DamagedTar if none does."""
    member, _ = _next(file, start, file.seek(0, io.SEEK_END))
    if member is None:
        raise DamagedTar(f"no member at byte {start:,}")
    return member


def _next(file: BinaryIO, start: int, end: int) -> tuple[Member | None, int]:
    """The next member and where the one after it begins; None at the end of the archive."""
    position, extension = start, _Extension()
    while True:
        header = _header(file, position)
        if header is None:
            return None, end
        kind, offset = header[156:157], position + BLOCK
        if kind not in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            break
        size = _size(header)
        if size is None or offset + size > end:
            raise DamagedTar(f"damaged header at byte {position:,}")
        _extend(extension, kind, file, size)
        position = offset + _padded(size)
    name = _name(header if extension.name is None else None, extension.name)
    size, problem = _size(header), extension.problem
    if kind in _WITHOUT_DATA or (kind == b"\0" and name.endswith("/")):
        return Member(name, start, offset, 0, _WITHOUT_DATA.get(kind, _WITHOUT_DATA[_DIRECTORY])), offset
    if kind not in _REGULAR:
        problem = "neither a file nor a link"
    if b"size" in extension.pax:
        size = _number(extension.pax[b"size"], 10)
    if size is None:
        raise DamagedTar(f"the size of {name} at byte {offset:,} is no number from 0")
    if offset + size > end:
        raise DamagedTar(f"the data of {name} at byte {offset:,} are cut off")
    return Member(name, start, offset, size, problem), offset + _padded(size)


def _header(file: BinaryIO, position: int) -> bytes | None:
    """The header at a byte; None at the end of the archive (zeros)."""
    file.seek(position)
    header = file.read(BLOCK)
    if not header.strip(b"\0") and len(header) in (0, BLOCK):
        if not header:
            raise DamagedTar(f"cut off at byte {position:,}")
        return None
    if len(header) < BLOCK:
        raise DamagedTar(f"cut off at byte {position:,}")
    if not _is_header(header):
        raise DamagedTar(f"damaged header at byte {position:,}")
    return header


def _is_header(block: bytes) -> bool:
    return _number(block[148:156], 8) == sum(block[:148] + block[156:]) + 8 * ord(" ")


def _number(text: bytes, base: int) -> int | None:
    """The number of a field, None for anything else. An empty octal field is 0, as everywhere."""
    digits = text.split(b"\0")[0].strip()
    if not digits:
        return 0 if base == 8 else None
    if len(digits) > _MAX_DIGITS or not digits.isdigit():
        return None
    try:
        return int(digits, base)
    except ValueError:
        return None


def _size(header: bytes) -> int | None:
    """The size that a header states: octal, or base 256 (GNU) if the first bit is set; None if it is invalid."""
    text = header[124:136]
    if text[0] & 0x80:
        return None if text[0] & 0x40 else int.from_bytes(bytes([text[0] & 0x3F]) + text[1:], "big")
    return _number(text, 8)


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _extend(extension: _Extension, kind: bytes, file: BinaryIO, size: int) -> None:
    """Reads the data of a header that extends the next one."""
    if kind in (_LONG_LINK, _PAX_GLOBAL):
        return  # links are not read, and a name or size for all members would make no sense
    if size > _MAX_EXTENSION_BYTES:
        extension.problem = f"its extended header has {size:,} bytes"
        return
    data = file.read(size)
    if kind == _LONG_NAME:
        extension.name = data.split(b"\0")[0]
        return
    values = _pax(data)
    if values is None:
        extension.problem = "its extended header is damaged"
        return
    extension.pax.update(values)
    extension.name = extension.pax.get(b"path", extension.name)


def _pax(data: bytes) -> dict[bytes, bytes] | None:
    """The values of an extended header, `LENGTH KEY=VALUE\\n` each; None if it is damaged."""
    values: dict[bytes, bytes] = {}
    position = 0
    while position < len(data) and data[position]:
        space = data.find(b" ", position, position + _MAX_DIGITS)
        length = _number(data[position:space], 10) if space > position else None
        if length is None or length <= space - position + 1 or data[position + length - 1 : position + length] != b"\n":
            return None
        key, equals, value = data[space + 1 : position + length - 1].partition(b"=")
        if not equals:
            return None
        values[key] = value
        position += length
    return values


def _name(header: bytes | None, extended: bytes | None) -> str:
    if extended is not None:
        return extended.decode("utf-8", "backslashreplace")
    assert header is not None
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "backslashreplace")
