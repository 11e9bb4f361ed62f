"""A web archive with one of everything that a hostile author writes goes from ingest to search."""

import gzip
import hashlib
import io
import json
import struct
import subprocess
import threading
import time
import zlib
from collections import Counter
from contextlib import suppress
from functools import cache

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from align.config.params import write_params
from align.pairs.text import MAX_CHARACTERS
from tests.support import thinned, warm
from tests.support.hostile_pictures import icon, png, progressive
from tests.support.params import PARAMS_FILE, load_params
from tests.support.pictures import blurred_png
from tests.support.reading import raw_rows
from tests.support.small_checkout import REDUCED
from tests.support.warc_records import page, png_header, record, response, write_archive

MAX_BYTES = 1_500_000_000
STAGES = (
    "ingest", "filter", "validate", "shard", "validate_shards", "fit_tokenizer", "pretrain", "evaluate", "package",
    "index",
)  # fmt: skip
SITE = "https://hostile.example"
_BLOCK = 1 << 24


@cache
def zeros_gzip(num_bytes):
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


def jpeg(size, *, orientation=None):
    """A JPEG with smooth colours."""
    image = Image.open(io.BytesIO(blurred_png(7, size)))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, exif=exif)
    return buffer.getvalue()


def webp_header(side_px):
    """50 bytes that claim a lossless WebP of this side."""
    bits = (side_px - 1) | (side_px - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes(25)
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def grey_png_16_bit(size):
    """A gradient in 16-bit grey."""
    width, height = size
    buffer = io.BytesIO()
    Image.fromarray(np.tile(np.linspace(0, 65535, width, dtype=np.uint16), (height, 1))).save(buffer, "PNG")
    return buffer.getvalue()


def damaged_avif():
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
def pictures():
    """Name -> bytes of each hostile or odd picture."""
    return {
        "scans.jpg": progressive(4000, 2000), "within-the-limit.png": png(9_900),
        "beyond-the-limit.png": png_header(50_000, 50_000), "large.ico": icon(png(4_000)),
        "huge.ico": icon(png_header(50_000, 50_000)), "claims.webp": webp_header(16_383),
        "grey-16.png": grey_png_16_bit((260, 240)), "portrait.jpg": jpeg((320, 240), orientation=6),
        "damaged.avif": damaged_avif(), "postscript.jpg": EPS, "cut.jpg": jpeg((400, 300))[:3000],
        "empty.gif": b"GIF89a\0\0\0\0\0\0\0;", "zip.png": b"PK\x03\x04" + bytes(200), "nothing.jpg": b"",
    }  # fmt: skip


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


ONE_IMAGE = '<img src="/ordinary-1.png" alt="a blue circle on the water">'


def pages():
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


def records(num_ordinary):
    """The records of the archive, uncompressed: ordinary pages, and one of everything above."""
    colours, shapes, places = ("red", "blue", "green"), ("circle", "square", "star"), ("water", "grass", "snow")
    made = []
    for number in range(num_ordinary):
        text = f"a {colours[number % 3]} {shapes[number // 3 % 3]} on the {places[number // 9 % 3]}"
        url = f"{SITE}/ordinary-{number}.png"
        made.append(page(f"{SITE}/{number}.html", f'<img src="{url}" alt="{text}">'))
        made.append(response(url, blurred_png(number, (230, 240)), "image/png"))
    for number, (name, text) in enumerate(TEXTS.items()):
        shown = text.replace('"', "&quot;") if name == "formula" else text
        made.append(page(f"{SITE}/text/{name}.html", f'<img src="/text-{name}.png" alt="{shown}">'))
        made.append(response(f"{SITE}/text-{name}.png", blurred_png(10_000 + number, (230, 240)), "image/png"))
    for name, html in pages().items():
        made.append(page(f"{SITE}/page/{name}.html", html))
    names = pictures()
    html = "".join(f'<img src="/{name}" alt="a red circle on the {name}">' for name in names)
    made.append(page(f"{SITE}/pictures.html", html))
    made += [response(f"{SITE}/{name}", data, "image/png") for name, data in names.items()]
    moved = b"HTTP/1.1 302 Found\r\nLocation: https://opted-out.example/a.png\r\nContent-Length: 0\r\n\r\n"
    twice = gzip.compress(zeros_gzip(1 << 31), mtime=0)
    made += [
        page(f"{SITE}/moved.html", '<img src="/moved.png" alt="a red circle on the moved">'),
        record("response", f"{SITE}/moved.png", moved, "application/http; msgtype=response"),
        response("https://opted-out.example/a.png", blurred_png(4242, (230, 240)), "image/png"),
        page(f"{SITE}/gzip.html", zeros_gzip(1 << 31), headers="Content-Encoding: gzip\r\n"),
        page(f"{SITE}/gzip-gzip.html", twice, headers="Content-Encoding: gzip, gzip\r\n"),
        page(f"{SITE}/coding.html", ONE_IMAGE, headers="Content-Encoding: none\r\n"),
        page("javascript:alert(1)", ONE_IMAGE),
        page(f"{SITE}/\x1b[2Jpage.html", ONE_IMAGE),
    ]  # fmt: skip
    return made


class Peak:
    """The most memory that a command and its children held together, looked at 20 times a second.

    What they share is counted once only where they would hold too much otherwise: to ask costs ten times as much.
    """

    def __init__(self):
        self.num_bytes = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self):
        while not self._end.wait(0.05):
            family = warm.processes()
            total = _sum(family, lambda process: process.memory_info().rss)
            if total >= MAX_BYTES:
                total = _sum(family, lambda process: process.memory_full_info().pss)
            self.num_bytes = max(self.num_bytes, total)

    def stop(self):
        self._end.set()
        self._thread.join()
        return self.num_bytes


