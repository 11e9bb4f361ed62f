"""Small files that ask a decoder for much."""

import io
import struct
import zlib
from functools import cache

from PIL import Image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 72 72\n%%EndComments\nshowpage\n"


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@cache
def png(side_px, colour_type=6, extra=b""):
    """A square PNG of zeros, with more chunks before its pixels: 100 transparent megapixels in 389 kB."""
    row = bytes(1 + side_px * {2: 3, 6: 4}[colour_type])
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(side_px)) + packer.flush()
    header = struct.pack(">IIBBBBB", side_px, side_px, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def icon(data):
    """An ICO that says 256 x 256 and holds this PNG."""
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(data), 22) + data


def webp_canvas(side_px):
    """An animation of no frames on a large canvas, in 48 bytes."""
    sides = (side_px - 1).to_bytes(3, "little") * 2
    chunks = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + sides + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


@cache
def progressive(side_px, more_scans=0):
    """A square progressive JPEG of one colour, its last scan repeated."""
    data = encoded(Image.new("RGB", (side_px, side_px), "navy"), "JPEG", progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * more_scans + data[-2:]
