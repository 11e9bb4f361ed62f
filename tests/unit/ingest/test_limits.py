"""Archives and pages that would take gigabytes or minutes: their work is bounded, the rest of their file is read."""

import gzip
import io
import json
import subprocess
import sys
import time
import zlib
from collections import Counter

import pyarrow as pa
import pytest
from fastwarc.stream_io import ZstdWriter

from align.ingest.limits import MAX_TAG_ATTRIBUTES, MAX_TAGS, TooLarge, read_at_most
from align.ingest.sources.candidates import CANDIDATES, Candidate, bounded, num_cut
from align.ingest.sources.pages import PageImage, page_images
from align.ingest.sources.reading import Batches
from align.ingest.sources.rights import Rights
from align.pairs.text import MAX_CHARACTERS
from tests.support.reading import rows_of, source_at, without_outcomes
from tests.support.warc_records import brotli, page, picture, record, response, wat, write_archive, zstd

TEXTS = ("alt", "figcaption", "title", "aria-label")
SMALL = "max_record_bytes=100000"
GOOD = page("http://x/good", "<img src=good.png alt=good>")

#: Reads a source with 1.5 GB of address space, and prints the rows, the counts, and the most memory that it took in MB.
READ = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000,) * 2)
from collections import Counter
from align.ingest.sources.outcomes import HTTP_HEAD_TOO_LARGE, count_of
from tests.support.reading import rows_of, source_at, without_outcomes
counts = Counter()
source = source_at(sys.argv[1])
candidates, responses = rows_of(source, counts)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss counts the parent's
print(json.dumps([len(candidates), len(responses), counts, int(peak.split()[1]) / 1000]))
"""


def images(html):
    return page_images(html.encode() if isinstance(html, str) else html, "http://x/", None, TEXTS)[0]


def read_in_a_child(path):
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    num_candidates, num_responses, counts, peak_mb = json.loads(done.stdout)
    return num_candidates, num_responses, counts, peak_mb


def zeros(num_mb, start=b"", end=b""):
    """Gzip of `start`, MiBs of zero bytes and `end`: one compressed MiB, repeated."""

    def packed(data, flush=zlib.Z_FULL_FLUSH):
        packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        return packer.compress(data) + packer.flush(flush)

    mb, checksum = bytes(1 << 20), zlib.crc32(start)
    for _ in range(num_mb):
        checksum = zlib.crc32(mb, checksum)
    size = len(start) + (num_mb << 20) + len(end)
    trailer = zlib.crc32(end, checksum).to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little")
    head = bytes.fromhex("1f8b08000000000000ff")
    return head + packed(start) + packed(mb) * num_mb + packed(end, zlib.Z_FINISH) + trailer


def test_a_bomb_of_a_kilobyte_is_a_page_that_is_too_large(tmp_path):
    """Gzip in gzip: 768 MiB in a few kilobytes."""
    inner = zeros(768)
    path = tmp_path / "a.warc.gz"
    bomb = page("http://x/bomb", inner, headers="Content-Encoding: gzip\r\n")
    path.write_bytes(gzip.compress(bomb) + gzip.compress(GOOD))
    assert path.stat().st_size < 6_000
    num_candidates, num_responses, counts, peak_mb = read_in_a_child(path)
    assert (num_candidates, num_responses) == (1, 2)
    assert without_outcomes(counts) == {"pages": 2, "pages_too_large": 1, "rows": 1}
    assert peak_mb < 600


def test_a_record_of_768_megabytes_is_skipped(tmp_path):
    num_mb = 768
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    head = page("http://x/bomb", "").partition(b"HTTP/1.1")[0]
    head = head.replace(b"Content-Length: ", b"Content-Length: %d\r\nX: " % ((num_mb << 20) + len(http)))
    path = tmp_path / "a.warc.gz"
    path.write_bytes(zeros(num_mb, head + http, b"\r\n\r\n") + gzip.compress(GOOD))
    num_candidates, num_responses, counts, peak_mb = read_in_a_child(path)
    assert (num_candidates, num_responses, counts["pages_too_large"]) == (1, 2, 1)
    assert peak_mb < 600


PACKERS = {
    "gzip": gzip.compress,
    "x-gzip, gzip": lambda data: gzip.compress(gzip.compress(data)),
    "deflate": zlib.compress,
    "br": brotli,
    "zstd": zstd,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", PACKERS)
def test_every_encoding_stops_at_the_bound(tmp_path, encoding):
    header = f"Content-Encoding: {encoding}\r\n"
    pack = PACKERS[encoding]
    html = b"<img src=a.png alt=A>"
    records = [
        page("http://x/most", pack(html.ljust(100_000)), headers=header),
        page("http://x/more", pack(html.ljust(100_001)), headers=header),
        response("http://x/most.png", pack(bytes(100_000)), "image/png", headers=header),
        response("http://x/more.png", pack(bytes(100_001)), "image/png", headers=header),
        GOOD,
    ]
    counts = Counter()
    source = source_at(write_archive(tmp_path / "a.warc.gz", records), SMALL)
    candidates, responses = rows_of(source, counts)
    assert [row["page_url"] for row in candidates] == ["http://x/most", "http://x/good"]
    assert without_outcomes(counts) == {"pages": 3, "pages_too_large": 1, "rows": 2}
    assert source.read(responses[2]["file"], responses[2]["offset"]) == bytes(100_000)
    with pytest.raises(TooLarge, match=r"too large: more than 100,000 bytes, see ingest\.max_record_bytes"):
        source.read(responses[3]["file"], responses[3]["offset"])


def test_chunks_and_a_chain_of_encodings(tmp_path):
    chunked = b"186a1\r\n" + bytes(100_001) + b"\r\n0\r\n\r\n"
    records = [
        page("http://x/chunks", chunked, headers="Transfer-Encoding: chunked\r\n"),
        page("http://x/lie", b"FFFFFFFFFFFF\r\nabc", headers="Transfer-Encoding: chunked\r\n"),
        page("http://x/chain", b"x", headers=f"Content-Encoding: {'gzip, ' * 1000}\r\n"),
        GOOD,
    ]  # fmt: skip
    counts = Counter()
    assert len(rows_of(source_at(write_archive(tmp_path / "a.warc.gz", records), SMALL), counts)[0]) == 1
    assert without_outcomes(counts) == {"pages": 4, "pages_too_large": 1, "pages_unreadable": 2, "rows": 1}


def test_read_at_most_holds_no_more():
    class Endless(io.RawIOBase):
        def __init__(self):
            self.num_bytes = 0

        def read(self, size=-1, /):
            self.num_bytes += min(size, 700)
            return bytes(min(size, 700))

    endless = Endless()
    with pytest.raises(TooLarge):
        read_at_most(endless, 10_000)
    assert endless.num_bytes == 10_001
    assert read_at_most(io.BytesIO(b"abc"), 3) == b"abc"


def test_a_dictionary_that_is_too_large(tmp_path):
    packed = io.BytesIO()
    with ZstdWriter(packed) as writer:
        for _ in range(17):
            writer.write(bytes(1 << 20))
    frame = packed.getvalue()
    path = tmp_path / "a.warc.zst"
    path.write_bytes(b"\x5d\x2a\x4d\x18" + len(frame).to_bytes(4, "little") + frame + zstd(GOOD))
    with pytest.raises(Exception, match=r"a\.warc\.zst: not a web archive \(too large"):
        rows_of(source_at(path))


#: Pages whose work once grew with the square of n (some with its cube), and an n of a second or so then.
GROWING = {
    "images in a figure": (lambda n: f"<figure>{'<img src=a>' * n}<figcaption>c</figcaption></figure>", 3000),
    "sources and images in a picture": (
        lambda n: f"<picture>{'<source srcset=b.png>' * n}{'<img src=a>' * n}</picture>",
        300,
    ),
    "figures, each after the last one's caption": (
        lambda n: f"<figure>{'<figure><img src=a><figcaption>c</figcaption></figure>' * n}",
        500,
    ),
    "images far inside": (lambda n: f"<figure>{'<div>' * n}{'<img src=a>' * n}<figcaption>c</figcaption>", 1000),
    "images far inside, no figure": (lambda n: f"{'<div>' * n}{'<img src=a>' * n}<figcaption>c</figcaption>", 1000),
    "formatting left open": (lambda n: f"<p>{''.join(f'<b a{i}>' for i in range(n))}</p>{'<p>x' * n}<img src=a>", 500),
    "formatting closed from afar": (lambda n: f"<b>{'<div>' * n}{'</b>' * n}<img src=a>", 2000),
}


@pytest.mark.parametrize("kind", GROWING)
def test_the_work_of_a_page_is_linear(kind):
    make, n = GROWING[kind]

    def spent_s(size):
        html, start = make(size), time.process_time()
        assert len(images(html)) >= 1
        return time.process_time() - start

    spent_s(10)  # whatever is imported or compiled at first use
    once = min(spent_s(n) for _ in range(3))
    assert min(spent_s(4 * n) for _ in range(2)) < 10 * max(once, 0.005)


def many_attributes(n):
    return " ".join(f"a{i}=1" for i in range(n))


REFUSED = {
    "tags": ("<img src=a>" * (MAX_TAGS + 1), "50,001 tags"),
    "attributes": (f"<img {many_attributes(100_000)}>", "more than 4,000 attributes"),
    "attributes after a comment that looks like a tag": (
        f"<!--<a b='--><img {many_attributes(100_000)}>'>", "more than 4,000 attributes"
    ),
    "attributes of a page": (f"<img src=a>{f'<i {many_attributes(3000)}>' * 300}", r"900,\d{3} attributes"),
    "attributes of repeated <html>": (
        "<img src=a>" + "".join(f"<html a{i}=1>" for i in range(40_000)), "cannot be told apart"
    ),
    "tags in tags": ("<img src=a>" + "<a<" * 20_000 + "a" * 1_000_000, "cannot be told apart"),
    "nested figures": ("<figure><img src=a><figcaption>c" * 100, "more than 32 figures inside each other"),
    "candidates": (f"<img srcset='{'a 1w,' * 300_000}'>", "more than 200,000 srcset candidates"),
    "a caption for each of many": (
        f"<figure>{'<img src=a>' * 8000}<figcaption>{'c' * 80_000}</figcaption></figure>", "repeat long texts"
    ),
    "zeros": ("<img src=a>" + "\0" * 2_000_000, "zero bytes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_pages_that_are_too_large(kind):
    html, reason = REFUSED[kind]
    start = time.process_time()
    with pytest.raises(TooLarge, match=f"^too large: .*{reason}"):
        images(html)
    assert time.process_time() - start < 10


def test_large_pages_that_are_usual():
    rows = "".join(f"<tr><td><a href='/{i}'><b>{i}</b></a><td><img src='{i}.png' alt='n {i}'>" for i in range(6000))
    script = "<script>for(i=0;i<n;i++){a[i]=b>c;}" + "x = [1, 2, 3];\n" * 10_000 + "</script>"
    inline = f"<img alt=inline src='data:image/png;base64,{'A' * 1_000_000}'>"
    found = images(f"<html lang=en><table>{rows}</table>{script}{inline * 3}")
    assert len(found) == 6003
    assert found[5999].text == "n 5999"
    assert len(images(f"<img {many_attributes(MAX_TAG_ATTRIBUTES - 10)} alt=x>")) == 1


def test_a_page_that_repeats_its_formatting_takes_little_memory(tmp_path):
    """HTML repeats 4,000 elements in each of 4,000 paragraphs: 16 million elements, 3 GB, from 60 kB."""
    html = f"<p>{''.join(f'<b a{i}>' for i in range(4000))}</p>{'<p>x' * 4000}<img src=a alt=A>"
    num_candidates, _, _, peak_mb = read_in_a_child(
        write_archive(tmp_path / "a.warc.gz", [page("http://x/", html), GOOD])
    )
    assert num_candidates == 2
    assert peak_mb < 600


def test_formatting_in_texts_and_addresses_stays_as_written():
    found = images(
        "<b>x<img src='a.png?<I >' alt='a <b>bold</b> <B >word</B> </i/> <bold> <b'>"
        "<figure><img src=b.png><figcaption>a <em>c</em>aption <a href=x>&lt;b></a></figcaption></figure>"
        "<a><picture></a><source srcset='<u >.png 2x'><img src=c.png alt=three></picture>"
        "<textarea><img src=no></textarea><s><figure></s><img src=d.png><figcaption>four</figcaption></figure>"
    )
    assert [(image.url, image.text) for image in found] == [
        ("http://x/a.png?%3CI%20%3E", "a <b>bold</b> <B >word</B> </i/> <bold> <b"),
        ("http://x/b.png", "a caption <b>"),
        ("http://x/c.png", "three"),
        ("http://x/d.png", "four"),
    ]


@pytest.mark.parametrize(("odd", "count"), [
    (b'{"HTML-Metadata":' + b"[" * 100_000, "pages_unreadable"),
    (b'{"HTML-Metadata":1,"Links":[{"path":"IMG@/src","x":' + b"[" * 100_000 + b"}]", "pages_unreadable"),
    (b'{"HTML-Metadata":1,"Links":[{' + b'"IMG@/src"' * 20_000 + b"}]}", "pages_unreadable"),
    (b'{"HTML-Metadata":1,"Links":[{' + b'"IMG@/src"}' * 20_000 + b"]}", "pages_unreadable"),
    (b'{"HTML-Metadata":[' + b"1," * 1_000_000 + b"1]}", "pages_too_large"),
], ids=["open lists", "open lists in a link", "keys alone", "closed too early", "too many values"])  # fmt: skip
def test_wats_that_no_crawler_writes(tmp_path, odd, count):
    records = [record("metadata", "http://x/odd", odd, "application/json"), GOOD]
    counts = Counter()
    assert len(rows_of(source_at(write_archive(tmp_path / "a.wat.gz", records)), counts)[0]) == 1
    assert without_outcomes(counts) == {"pages": 2, count: 1, "rows": 1}


@pytest.mark.parametrize("value", [1, 1.5, True, ["a text"], {"a": "b"}, [[]]])
def test_values_of_a_wat_that_are_no_texts(tmp_path, value):
    link = {"path": "IMG@/src", "url": "a.png", "alt": value, "title": "T"}
    records = [
        wat("http://x/", [link]),
        wat("http://x/", [{**link, "url": value}]),
        wat("http://x/", [link], base=value),
        wat(value, [link]) if isinstance(value, str) else GOOD,
        GOOD,
    ]
    counts = Counter()
    candidates, _ = rows_of(source_at(write_archive(tmp_path / "a.wat.gz", records)), counts)
    assert [row["text"] for row in candidates] == ["T", "good", "good"]
    assert without_outcomes(counts) == {"pages": 5, "pages_unreadable": 2, "rows": 3}


def test_a_picture_beside_a_bomb_is_still_read(tmp_path):
    red = picture(9, 9)
    records = [response("http://x/b.png", b"\x1f\x8b" * 99, "image/png", headers="Content-Encoding: gzip\r\n"),
               response("http://x/r.png", red, "image/png")]  # fmt: skip
    source = source_at(write_archive(tmp_path / "a.warc.gz", records))
    broken, good = rows_of(source)[1]
    assert source.read(broken["file"], broken["offset"]) is None
    assert source.read(good["file"], good["offset"]) == red


ENDLESS = "x" * 1_000_000


def test_every_string_is_bounded():
    pair = bounded(Candidate(ENDLESS, ENDLESS, ENDLESS, ENDLESS, ENDLESS))
    assert [len(value or "") for value in pair[:5]] == [2048, MAX_CHARACTERS, 1000, MAX_CHARACTERS, 1000]
    assert bounded(Candidate(ENDLESS, "", None)).problem == "URL too long"
    longest = Candidate("u" * MAX_CHARACTERS, "t" * MAX_CHARACTERS, "alt", "p" * MAX_CHARACTERS)
    assert bounded(longest) == longest


def test_batches_of_every_kind_hold_bounded_strings():
    batches = Batches()
    batches.add(Candidate("http://x/1", ENDLESS, "caption"))
    batches.add_page(
        "http://x/" + ENDLESS, [PageImage("http://x/2", ENDLESS, "alt"), PageImage("http://x/3", "", None)], Rights()
    )
    batches.add_response("http://x/" + ENDLESS, 200, None, "a.warc", 0, None)
    candidates, responses = batches.rest()
    assert [len(text) for text in candidates["text"].to_pylist()] == [MAX_CHARACTERS, MAX_CHARACTERS, 0]
    assert num_cut(candidates) == {"texts_cut": 2, "page_urls_cut": 2}
    # no pair's address is as long: it cannot be taken for that of another response
    assert len(responses["url"][0].as_py()) == MAX_CHARACTERS + 1
    assert num_cut(pa.RecordBatch.from_pylist([], CANDIDATES)) == {}