def _sum(family, size):
    total = 0
    for process in family:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += size(process)
    return total


@pytest.fixture(scope="module")
def project(tmp_path_factory, sample):
    root = tmp_path_factory.mktemp("hostile")
    write_archive(root / "hostile.warc.gz", records(48))
    evaluation = root / "evaluation"
    evaluation.mkdir()
    thinned.write(sample / "evaluation/classes.json", evaluation, lambda number, key: number % 64 == 0)
    policy = root / "data/policy"
    policy.mkdir(parents=True)
    (policy / "opted_out.csv").write_text("kind,value,reason,added\nhost,opted-out.example,asked,2026-01-01\n")
    (root / "params.yaml").write_bytes(PARAMS_FILE.read_bytes())
    bands = {reason: [0.0, 1.0] for reason in load_params().values["validate"]["dropped_share"]}
    write_params(root / "params.yaml", {
        **REDUCED, "ingest.max_pages": None, "paths.archive": "hostile.warc.gz", "paths.evaluation": "evaluation",
        "paths.finetuned": "models/pretrained",  # fine-tuning meets no other bytes
        "index.queries": None, "engine.num_workers": 2, "pretrain.num_steps": 4, "pretrain.warmup_steps": 0,
        "pretrain.validate_every_steps": 4, "validate.min_pairs": 10, "validate.min_success_share": 0.0,
        "validate.keep_rate": [0.0, 1.0], "validate.dropped_share": bands, "shard.val_fraction": 0.0,
        "shard.test_fraction": 0.0, "filter.max_images_per_text": 1000, "filter.drop_filenames": False,
    })  # fmt: skip
    return root


def align(root, *arguments):
    """Runs `align`; what it printed, and its peak memory."""
    command = [str(warm.commands() / "align"), *arguments]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        peak = Peak()
        try:
            out, err = process.communicate(timeout=250)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            num_bytes = peak.stop()
    return subprocess.CompletedProcess(command, process.returncode, out, err), num_bytes


@pytest.fixture(scope="module")
def printed(project):
    """What the stages print, all of which pass."""
    printed = b""
    for stage in STAGES:
        began = time.monotonic()
        done, num_bytes = align(project, stage)
        print(f"{stage}: {time.monotonic() - began:.1f} s, {num_bytes / 1e6:,.0f} MB")  # shown with -s, or if it fails
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
        assert 0 < num_bytes < MAX_BYTES, stage
        printed += done.stdout + done.stderr
    return printed


