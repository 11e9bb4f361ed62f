"""ARC files: versions, odd first lines, random access, damage, and bounds."""

import gzip
import io
import pickle
import random
import time
import tracemalloc
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from align.errors import DataError
from align.ingest.limits import TooLarge
from align.ingest.sources.archives import arc
from align.ingest.sources.archives.damage import Repaired
from align.ingest.sources.archives.warc_records import RESPONSE
from align.ingest.sources.reading import damage_in
from tests.support.arc_records import arc_record, arc_response, arc_start, write_arc
from tests.support.reading import rows_of, source_at
from tests.support.warc_records import picture

HTML = b"<p>hi<img src=a.png alt=A>"
PICTURE = picture(2, 2) * 50
DNS = arc_record("dns:x", b"20080521031200\nx. 300 IN A 192.0.2.7\n", "text/dns")
RECORDS = [
    DNS,
    arc_response("http://x/", HTML),
    arc_response("http://x/a.png", PICTURE, "image/png"),
    arc_response("http://x/gone.png", b"", "text/html", "404 Not Found"),
    arc_response("http://x/old.png", b"", "text/html", "302 Found", "Location: /a.png\r\n"),
]


def urls(path: Path, *overrides: str, counts: Counter[str] | None = None) -> list[str]:
    return [row["url"] for row in rows_of(source_at(path, *overrides), counts)[1]]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["a.arc", "a.arc.gz", "A.ARC.GZ"])
def test_scan_and_random_access(tmp_path: Path, name: str, version: int) -> None:
    records = [
        arc_record("dns:x", b"x. 300 IN A 192.0.2.7\n", "text/dns", version, 1),
        arc_response("http://x/", HTML, "text/html; charset=utf-8", version=version),
        arc_response("http://x/a.png", PICTURE, "image/png", version=version),
        arc_response("http://x/gone.png", b"", "text/html", "404 Not Found", version=version),
        arc_response("http://x/old.png", b"", "text/html", "302 Found", "Location: /a.png\r\n", version),
    ]
    path = write_arc(tmp_path / name, records, version, more="<arcmetadata>\n\n<x>http://y/ 1</x></arcmetadata>\n")
    counts: Counter[str] = Counter()
    source = source_at(path)
    candidates, responses = rows_of(source, counts)
    assert [(row["url"], row["text"], row["page_url"]) for row in candidates] == [("http://x/a.png", "A", "http://x/")]
    assert [(row["url"], row["status"], row["location"]) for row in responses] == [
        ("http://x/", 200, None), ("http://x/a.png", 200, None), ("http://x/gone.png", 404, None),
        ("http://x/old.png", 302, "http://x/a.png"),
    ]  # fmt: skip
    assert counts == {
        "pages": 1, "rows": 1, "other_records": 2, "outcome/page": 1, "outcome/image": 1,
        "outcome/error_status": 1, "outcome/redirect": 1,
    }  # fmt: skip
    copy = pickle.loads(pickle.dumps(source))
    for row, body in reversed(list(zip(responses, (HTML, PICTURE, b"", b""), strict=True))):
        assert source.read(row["file"], row["offset"]) == body
        assert copy.read(row["file"], row["offset"]) == body
    for offset in (path.stat().st_size, responses[0]["offset"] + 9):
        with pytest.raises(DataError, match="no record at byte"):
            source.read(responses[0]["file"], offset)


