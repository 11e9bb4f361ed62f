"""What the bytes of a picture say about themselves, read by our own code before a decoder sees them.

Some decoders allocate a picture's pixels, or work for minutes, as soon as they are given its bytes. So what decides the
cost is read here, with almost no memory and in time proportional to the bytes: the format, the canvas of a WebP, how
many scans a JPEG has, and how many parts a header has that Pillow would read one by one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: All formats that this project decodes, as Pillow calls them: those that browsers show, and TIFF. No EPS or WMF, which
#: start other programs. No ICO: Pillow decodes icons before their size is known, and icons are not pictures with a
#: text. No PPM: no browser shows it, and its plain-text kind is decoded by Python code.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")

#: Encoders write about 10 scans into a progressive JPEG, or up to about 20 if they search for the smallest file. The
#: standard allows any number, and a scan that changes nothing takes a few bytes and half a nanosecond per pixel.
MAX_SCANS = 100

#: Pillow reads the parts of a header one by one, some of them in quadratic time. Real files have less than a hundred.
_MAX_SEGMENTS = 4096
#: Bytes between the segments of a JPEG, which Pillow skips one by one.
_MAX_JUNK_BYTES = 1 << 20
#: Real PNGs have one chunk of pixels per 8 KiB, or one per row; Pillow takes two microseconds for each.
_MAX_CHUNKS = 100_000
#: Compressed texts and profiles of a PNG: Pillow inflates each to as much as a megabyte.
_COMPRESSED_CHUNKS = (b"iCCP", b"zTXt", b"iTXt")
_MAX_COMPRESSED_CHUNKS = 100
#: Blocks of up to 255 bytes before the first frame of a GIF.
_MAX_BLOCKS = 100_000

_UNKNOWN = "not a picture that we decode"


class PictureError(Exception):
    """We cannot decode these bytes as a picture; the message says why. Callers record it in a row."""


@dataclass(frozen=True)
class Outline:
    """What is known about a picture before a decoder opens it.

    Attributes:
        format: one of FORMATS.
        orientation: EXIF's number, 1 to 8: how the stored pixels must be turned to be seen upright.
        num_scans: how often the decoder goes over the pixels; 1 except for progressive JPEGs and the like.
        size: width and height as stored, for WebP and JPEG only. Decoders of the other formats tell it without
            allocating pixels.
        intricate: a WebP that is lossless, transparent or animated. Such a picture may have 65,000 tables of codes, and
            a megapixel then takes 300 MB.
    """

    format: str
    orientation: int = 1
    num_scans: int = 1
    size: tuple[int, int] | None = None
    intricate: bool = False


def outline(data: bytes) -> Outline:
    """Reads the outline of a file.

    Raises:
        PictureError: the bytes are of no format that we decode, or their header is broken or out of all proportion.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (IndexError, struct.error):
        raise PictureError(_UNKNOWN) from None
    if data.startswith(b"BM"):
        return Outline("BMP")
    if data[:4] in (b"II\x2a\x00", b"MM\x00\x2a", b"II\x00\x2a", b"MM\x2a\x00", b"II\x2b\x00", b"MM\x00\x2b"):
        return Outline("TIFF")
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return Outline("AVIF")
    raise PictureError(_UNKNOWN)


def exif_orientation(exif: bytes) -> int:
    """The orientation in the first directory of EXIF data (a TIFF header and what follows); 1 if there is none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (first,) = struct.unpack_from(order + "I", exif, 4)
    if first + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, first)
    for entry in range(first + 2, min(first + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == 0x0112:
            (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), exif, entry + 8)
            return int(value) if 1 <= value <= 8 else 1
    return 1


def _jpeg(data: bytes) -> Outline:
    position, junk, orientation = 2, 0, None
    size, num_components, progressive = (0, 0), 0, False
    for _ in range(_MAX_SEGMENTS):
        start = data.find(b"\xff", position)
        if start < 0:
            raise PictureError(_UNKNOWN)
        at = start + 1
        while data[at] == 0xFF and at - start <= _MAX_JUNK_BYTES:
            at += 1
        junk += at - 1 - position
        if junk > _MAX_JUNK_BYTES:
            raise PictureError(f"broken header: more than {_MAX_JUNK_BYTES:,} bytes between its segments")
        marker, position = data[at], at + 1
        if marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # no length follows
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker == 0xDA:
            in_scan = data[position + 2]
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, num_components = struct.unpack_from(">HHB", data, position + 3)
            size, progressive = (width, height), marker in (0xC2, 0xC6, 0xCA, 0xCE)
        elif marker == 0xE1 and orientation is None and data[position + 2 : position + 8] == b"Exif\0\0":
            orientation = exif_orientation(data[position + 8 : position + length])
        position += max(2, length)
    else:
        raise PictureError(f"broken header: more than {_MAX_SEGMENTS:,} segments before its pixels")
    # In a scan, 0xFF is followed by 0 or a restart marker, so this counts every scan; a picture that follows the first
    # one in the file (a preview, a gain map) makes it too high by a few.
    many = progressive or in_scan < num_components
    num_scans = data.count(b"\xff\xda", position - 2) if many else 1
    if num_scans > MAX_SCANS:
        raise PictureError(f"too many scans: {num_scans:,}; real pictures have about 10, we decode {MAX_SCANS}")
    return Outline("JPEG", orientation or 1, max(1, num_scans), size)


def _png(data: bytes) -> Outline:
    position, orientation, num_compressed = 8, 1, 0
    for _ in range(_MAX_CHUNKS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            break
        if kind == b"eXIf":
            orientation = exif_orientation(data[position + 8 : position + 8 + length])
        elif kind in _COMPRESSED_CHUNKS:
            num_compressed += 1
        position += 12 + length
    else:
        raise PictureError(f"broken PNG: more than {_MAX_CHUNKS:,} chunks")
    if num_compressed > _MAX_COMPRESSED_CHUNKS:
        raise PictureError(f"broken PNG: {num_compressed:,} compressed texts and profiles")
    return Outline("PNG", orientation)


def _gif(data: bytes) -> Outline:
    """A GIF has no orientation; this checks only that its first frame is near."""
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    num_blocks = 0
    while position < len(data) and data[position] not in b",;":
        extension = data[position] == 0x21
        position += 2 if extension else 1
        num_blocks += 1
        while extension and position < len(data) and data[position] and num_blocks <= _MAX_BLOCKS:
            position += 1 + data[position]
            num_blocks += 1
        position += extension
        if num_blocks > _MAX_BLOCKS:
            raise PictureError(f"broken GIF: more than {_MAX_BLOCKS:,} blocks before its first frame")
    return Outline("GIF")


def _webp(data: bytes) -> Outline:
    kind, orientation, intricate = data[12:16], 1, True
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        intricate = False
    elif kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        orientation, intricate = _webp_chunks(data)
    else:
        raise PictureError(_UNKNOWN)
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        raise PictureError("broken header: the file is cut off")
    return Outline("WEBP", orientation, size=(width, height), intricate=intricate)


def _webp_chunks(data: bytes) -> tuple[int, bool]:
    """Orientation, and whether the picture is intricate. Only the first chunks of an animation are read."""
    position, orientation, intricate = 30, 1, True
    for _ in range(_MAX_SEGMENTS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            orientation = exif_orientation(data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0"))
        elif kind == b"VP8 ":
            intricate = bool(data[20] & 0x12)  # transparent, animated
        position += 8 + length + (length & 1)
    return orientation, intricate
