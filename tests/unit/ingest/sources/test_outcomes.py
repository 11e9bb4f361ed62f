"""Headers that lie, lines that end in LF, and what becomes of each record: the outcomes sum to the records."""

import gzip
import zlib
from collections import Counter

import pytest

from align.ingest.report import IngestReport, not_read, read_as_stored, write_page
from align.ingest.sources import outcomes
from align.ingest.sources.archives.codings import decoded
from tests.support.reading import rows_of, source_at
from tests.support.warc_records import brotli, page, picture, record, response, wat, write_archive, zstd

HTML = b"<!doctype html><p>\xc3\xa9<img src=a.png alt=A>"
CHUNKED = b"10;x=y\r\n" + HTML[:16] + b"\r\n" + f"{len(HTML) - 16:X}\n".encode() + HTML[16:] + b"\n0\r\n\r\n"


def raw_deflate(data):
    return zlib.compress(data, wbits=-15)


ENCODED = {
    "chunked": CHUNKED, "gzip": gzip.compress(HTML), "deflate": zlib.compress(HTML), "br": brotli(HTML),
    "zstd": zstd(HTML),
}  # fmt: skip
LONG = bytes(range(256)) * 400
#: What each coding gives, with its last bytes missing.
CUT = {
    "chunked": b"f00\r\n" + HTML, "gzip": gzip.compress(LONG)[:-20], "x-gzip": gzip.compress(LONG)[:300],
    "deflate": zlib.compress(LONG)[:-20], "br": brotli(LONG)[:-20], "zstd": zstd(LONG)[:-20],
}  # fmt: skip


@pytest.mark.parametrize("stated", [*ENCODED, "x-gzip", "chunked, gzip", "br, gzip", "gzip, gzip"])
@pytest.mark.parametrize(
    "plain", [HTML, b"\n\n  " + HTML, b"\xef\xbb\xbf" + HTML, HTML.decode().encode("utf-16"), b"caf\xe9", b"x^2 = 4"]
)
def test_a_plain_body_is_taken_as_it_is_whatever_its_headers_state(stated, plain):
    body = decoded(plain, {"Content-Encoding": stated}, 1000)
    assert (body.data, body.is_absent, body.is_unknown) == (plain, True, False)


@pytest.mark.parametrize(("stated", "plain"), [
    ("br", b"3 pictures: " + HTML),
    ("br", b"3" * 5000),
    ("br, br", b"3.14"),
    ("chunked", b"0\n" + HTML),
    ("chunked", b"0\r\n\r\n" + HTML),
    ("chunked", b"0\n\n0: " + HTML),
    ("chunked, br", b"3 pictures: " + HTML),
])  # fmt: skip
def test_a_plain_body_that_a_coding_would_take_for_empty(stated, plain):
    assert decoded(plain, {"Content-Encoding": stated}, 10_000) == (plain, True, False, "")


def test_what_is_empty_when_decoded():
    for stated, body in (
        ("br", brotli(b"")), ("gzip", gzip.compress(b"")), ("gzip", gzip.compress(b"") * 9), ("zstd", zstd(b"")),
        ("deflate", zlib.compress(b"")), ("deflate", raw_deflate(b"")), ("chunked", b"0\r\n\r\n"), ("chunked", b"0\n"),
        ("chunked", b"0;x=y\r\nExpires: 0\r\nX: y\r\n\r\n"),
    ):  # fmt: skip
        assert decoded(body, {"Content-Encoding": stated}, 1000) == (b"", False, False, ""), (stated, body)
    for stated, body in (("gzip", gzip.compress(b"")), ("deflate", zlib.compress(b""))):
        found = decoded(body + HTML, {"Content-Encoding": stated}, 1000)
        assert found.data is None
        assert "its bytes do not have it" in found.problem


@pytest.mark.parametrize("stated", ["none", "UTF-8", "binary", "x-unknown, none", "utf-8, identity"])
def test_an_unknown_coding_is_taken_as_it_is(stated):
    for plain in (HTML, *(picture(3, 3, kind=kind) for kind in ("PNG", "JPEG", "WEBP", "GIF"))):
        body = decoded(plain, {"Content-Encoding": stated}, 1000)
        assert (body.data, body.is_absent, body.is_unknown) == (plain, False, True)
    unreadable = decoded(bytes(range(200)), {"Content-Encoding": stated}, 1000)
    assert unreadable.data is None
    assert "its bytes do not have it" in unreadable.problem


