"""Web pages and pictures as someone would write them who wants to stop an ingest, each kind once."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

from tests.support import warc_records
from tests.support.pictures import blurred_png

SITE = "https://hostile.example"
_BLOCK = 1 << 24


@cache
def zeros_gzip(num_bytes: int) -> bytes:
    """A gzip member of that many zeros, a multiple of 16 MiB: made of equal pieces, so it takes no time to make."""
    block, count = bytes(_BLOCK), num_bytes // _BLOCK
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    check = 0
    for _ in range(count):
        check = zlib.crc32(block, check)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    head = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff"
    return head + piece * count + end + struct.pack("<II", check, count * _BLOCK & 0xFFFFFFFF)


def jpeg(size: tuple[int, int], *, progressive: bool = False, orientation: int | None = None) -> bytes:
    """A JPEG with smooth colours."""
    image = Image.open(io.BytesIO(blurred_png(7, size)))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, progressive=progressive, exif=exif)
    return buffer.getvalue()


def jpeg_of_many_scans(num_scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition is decoded again."""
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 4000), "red").save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * num_scans + b"\xff\xd9"


def transparent_png(side_px: int) -> bytes:
    """A square RGBA PNG without content: 400 megabytes of pixels at 10,000 px."""
    rows = zlib.compressobj(9)
    row = bytes(1 + 4 * side_px)
    packed = b"".join(rows.compress(row) for _ in range(side_px)) + rows.flush()
    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def icon_of(png: bytes) -> bytes:
    """An ICO that says 32 x 32 and holds a PNG of any size."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 32, 32, 0, 0, 1, 32, len(png), 22) + png


def webp_header(side_px: int) -> bytes:
    """50 bytes that claim a lossless WebP of this side."""
    bits = (side_px - 1) | (side_px - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes(25)
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def grey_png_16_bit(size: tuple[int, int]) -> bytes:
    """A gradient in 16-bit grey."""
    width, height = size
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.linspace(0, 65535, width, dtype=np.uint16), (height, 1))).save(buffer, "PNG")
    return buffer.getvalue()


def damaged_avif() -> bytes:
    """An AVIF whose pixels are overwritten."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(blurred_png(3, (300, 300)))).save(buffer, "AVIF")
    data = bytearray(buffer.getvalue())
    data[len(data) // 2 :] = b"\xa5" * (len(data) - len(data) // 2)
    return bytes(data)


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 300\n%%EndComments\n"
    b"(%pipe%touch hostile-eps-ran) (w) file closefile\nshowpage\n%%EOF\n"
)


@cache
def pictures() -> dict[str, bytes]:
    """Name -> bytes of each hostile or odd picture."""
    return {
        "scans.jpg": jpeg_of_many_scans(2000),
        "within-the-limit.png": transparent_png(9_900),
        "beyond-the-limit.png": warc_records.png_header(50_000, 50_000),
        "large.ico": icon_of(transparent_png(4_000)),
        "huge.ico": icon_of(warc_records.png_header(50_000, 50_000)),
        "claims.webp": webp_header(16_383),
        "grey-16.png": grey_png_16_bit((260, 240)),
        "portrait.jpg": jpeg((320, 240), orientation=6),
        "damaged.avif": damaged_avif(),
        "postscript.jpg": EPS,
        "cut.jpg": jpeg((400, 300))[:3000],
        "empty.gif": b"GIF89a\0\0\0\0\0\0\0;",
        "zip.png": b"PK\x03\x04" + bytes(200),
        "nothing.jpg": b"",
    }


#: Name -> alternative text. Each is the text of an ordinary picture.
TEXTS = {
    "mathematics": "was $50% now $40% today",
    "script": "a red <script>alert(1)</script> circle",
    "escape": "a red \x1b]0;owned\x07\x1b[2J circle",
    "bidi": "a red \u202ecircle\u2066 here",
    "surrogate": "a red &#xD800; circle",
    "one-word": "a red " + "x" * 500_000,
    "marks": "a red " + "\u0315\u0300" * 40_000,
    "formula": '=HYPERLINK("http://127.0.0.1/","a red circle")',
    "newline": "a red\nalign: error: not ours\ncircle",
    "nul": "a red\0circle here",
}