@pytest.fixture
def made(project, printed):
    """The project after its stages."""
    return project


def test_from_ingest_to_search(project, printed):
    for query in (["red circle"], ["--image", str(project / "query.jpg")]):
        (project / "query.jpg").write_bytes(jpeg((320, 240), orientation=6))
        done, num_bytes = align(project, "search", *query)
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
        assert 0 < num_bytes < MAX_BYTES
        printed += done.stdout + done.stderr
    assert b"\x1b" not in printed
    assert "\u202e".encode() not in printed
    assert not list(project.rglob("hostile-eps-ran"))


def rows(project):
    return raw_rows(project / "data/raw")


def decisions(project):
    return {row["key"]: row for row in pq.read_table(project / "data/filtered/decisions").to_pylist()}


def test_every_odd_picture_is_a_row_with_a_reason(made):
    shown = {row["url"].rpartition("/")[2]: row for row in rows(made) if row["page_url"].endswith("pictures.html")}
    assert set(shown) == set(pictures())
    messages = {name: (row["error_message"] or "").partition(":")[0] for name, row in shown.items()}
    undecodable = ("large.ico", "huge.ico", "postscript.jpg", "empty.gif", "zip.png")
    assert messages == {
        "scans.jpg": "too many scans", "nothing.jpg": "bytes cannot be read",
        **dict.fromkeys(("beyond-the-limit.png", "claims.webp"), "too many pixels"),
        **dict.fromkeys(undecodable, "not a picture that we decode"),
        # their headers are good; the filter decodes them
        **dict.fromkeys(("within-the-limit.png", "grey-16.png", "portrait.jpg", "damaged.avif", "cut.jpg"), ""),
    }  # fmt: skip
    decided = decisions(made)
    reasons = {name: decided[row["key"]]["reason"] for name, row in shown.items() if not row["error_message"]}
    assert reasons == dict.fromkeys(("within-the-limit.png", "grey-16.png", "portrait.jpg")) | dict.fromkeys(
        ("damaged.avif", "cut.jpg"), "image_undecodable"
    )
    assert (shown["portrait.jpg"]["width"], shown["portrait.jpg"]["height"]) == (240, 320)


def test_every_odd_page_is_read_or_counted(made):
    report = json.loads((made / "reports/ingest/report.json").read_text())
    # 100,000 attributes, 200,000 tags, gzip, gzip in gzip; a coding that nobody knows is no hindrance
    assert (report["counts"]["pages_too_large"], report["counts"].get("pages_unreadable")) == (4, None)
    assert report["counts"]["pages_coding_unknown"] == 1
    pages = Counter(row["page_url"].rpartition("/")[2] for row in rows(made) if "/page/" in row["page_url"])
    assert pages == {"figure.html": 4000, "picture.html": 2000, "binary.html": 100, "figures.html": 1, "srcset.html": 1}


def test_a_redirect_to_an_opted_out_host_is_refused(made):
    moved = next(row for row in rows(made) if row["url"].endswith("/moved.png"))
    assert (moved["status"], moved["error_message"], moved["caption"]) == ("failed_to_download", "opted out", "")
    forbidden = hashlib.sha256(blurred_png(4242, (230, 240))).hexdigest()
    assert forbidden not in {row["sha256"] for row in rows(made)}


def test_texts_are_kept_as_they_are_and_endless_ones_are_dropped(made):
    decided = decisions(made)
    texts = {row["page_url"].rpartition("/")[2]: row for row in rows(made) if "/text/" in row["page_url"]}
    assert {name.removesuffix(".html") for name in texts} == set(TEXTS)
    reasons = {name: decided[row["key"]]["reason"] for name, row in texts.items()}
    assert {name for name, reason in reasons.items() if reason is not None} == {"one-word.html", "marks.html"}
    assert max(len(row["caption"]) for row in texts.values()) == MAX_CHARACTERS
    assert texts["mathematics.html"]["caption"] == TEXTS["mathematics"]