def test_arc_and_warc_files_of_one_folder(tmp_path: Path) -> None:
    write_arc(tmp_path / "a.arc", RECORDS[:2])
    write_arc(tmp_path / "b.arc.gz", RECORDS[2:])
    (tmp_path / "c.search.gz").write_bytes(b"of another kind")
    assert urls(tmp_path) == ["http://x/", "http://x/a.png", "http://x/gone.png", "http://x/old.png"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"http://x/ 1.2.3.4 20080521031200 text/html 12\n", ("http://x/", "text/html", 12)),
        (b"http://x/ 1.2.3.4 20080521031200 text/html 12\r\n", ("http://x/", "text/html", 12)),
        (b"http://x/a b  c 1.2.3.4 20080521031200 text/html 12\n", ("http://x/a b  c", "text/html", 12)),
        (b"http://x/?d= 20080521031200 x 1 1.2.3.4 20080521031200 a/b 3\n",
         ("http://x/?d= 20080521031200 x 1", "a/b", 3)),
        (b"http://x/ - 20080521031200 Text/HTML; charset=x 12\n", ("http://x/", "text/html", 12)),
        (b"http://x/  20080521031200  12\n", ("http://x/", "", 12)),
        (b"http://x/ ::1 20080521031200 no-type 0\n", ("http://x/", "no-type", 0)),
        (b"http://x/ 1.2.3.4 20080521031200 text/html 200 - - 99 a.arc 12\n", ("http://x/", "text/html", 12)),
        (b"http://x/a b 1.2.3.4 20080521031200 text/html 302 ab= http://y/ 99 a.arc 12\n",
         ("http://x/a b", "text/html", 12)),
        (b"http://x/\xc3\xa4 1.2.3.4 20080521031200 text/html 12\n", ("http://x/\xe4", "text/html", 12)),
        (b"http://x/\xe4 1.2.3.4 20080521031200 text/html 12\n", ("http://x/\xe4", "text/html", 12)),
        (b"http://x/ 1.2.3.4 20080521031200 text/html 12", None),
        (b"http://x/ 1.2.3.4 20080521031200 text/html -12\n", None),
        (b"http://x/ 1.2.3.4 20080521031200 text/html " + b"9" * 5000 + b"\n", None),
        (b"http://x/ 1.2.3.4 2008 text/html 12\n", None),
        (b"20080521031200 20080521031200 text/html 12\n", None),
        (b"http://x/ 20080521031200 12\n", None),
        (b"HTTP/1.1 200 OK\r\n", None),
        (b"\n", None),
        (b"", None),
    ],
)  # fmt: skip
def test_first_lines(line: bytes, expected: tuple[str, str, int] | None) -> None:
    assert arc.parse_line(line) == expected
    if expected is not None:
        assert arc.LAYOUT.begins.match(line)
        assert arc.LAYOUT.num_bytes(line + b"content") == len(line) + expected[2]


