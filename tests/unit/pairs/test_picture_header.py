"""Bounded work, whatever the bytes: files that are small and ask for much."""

import struct
import subprocess
import sys
import time
import zlib

import pytest
from PIL import Image

from align.pairs import picture
from align.pairs.picture import PictureError, decode, read_header
from align.pairs.picture_header import MAX_SCANS
from tests.support.hostile_pictures import chunk, encoded, icon, png, progressive, webp_canvas

MAX_PIXELS = 100_000_000
SMALL_JPEG = encoded(Image.new("RGB", (72, 72)), "JPEG")

DECODE_WITHIN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from align.pairs import picture, picture_process
data = sys.stdin.buffer.read()
try:
    picture.read_header(data)
    print(picture.decode(data, max_pixels=100_000_000, hint_px=int(sys.argv[2]) or None).size)
except picture.PictureError as error:
    print(error)
peak = 0
for pid in ["self", *(str(helper._process.pid) for helper in picture_process._idle)]:
    status = open(f"/proc/{pid}/status").read()  # getrusage also counts the process that forked this one
    peak += int(status.partition("VmHWM:")[2].split()[0]) * 1024
print(peak)
"""


def decoded_within(data, limit, hint_px=256):
    """What a process with limited memory says of a picture; and its peak, with that of its helper, in bytes."""
    command = [sys.executable, "-c", DECODE_WITHIN, str(limit), str(hint_px)]
    done = subprocess.run(command, input=data, capture_output=True, check=True, timeout=250)
    said, peak = done.stdout.decode().splitlines()
    return said, int(peak)


def test_an_icon_of_many_megapixels_is_refused_before_it_is_decoded():
    said, peak = decoded_within(icon(png(8000, 2)), 1 << 30)
    assert said == "not a picture that we decode"
    assert peak < 200e6


def test_a_transparent_picture_of_100_megapixels_takes_well_under_a_gigabyte():
    said, peak = decoded_within(png(10_000), 1 << 30)
    assert said == "(1250, 1250)"
    assert peak < 700e6


@pytest.mark.parametrize(("side_px", "words"), [(16_000, "too many pixels"), (10_000, "too much memory")])
def test_the_canvas_of_a_webp_is_known_before_its_decoder_makes_it(side_px, words):
    said, peak = decoded_within(webp_canvas(side_px), 1 << 29)
    assert words in said
    assert peak < 200e6


def test_scans_are_counted_before_decoding(monkeypatch):
    assert decode(progressive(64, MAX_SCANS - 10), max_pixels=MAX_PIXELS).size == (64, 64)
    for decoder in ("open_picture", "rgb", "helper"):
        monkeypatch.delattr(picture, decoder)
    for act in (read_header, lambda data: decode(data, max_pixels=MAX_PIXELS)):
        with pytest.raises(PictureError, match="too many scans: 20,010"):
            act(progressive(1000, 20_000))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (SMALL_JPEG[:2] + b"\xff\xe1\0\x0aExif\0\0AB" * 400_000 + SMALL_JPEG[2:], "segments"),
        (SMALL_JPEG[:2] + b"\xff\xe1\0\x08Exif\0\0" + b"\xff" * 20_000_000 + SMALL_JPEG[2:], "bytes between"),
        (png(8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 20), 9)) * 3000), "compressed texts"),
        (png(8, 2, chunk(b"IDAT", b"") * 1_000_000), "chunks"),
        (b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"\x21\xfe\0" * 2_000_000 + b",", "blocks"),
    ],
    ids=["EXIF in 400,000 segments", "padding", "3,000 profiles", "a million chunks", "two million comments"],
)  # fmt: skip
def test_a_header_of_too_many_parts_is_refused_in_no_time(data, words):
    start = time.thread_time()
    with pytest.raises(PictureError, match=words):
        read_header(data)
    assert time.thread_time() - start < 2
