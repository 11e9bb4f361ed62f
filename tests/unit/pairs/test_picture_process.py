"""A decoder in a process of its own: the same pixels, bounded work, and nothing else for bytes that take it over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from align.pairs import picture, picture_process
from align.pairs.picture import PictureError, decode
from align.pairs.picture_header import MAX_SCANS, outline
from align.pairs.picture_pixels import open_picture, rgb
from tests.support.hostile_pictures import encoded, progressive

MAX_PIXELS = 100_000_000
TIFF = encoded(Image.new("RGB", (60, 40), "teal"), "TIFF")

#: Tries each of these in a confined process, and prints what came of it.
ATTACKS = """
import json, os, resource, socket, sys
from align.pairs.picture_process import _confine
parent, shown = sys.argv[1], os.dup(1)
attacks = {
    "read a file": lambda: open("/etc/passwd").read(),
    "read the environment": lambda: open(f"/proc/{parent}/environ", "rb").read(),
    "write a file": lambda: open("planted", "w").write("x"),
    "connect": lambda: socket.socket().connect(("127.0.0.1", 9)),
    "send a datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
    "another descriptor": lambda: os.dup(0),
    "more descriptors": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (99, resource.RLIM_INFINITY)),
}
_confine(resource)
seen = {}
for name, attack in attacks.items():
    try:
        attack()
        seen[name] = "done"
    except (OSError, ValueError) as error:
        seen[name] = getattr(error, "strerror", str(error))
os.write(shown, json.dumps(seen).encode())
os._exit(0)
"""


def test_a_confined_process_opens_nothing(tmp_path):
    command = [sys.executable, "-c", ATTACKS, str(os.getpid())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    assert not [*tmp_path.iterdir()]
    seen = json.loads(done.stdout)
    if os.getuid():  # root may raise its own limits
        assert seen["more descriptors"] == "not allowed to raise maximum limit"  # EPERM, as Python says it
    del seen["more descriptors"]
    assert len(seen) == 6 and set(seen.values()) == {"Too many open files"}, seen


def test_a_helper_is_confined_and_inherits_no_secret(monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "align:secret")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/this/python")
    helper = picture_process.Helper()
    try:
        kept = Path(f"/proc/{helper._process.pid}")
        if kept.is_dir():
            assert kept.joinpath("environ").read_bytes() == b"LD_LIBRARY_PATH=/of/this/python\0"
            limits = {
                line[:25].strip(): line[25:].split()[:2] for line in kept.joinpath("limits").read_text().splitlines()
            }
            assert limits["Max file size"] == limits["Max core file size"] == ["0", "0"]
            assert len({*limits["Max open files"]}) == 1 and int(limits["Max open files"][0]) < 20
    finally:
        helper.end()


MODES = {
    "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "I;16", "L"), "GIF": ("P", "L", "RGBA"),
    "WEBP": ("RGB", "RGBA"), "BMP": ("RGB", "RGBA", "P", "L"), "TIFF": ("RGB", "RGBA", "P", "I;16", "L", "CMYK"),
    "AVIF": ("RGB", "RGBA"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_a_helper_decodes_to_the_same_pixels(kind, mode, monkeypatch):
    image = Image.linear_gradient("L").resize((330, 170)).convert(mode if mode != "I;16" else "I").convert(mode)
    data = encoded(image, kind)
    opened = open_picture(data, outline(data))
    here = rgb(opened, 64)
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