def test_heads_bodies_and_what_is_no_response(tmp_path: Path) -> None:
    def http(url: str, content: bytes) -> bytes:
        return arc_record(url, content, "text/html")

    path = write_arc(tmp_path / "a.arc.gz", [
        http("http://x/1", b"HTTP/1.0 200\nContent-type: text/html\n\n" + HTML),
        http("http://x/2", b"HTTP/1.1 200 OK\r\n\r\n" + HTML),  # the type of the first line
        http("http://x/3", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n" + HTML),
        http("http://x/4", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n"
             + gzip.compress(HTML)),
        http("http://x/a b", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 3\r\n\r\n" + HTML),
        http("http://x/5", HTML),  # without a head: the type of the first line
        http("http://x/6", b""),
        http("http://x/7", b"HTTP/1.1 200 OK\r\nX: " + b"y" * (1 << 20) + b"\r\n\r\n" + HTML),
        http("ftp://x/8", HTML),
    ])  # fmt: skip
    counts: Counter[str] = Counter()
    candidates, responses = rows_of(source_at(path), counts)
    assert [row["page_url"] for row in candidates] == [f"http://x/{page}" for page in (1, 2, 3, 4, "a b", 5)]
    assert {row["url"] for row in candidates} == {"http://x/a.png"}
    assert [row["status"] for row in responses][:7] == [200] * 6 + [0]
    assert counts == {
        "pages": 6, "rows": 6, "other_records": 2, "pages_coding_absent": 1,
        "outcome/page": 6, "outcome/no_http_head": 1, "outcome/http_head_too_large": 1,
    }  # fmt: skip


def whole_urls(data: bytes, counts: Counter[str]) -> list[str]:
    """As `urls`, of a file in memory."""
    records = Repaired("a.arc", io.BytesIO(data), arc.LAYOUT).records(arc.Walker(1000), counts)
    return [record.url for record in records if record.kind == RESPONSE]


@pytest.mark.parametrize("name", ["a.arc", "a.arc.gz"])
def test_every_cut_is_found_and_named(tmp_path: Path, name: str) -> None:
    ends = [write_arc(tmp_path / name, RECORDS[:num]).stat().st_size for num in range(len(RECORDS) + 1)]
    if name == "a.arc":
        ends += [end - 1 for end in ends]  # without the empty line after a record
    whole = (tmp_path / name).read_bytes()
    for cut in range(min(ends), len(whole), 3):
        counts: Counter[str] = Counter()
        found, damage = whole_urls(whole[:cut], counts), "a.arc: cut off or damaged at"
        assert [one.partition(" byte ")[0] for one in damage_in(counts)] == [damage] * (cut not in ends)
        assert (counts["damaged_files"], counts["bytes_lost"] > 0) == ((0, False) if cut in ends else (1, True))
        assert found == ["http://x/", "http://x/a.png", "http://x/gone.png", "http://x/old.png"][: len(found)]


@pytest.mark.parametrize("name", ["a.arc", "a.arc.gz"])
def test_reading_resumes_after_damage(tmp_path: Path, name: str) -> None:
    path = write_arc(tmp_path / name, RECORDS)
    whole = path.read_bytes()
    expected = {"http://x/", "http://x/a.png", "http://x/gone.png", "http://x/old.png"}
    num_first = len(write_arc(path, []).read_bytes())
    num_lost: Counter[int] = Counter()
    for position in range(num_first, len(whole), 5):
        damaged = whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :]
        num_lost[len(expected - set(whole_urls(damaged, Counter())))] += 1
    if name == "a.arc.gz":
        assert max(num_lost) == 1
        assert num_lost[1] > num_lost[0]  # nothing is lost where the damage is in the record that is no response
    else:
        assert max(num_lost) <= 2  # a changed length may join two records; nobody sees a change in a body


def test_a_whole_gap_is_counted_in_bytes(tmp_path: Path) -> None:
    members = [gzip.compress(record, mtime=0) for record in (arc_start(), *RECORDS)]
    damaged = bytearray(members[3])
    damaged[len(damaged) // 2] ^= 0xFF
    path = tmp_path / "a.arc.gz"
    path.write_bytes(b"".join([*members[:3], bytes(damaged), *members[4:]]))
    with pytest.raises(DataError, match=rf"damaged at byte {len(b''.join(members[:3])):,} of"):
        urls(path)
    counts: Counter[str] = Counter()
    assert urls(path, counts=counts) == ["http://x/", "http://x/gone.png", "http://x/old.png"]
    assert (counts["damaged_files"], counts["bytes_lost"]) == (1, len(damaged))


@pytest.mark.parametrize("filler", [b"", b"\0" * 100, b"\n\n", b"\r\n"])
@pytest.mark.parametrize("name", ["a.arc", "a.arc.gz"])
def test_what_may_follow_the_last_record(tmp_path: Path, name: str, filler: bytes) -> None:
    path = write_arc(tmp_path / name, RECORDS)
    path.write_bytes(path.read_bytes() + filler)
    assert len(urls(path)) == 4


def test_compressed_as_a_whole_serves_only_for_addresses(tmp_path: Path) -> None:
    path = tmp_path / "a.arc.gz"
    whole = b"".join([arc_start(), *RECORDS])
    for packed in (
        gzip.compress(whole),
        b"".join(gzip.compress(whole[at : at + 100]) for at in range(0, len(whole), 100)),  # in pieces of another size
    ):
        path.write_bytes(packed)
        with pytest.raises(DataError, match=r"compressed as a whole, .*; unpack it first"):
            urls(path)
        assert len(urls(path, "images_from=web")) == 4
    assert [row["offset"] for row in rows_of(source_at(path, "images_from=web"))[1]] == [None] * 4


def test_a_name_that_lies_about_the_packing(tmp_path: Path) -> None:
    for name, other in (("a.arc", "b.arc.gz"), ("c.arc.gz", "d.arc")):
        path = write_arc(tmp_path / name, RECORDS).rename(tmp_path / other)
        source = source_at(path)
        _, responses = rows_of(source)
        assert source.read(responses[1]["file"], responses[1]["offset"]) == PICTURE


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n", b"http://x/ not a record\n", b"\0" * 1000, gzip.compress(b""), gzip.compress(b"text"), b"\x1f\x8b"],
)
def test_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    for name in ("a.arc", "a.arc.gz"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match="not a web archive"):
            urls(tmp_path / name, counts=Counter())


@pytest.mark.parametrize("name", ["a.arc", "a.arc.gz"])
def test_bounds(tmp_path: Path, name: str) -> None:
    large = 64 << 20
    path = write_arc(tmp_path / name, [
        arc_response("http://x/", HTML + b" " * large),
        arc_response("http://x/large.png", bytes(large), "image/png"),
        arc_response("http://x/2", HTML),
    ])  # fmt: skip
    counts: Counter[str] = Counter()
    source = source_at(path, "max_record_bytes=100000")
    tracemalloc.start()
    _, responses = rows_of(source, counts)
    with pytest.raises(TooLarge):
        source.read(responses[1]["file"], responses[1]["offset"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert (counts["outcome/page_too_large"], counts["outcome/image"], counts["outcome/page"]) == (1, 1, 1)
    assert source.read(responses[2]["file"], responses[2]["offset"]) == HTML


def test_a_length_beyond_the_end(tmp_path: Path) -> None:
    for name in ("a.arc", "a.arc.gz"):
        path = write_arc(tmp_path / name, [*RECORDS, b"http://x/ 1.2.3.4 20080521031200 text/html %d\n" % 10**17])
        with pytest.raises(DataError, match="cut off"):
            urls(path)
        assert len(urls(path, counts=Counter())) == 4


@pytest.mark.parametrize("too_long", range(1, 13))
@pytest.mark.parametrize("name", ["plain.arc", "members.arc.gz", "whole.arc.gz"])
def test_a_length_that_is_too_long_never_costs_a_record_in_silence(tmp_path: Path, name: str, too_long: int) -> None:
    records = [arc_response(f"http://x/{number}", HTML + b" " * 100) for number in range(4)]
    line, content = records[1].split(b"\n", 1)
    address, length = line.rsplit(b" ", 1)
    records[1] = b"%b %d\n%b" % (address, int(length) + too_long, content)
    parts = [arc_start(), *records]
    path = tmp_path / name
    parts = parts if name == "members.arc.gz" else [b"".join(parts)]
    path.write_bytes(b"".join(parts if name == "plain.arc" else map(gzip.compress, parts)))
    counts: Counter[str] = Counter()
    found = urls(path, "images_from=web", counts=counts)
    expected = [f"http://x/{number}" for number in range(4)]
    assert counts["other_records"] == 1
    if too_long == 1 or name == "members.arc.gz":
        assert (found, counts["bytes_lost"]) == (expected, 0)
        return
    assert found == ([*expected[:1], *expected[2:]] if name == "plain.arc" else expected[:2])
    assert counts["bytes_lost"] >= (len(records[1]) if name == "plain.arc" else 1)
    with pytest.raises(DataError, match="no record begins there"):
        urls(path, "images_from=web")


@pytest.mark.parametrize("filler", [b"", b"\0" * 100, b"\n"])
def test_a_cut_before_it_was_compressed_as_a_whole_is_found(tmp_path: Path, filler: bytes) -> None:
    path = tmp_path / "a.arc.gz"
    path.write_bytes(gzip.compress(b"".join([arc_start(), *RECORDS])[:-10]) + filler)
    with pytest.raises(DataError, match="cut off"):
        urls(path, "images_from=web")


@pytest.mark.parametrize(
    "data",
    [
        b"http: - 123456789012 " * 40_000,
        b"\nhttp:a" * 100_000,
        b"\nhttp: " + b"- 123456789012 " * 60_000,
        (b"\nhttp: " + b"- 123456789012 " * 60) * 800,
        gzip.compress(b"http://x/ - 20080521031200 a 0\n") * 10_000,
        zlib.compress(b"", wbits=31) * 30_000,
        gzip.compress(b"\n" * (100 << 20)),
        gzip.compress(b"http://x/ - 20080521031200 a 0\n" * 30_000),
    ],
)
def test_time_is_linear(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.arc"
    path.write_bytes(arc_start() + data if not data.startswith(b"\x1f\x8b") else data)
    started = time.process_time()
    with suppress(DataError):
        urls(path, "images_from=web", counts=Counter())
    assert time.process_time() - started < 10


def test_reads_that_give_few_bytes() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(7 if size is None or size < 0 else min(size, 7))

    packed = b"".join(gzip.compress(record) for record in (arc_start(), *RECORDS))
    slowly, at_once = (list(arc.Walker(1000)(stream(packed), 0)) for stream in (Slow, io.BytesIO))
    assert [record._replace(headers=None) for record in slowly] == [record._replace(headers=None) for record in at_once]
    assert len(at_once) == 6


class _Counting(io.FileIO):
    """Counts its reads."""

    num_reads = 0

    def readinto(self, buffer: Any, /) -> int | None:
        self.num_reads += 1
        return super().readinto(buffer)


@pytest.mark.parametrize("name", ["a.arc", "a.arc.gz"])
def test_a_picture_is_read_at_once(tmp_path: Path, name: str) -> None:
    """Each read is a request where files are on a server."""
    more = arc_response("http://x/b.png", random.Random(0).randbytes(1 << 17), "image/png")  # far from the end
    path = write_arc(tmp_path / name, [*RECORDS, more])
    offset = rows_of(source_at(path))[1][1]["offset"]
    with _Counting(path) as raw, io.BufferedReader(raw, 1 << 16) as stream:
        record = arc.read_record(stream, offset, 1 << 20)
        assert record is not None
        assert record.body == PICTURE
        assert raw.num_reads == 1
