"""Bounded work, whatever the bytes: files that are small and ask for much."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from align.pairs import picture, picture_process
from align.pairs.picture import PictureError, decode, read_header
from align.pairs.picture_header import MAX_SCANS
from tests.support.hostile_pictures import chunk, encoded, icon, png, progressive, webp_canvas

MAX_PIXELS = 100_000_000
SMALL_JPEG = encoded(Image.new("RGB", (72, 72)), "JPEG")
TIFF = encoded(Image.new("RGB", (60, 40), "teal"), "TIFF")

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


MODES = {
    "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "I;16", "L"), "GIF": ("P", "L", "RGBA"),
    "WEBP": ("RGB", "RGBA"), "BMP": ("RGB", "RGBA", "P", "L"), "TIFF": ("RGB", "RGBA", "P", "I;16", "L", "CMYK"),
    "AVIF": ("RGB", "RGBA"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_a_helper_decodes_to_the_same_pixels(kind, mode, monkeypatch):
    image = Image.linear_gradient("L").resize((330, 170)).convert(mode if mode != "I;16" else "I").convert(mode)
    data = encoded(image, kind)
    opened = picture.open_picture(data, picture.outline(data))
    here = picture.rgb(opened, 64)
    monkeypatch.setattr(picture, "_MOST_WORK_HERE", {})
    monkeypatch.setattr(picture, "_MOST_INTRICATE_PIXELS_HERE", 0)
    there = decode(data, max_pixels=MAX_PIXELS, hint_px=64)
    assert (there.mode, there.size, there.tobytes()) == ("RGB", here.size, here.tobytes())


def test_a_picture_that_passes_the_deadline_is_an_error_and_the_next_one_decodes(monkeypatch):
    monkeypatch.setattr(picture_process, "_DEADLINE_CPU_S", 1)
    with pytest.raises(PictureError, match="did not decode within 1 s of CPU time"):
        decode(progressive(8000, MAX_SCANS - 10), max_pixels=MAX_PIXELS)
    assert decode(TIFF, max_pixels=MAX_PIXELS).getpixel((1, 1)) == (0, 128, 128)


def test_a_picture_that_takes_more_memory_than_it_said_is_an_error():
    large = encoded(Image.new("RGB", (6000, 6000)), "TIFF", compression="tiff_lzw")
    with picture_process.helper() as process:
        with pytest.raises(PictureError, match="takes more memory than its header says"):
            process.pixels(large, 1 << 20, None)
        assert process.pixels(TIFF, 1 << 20, None).size == (60, 40)


def test_a_crash_costs_one_picture():
    with picture_process.helper() as process:
        os.kill(process._process.pid, signal.SIGSEGV)
        with pytest.raises(PictureError, match=r"crashed its decoder \(SIGSEGV\)"):
            process.pixels(TIFF, 1 << 20, None)
    assert decode(TIFF, max_pixels=MAX_PIXELS).size == (60, 40)


def test_helpers_end_with_a_process_that_is_killed():
    code = "import os, sys; from align.pairs import picture, picture_process\n"
    code += "picture.read_header(sys.stdin.buffer.read())\n"
    code += "print(picture_process._idle[0]._process.pid, flush=True); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code], input=TIFF, stdout=subprocess.PIPE, timeout=200, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and Path(f"/proc/{pid}/stat").exists():
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return  # it has ended, and nobody has asked
        time.sleep(0.1)
    assert time.monotonic() < deadline


def test_threads_together_stay_within_the_budget():
    budget, held, peaks, lock = picture._Budget(100), [0], [0], threading.Lock()

    def work(size):
        for _ in range(20):
            with budget.hold(size):
                with lock:
                    held[0] += size
                    peaks.append(held[0])
                time.sleep(0.0002)
                with lock:
                    held[0] -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (10, 30, 50, 60, 90, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(peak for peak in peaks if peak != 250) <= 100
    assert 250 in peaks  # larger than the budget: alone