def test_what_is_coded_is_decoded_beside_what_is_not():
    for stated, body in ENCODED.items():
        assert decoded(body, {"Content-Encoding": stated}, 1000) == (HTML, False, False, "")
        both = {"Content-Encoding": stated, "Transfer-Encoding": "chunked"}
        if stated != "chunked":
            assert decoded(body, both, 1000) == (HTML, True, False, "")
            assert decoded(body, {"Content-Encoding": f"{stated}, utf-8"}, 1000) == (HTML, False, True, "")
    assert decoded(raw_deflate(HTML), {"Content-Encoding": "deflate"}, 1000).data == HTML
    twice = gzip.compress(HTML) + gzip.compress(b"more")
    assert decoded(twice, {"Content-Encoding": "gzip"}, 1000).data == HTML + b"more"
    assert decoded(gzip.compress(HTML) + b"junk", {"Content-Encoding": "gzip"}, 1000).data == HTML
    assert decoded(b"", {"Content-Encoding": "gzip"}, 1000) == (b"", False, False, "")


@pytest.mark.parametrize("stated", CUT)
def test_a_body_that_is_cut_off_or_damaged_is_unreadable(stated):
    body = decoded(CUT[stated], {"Content-Encoding": stated}, 1_000_000)
    assert body.data is None
    assert body.problem
    garbage = decoded(b"\1\2\3\4" * 50, {"Content-Encoding": stated}, 1000)
    assert garbage.data is None


def test_many_members_and_chunks_take_linear_time():
    for stated, body in (("gzip", gzip.compress(b"") * 50_000), ("chunked", b"1\r\na\r\n" * 300_000)):
        assert decoded(body, {"Content-Encoding": stated}, 1 << 25).data is not None


def http(url, head, body):
    return record("response", url, head + body, "application/http; msgtype=response")


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_warc_headers_that_end_in_lf(tmp_path, name):
    """As ClueWeb09 has them."""
    records = []
    for number in range(3):
        head, _, content = page(f"http://x/{number}", f"<img src=a.png alt={number}>").partition(b"\r\n\r\n")
        head = head.replace(b"WARC/1.0", b"WARC/0.18").replace(b"\r\n", b"\n")
        records.append(head + b"\n\n" + content.removesuffix(b"\r\n\r\n") + b"\n\n")
    source = source_at(write_archive(tmp_path / name, records))
    candidates, responses = rows_of(source)
    assert [row["text"] for row in candidates] == ["0", "1", "2"]
    assert source.read(responses[2]["file"], responses[2]["offset"]) == b"<img src=a.png alt=2>"