def pages() -> dict[str, str]:
    """Name -> HTML of each page that costs a naive parser more than its size."""
    image = '<img src="/ordinary-0.png" alt="a red circle">'
    return {
        "figure": "<figure>" + image * 4_000 + "<figcaption>a red circle</figcaption></figure>",
        "picture": "<picture>" + '<source srcset="/ordinary-0.png 2x">' * 2_000 + image * 2_000 + "</picture>",
        "attributes": "<img " + " ".join(f"a{number}=1" for number in range(100_000)) + ' src="/x.png" alt="a">',
        "deep": "<div>" * 200_000 + image,
        "figures": "<figure>" * 3_000 + image,
        "srcset": '<img alt="a red circle" srcset="' + "/ordinary-0.png 1x, " * 50_000 + '">',
        "binary": "<img src=\0\x01 alt=\ufffe>" * 100,
    }


def records(num_ordinary: int) -> list[bytes]:
    """The records of the archive, uncompressed: ordinary pages, and one of everything above."""
    colours, shapes, places = ("red", "blue", "green"), ("circle", "square", "star"), ("water", "grass", "snow")
    made = []
    for number in range(num_ordinary):
        text = f"a {colours[number % 3]} {shapes[number // 3 % 3]} on the {places[number // 9 % 3]}"
        url = f"{SITE}/ordinary-{number}.png"
        made.append(warc_records.page(f"{SITE}/{number}.html", f'<img src="{url}" alt="{text}">'))
        made.append(warc_records.response(url, blurred_png(number, (230, 240)), "image/png"))
    for number, (name, text) in enumerate(TEXTS.items()):
        shown = text.replace('"', "&quot;") if name == "formula" else text
        html = f'<img src="/text-{name}.png" alt="{shown}">'
        made.append(warc_records.page(f"{SITE}/text/{name}.html", html))
        made.append(
            warc_records.response(f"{SITE}/text-{name}.png", blurred_png(10_000 + number, (230, 240)), "image/png")
        )
    for name, html in pages().items():
        made.append(warc_records.page(f"{SITE}/page/{name}.html", html))
    names = pictures()
    html = "".join(f'<img src="/{name}" alt="a red circle on the {name}">' for name in names)
    made.append(warc_records.page(f"{SITE}/pictures.html", html))
    made += [warc_records.response(f"{SITE}/{name}", data, "image/png") for name, data in names.items()]
    moved = b"HTTP/1.1 302 Found\r\nLocation: https://opted-out.example/a.png\r\nContent-Length: 0\r\n\r\n"
    twice = gzip.compress(zeros_gzip(1 << 31), mtime=0)
    made += [
        warc_records.page(f"{SITE}/moved.html", '<img src="/moved.png" alt="a red circle on the moved">'),
        warc_records.record("response", f"{SITE}/moved.png", moved, "application/http; msgtype=response"),
        warc_records.response("https://opted-out.example/a.png", blurred_png(4242, (230, 240)), "image/png"),
        warc_records.page(f"{SITE}/gzip.html", zeros_gzip(1 << 31), headers="Content-Encoding: gzip\r\n"),
        warc_records.page(f"{SITE}/gzip-gzip.html", twice, headers="Content-Encoding: gzip, gzip\r\n"),
        warc_records.page(f"{SITE}/coding.html", image_page(), headers="Content-Encoding: none\r\n"),
        warc_records.page("javascript:alert(1)", image_page()),
        warc_records.page(f"{SITE}/\x1b[2Jpage.html", image_page()),
    ]  # fmt: skip
    return made


def image_page() -> str:
    """A page with one ordinary picture."""
    return '<img src="/ordinary-1.png" alt="a blue circle on the water">'