def every_outcome():
    """Records, each with its outcome; empty: of another kind."""
    long = f"X: {'y' * 1_100_000}\r\n"
    revisit = record("revisit", "http://x/r", b"HTTP/1.1 200 OK\r\n\r\n", "application/http; msgtype=response")
    return [
        ("", record("warcinfo", "urn:x", b"software: x\r\n", "application/warc-fields")),
        ("", record("request", "http://x/", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request")),
        ("", record("metadata", "http://x/", b"fetchTimeMs: 3\r\n", "application/warc-fields")),
        ("", record("conversion", "http://x/", b"text", "text/plain")),
        (outcomes.PAGE, page("http://x/", HTML)),
        (outcomes.PAGE, page("http://x/lie", HTML, headers="Content-Encoding: br\r\n")),
        (outcomes.PAGE, page("http://x/none", HTML, headers="Content-Encoding: none\r\n")),
        (outcomes.PAGE, page("http://x/long", HTML, headers=f"X: {'y' * 100_000}\r\n")),  # fastwarc takes 32 KiB
        (outcomes.PAGE, record("resource", "http://x/saved", HTML, "text/html")),
        (outcomes.PAGE_WITHOUT_IMAGES, page("http://x/words", "<p>words")),
        (outcomes.PAGE_WITHOUT_IMAGES, page("http://x/empty", "")),
        (outcomes.IMAGE, response("http://x/a.png", picture(1, 1), "image/png")),
        (outcomes.IMAGE, record("resource", "http://x/b.png", picture(1, 1), "image/png")),
        (outcomes.OTHER_TYPE, response("http://x/a.css", b"p {}", "text/css")),
        (outcomes.OTHER_TYPE, record("response", "dns:x", b"1 x A 1.1.1.1", "text/dns")),
        (outcomes.REDIRECT, response("http://x/old", b"", "text/html", "301 Moved", "Location: /\r\n")),
        (outcomes.ERROR_STATUS, response("http://x/404", HTML, "text/html", "404 Not Found")),
        (outcomes.ERROR_STATUS, response("http://x/206", HTML, "text/html", "206 Partial Content")),
        (outcomes.REVISIT, revisit),
        (outcomes.PAGE_TOO_LARGE, page("http://x/large", HTML.ljust(3_000_000))),
        (outcomes.PAGE_UNREADABLE, page("http://x/cut", CUT["gzip"], headers="Content-Encoding: gzip\r\n")),
        (outcomes.PAGE, http("http://x/headless", b"", HTML)),
        (outcomes.NO_HTTP_HEAD, http("http://x/nothing", b"", b"")),
        (outcomes.HTTP_HEAD_TOO_LARGE, page("http://x/head", HTML, headers=long)),
        (outcomes.NO_ADDRESS, page("http://x/", HTML).replace(b"WARC-Target-URI", b"WARC-Target-XXX")),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
def test_the_outcomes_sum_to_the_records_before_the_damage(tmp_path, name):
    expected = every_outcome()
    sizes = [write_archive(tmp_path / name, [one]).stat().st_size for _, one in expected]
    for damaged in (None, 2, 4, 10, 17):
        path = write_archive(tmp_path / name, [one for _, one in expected])
        if damaged is not None:
            data = bytearray(path.read_bytes())
            start = sum(sizes[:damaged])
            data[start : start + 6] = b"broken"
            path.write_bytes(data)
        counts = Counter()
        rows_of(source_at(path, "max_record_bytes=2000000"), counts)
        num_left = len(expected) if damaged is None else damaged - name.endswith(".zst")  # its last one is not used
        left = [outcome for outcome, _ in expected[:num_left]]
        assert outcomes.outcomes_in(counts) == Counter(outcome for outcome in left if outcome)
        assert counts[outcomes.OTHER_RECORDS] == left.count("")
        if damaged is None:
            assert set(outcomes.outcomes_in(counts)) == set(outcomes.OUTCOMES)
            assert (counts["pages_coding_absent"], counts["pages_coding_unknown"]) == (1, 1)
        lost = (0, 0) if damaged is None else (1, sum(sizes[num_left:]))
        assert (counts["damaged_files"], counts["bytes_lost"]) == lost


def test_the_outcomes_of_a_wat(tmp_path):
    records = [
        record("warcinfo", "urn:x", b"software: x\r\n", "application/warc-fields"),
        wat("http://x/1", [{"path": "IMG@/src", "url": "a.png", "alt": "A"}]),
        wat("http://x/2", []),
        wat("http://x/3", [], status="404"),
        record("metadata", "http://x/4", b'{"HTML-Metadata": 1}', "application/json"),
        record("metadata", "http://x/5", b"{}", "application/json"),
    ]
    counts = Counter()
    rows_of(source_at(write_archive(tmp_path / "a.wat.gz", records)), counts)
    assert outcomes.outcomes_in(counts) == {
        "page": 1, "page_without_images": 1, "error_status": 1, "page_unreadable": 1
    }  # fmt: skip
    assert counts[outcomes.OTHER_RECORDS] == 2


def test_the_report_shows_the_outcomes(tmp_path):
    counts = {
        "pages_unreadable": 1, "pages_coding_absent": 3, "pages_coding_unknown": 4, "pictures_without_text": 6,
        "files_left_out": 8, "damaged_files": 1, "bytes_lost": 12_345,
        **{outcomes.count_of(name): 7 for name in outcomes.OUTCOMES},
    }  # fmt: skip
    report = IngestReport(
        metrics={}, num_files=1, num_pages=2, num_pages_in_archive=5, counts=counts, num_pairs=10, num_images=1,
        num_retryable=0, files_quarantined=[], files_damaged=["a.warc.gz: cut off"],
        outcomes=dict.fromkeys(outcomes.OUTCOMES, 7), num_other_records=1_001, statuses={"success": 10}, errors={},
        text_sources={"alt": 10}, hosts={},
    )  # fmt: skip
    write_page(report, tmp_path)
    html = (tmp_path / "report.html").read_text()
    for words in (
        *outcomes.OUTCOMES.values(),
        "Records of responses: 84. Other records, such as requests: 1,001.",
        "12,345",
        "a.warc.gz: cut off",
    ):
        assert words in html, words
    for what, _ in not_read(report) + read_as_stored(report):
        assert what in html
    assert len(not_read(report)) == 7
    assert read_as_stored(report)[0][1] == 3
