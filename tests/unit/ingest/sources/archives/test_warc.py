"""Web archives: what their records say, how they are packed, and every way in which they can be damaged."""

import gzip
import io
import pickle
from collections import Counter

import pytest
from fastwarc.stream_io import ZstdWriter, zstd_train_dictionary_from_samples

from align.errors import DataError
from tests.support.reading import rows_of, source_at, without_outcomes
from tests.support.warc_records import page, picture, record, response, wat, write_archive, zstd

RECORDS = [
    page("http://x/", "<p>hi<img src=a.png alt=A>"),
    response("http://x/a.png", picture(2, 2) * 50, "image/png"),
    response("http://x/b.png", bytes(range(256)) * 20, "image/png", "404 Not Found"),
]


def urls(path, *overrides, counts=None):
    return [row["url"] for row in rows_of(source_at(path, *overrides), counts)[1]]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
def test_scan_and_random_access(tmp_path, name):
    counts = Counter()
    source = source_at(write_archive(tmp_path / name, RECORDS))
    candidates, responses = rows_of(source, counts)
    assert [(row["url"], row["text"], row["text_source"], row["page_url"]) for row in candidates] == [
        ("http://x/a.png", "A", "alt", "http://x/")
    ]
    assert [(row["url"], row["status"], row["location"]) for row in responses] == [
        ("http://x/", 200, None), ("http://x/a.png", 200, None), ("http://x/b.png", 404, None),
    ]  # fmt: skip
    assert without_outcomes(counts) == {"pages": 1, "rows": 1}
    copy = pickle.loads(pickle.dumps(source))
    for row, body in reversed(list(zip(responses, (b"<p>hi<img src=a.png alt=A>", picture(2, 2) * 50), strict=False))):
        assert source.read(row["file"], row["offset"]) == body
        assert copy.read(row["file"], row["offset"]) == body
    with pytest.raises(DataError, match="no record at byte"):
        source.read(responses[0]["file"], (tmp_path / name).stat().st_size)


def test_a_folder_a_pattern_and_a_list(tmp_path):
    write_archive(tmp_path / "a.warc", RECORDS[:1])
    write_archive(tmp_path / "b.warc.gz", RECORDS[1:2])
    write_archive(tmp_path / "c.wat.gz", [wat("http://y/", [{"path": "IMG@/src", "url": "/i.png", "alt": "i"}])])
    (tmp_path / "ignored.html").write_text("x")
    (tmp_path / "list.txt").write_text("b.warc.gz\n\na.warc\n")
    assert urls(tmp_path) == ["http://x/", "http://x/a.png"]
    assert urls(tmp_path / "*.warc*") == ["http://x/", "http://x/a.png"]
    assert sorted(urls(tmp_path / "list.txt")) == ["http://x/", "http://x/a.png"]
    with pytest.raises(DataError, match="nothing"):
        source_at(tmp_path / "nothing.warc.gz")


@pytest.mark.parametrize("name", ["old.arc.gz", "OLD.ARC"])
def test_an_archive_in_the_format_before_warc_is_refused(tmp_path, name):
    write_archive(tmp_path / "a.warc", RECORDS[:1])
    (tmp_path / name).write_bytes(b"filedesc://a.arc")
    for location in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=rf"{name}: ARC, .*`warcio recompress OLD.arc.gz NEW.warc.gz`"):
            source_at(location)


def test_more_files_than_stay_open(tmp_path):
    for number in range(20):
        write_archive(tmp_path / f"{number:02d}.warc.gz", [response(f"http://x/{number}", b"%d" % number, "image/png")])
    source = source_at(tmp_path)
    responses = rows_of(source)[1]
    for _ in range(2):
        assert [source.read(row["file"], row["offset"]) for row in responses] == [b"%d" % one for one in range(20)]


PAGE = b"<html><body>\n\nx: y\n<img src=a.png alt='caf\xe9'></body></html>"
HTTP = "application/http; msgtype=response"


@pytest.mark.parametrize(("kind", "stated", "body"), [
    ("response", HTTP, PAGE),
    ("response", HTTP, b"\xef\xbb\xbf \n<!DOCTYPE  HTML>" + PAGE.decode("latin-1").encode()),
    ("response", HTTP, b"<?xml version='1.0' encoding='latin-1'?>\n" + PAGE),
    ("response", HTTP, PAGE.ljust(50_000)),
    ("response", "text/html; charset=latin-1", PAGE),
    ("response", "text/html", b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=latin-1\r\n\r\n" + PAGE),
    ("response", "text/fragment+html", b"words, then <img src=a.png alt='caf\xe9'>"),
    ("response", HTTP, b"HTTP/1.1 200 OK\r\nContent-Type: text/fragment+html\r\n\r\n" + PAGE),
    ("resource", "text/fragment+html", PAGE),
    ("resource", "application/octet-stream", PAGE),
])  # fmt: skip
@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
def test_a_body_without_an_http_head_is_a_page(tmp_path, name, kind, stated, body):
    path = write_archive(tmp_path / name, [record(kind, "http://x/", body, stated), *RECORDS[1:]])
    counts = Counter()
    source = source_at(path)
    candidates, responses = rows_of(source, counts)
    assert [(row["url"], row["text"]) for row in candidates] == [("http://x/a.png", "café")]
    assert counts["outcome/page"] == 1
    assert (
        source.read(str(path), responses[0]["offset"]) == body[body.find(b"\r\n\r\n") + 4 if b"200 OK" in body else 0 :]
    )
    assert source.read(str(path), responses[1]["offset"]) == picture(2, 2) * 50


def test_a_picture_without_an_http_head_is_read(tmp_path):
    red = picture(3, 3)
    parts = [record("response", f"http://x/{n}", red, stated) for n, stated in enumerate((HTTP, "image/png"))]
    source = source_at(write_archive(tmp_path / "a.warc.gz", parts))
    counts = Counter()
    responses = rows_of(source, counts)[1]
    assert [(row["status"], source.read(row["file"], row["offset"])) for row in responses] == [(200, red)] * 2
    assert counts["outcome/image"] == 2


@pytest.mark.parametrize("body", [
    b"", b"\0" * 20_000, b"<" * 20_000, b"<?xml " * 5000, b"{}", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nno" * 900,
    b"\xef\xbb\xbf" * 9000, b"<imgx", b"<!-", b" " * 30_000 + b"<html>", bytes(range(256)) * 99,
])  # fmt: skip
@pytest.mark.parametrize("kind", ["response", "resource"])
def test_a_body_that_nobody_can_tell_is_counted(tmp_path, kind, body):
    parts = [record(kind, "http://x/y", body, HTTP), *RECORDS]
    counts = Counter()
    source = source_at(write_archive(tmp_path / "a.warc.gz", parts))
    responses = rows_of(source, counts)[1]
    outcome = "no_http_head" if kind == "response" else "other_type"
    assert counts == {
        "pages": 1,
        "rows": 1,
        **{f"outcome/{one}": 1 for one in (outcome, "page", "image", "error_status")},
    }
    assert source.read(responses[0]["file"], responses[0]["offset"]) == (None if kind == "response" else body)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
@pytest.mark.parametrize("cut", [1, 4, 12, 60, "body", "header"])
def test_every_cut_is_found_and_named(tmp_path, cut, name):
    path = write_archive(tmp_path / name, RECORDS)
    data = path.read_bytes()
    starts = [row["offset"] for row in rows_of(source_at(path))[1]]
    keep = {"body": (len(data) + starts[2]) // 2, "header": starts[2] + 40}.get(str(cut)) or len(data) - int(cut)
    if name == "a.warc" and cut in (1, 4):
        return  # only the empty lines after the last record are gone: it is whole
    path.write_bytes(data[:keep])
    with pytest.raises(DataError, match=rf"{path.name}: cut off or damaged at byte [\d,]+ of {keep:,}"):
        urls(path)
    counts = Counter()
    whole = ["http://x/", "http://x/a.png"]
    # of Zstandard, the record before the damage may not be used either
    assert urls(path, counts=counts) in ([whole, whole[:1]] if name == "a.warc.zst" else [whole])
    assert counts["damaged_files"] == 1


@pytest.mark.parametrize("junk", [b"hello world " * 100, b"", gzip.compress(b"hello"), zstd(b"hello")])
def test_what_is_no_archive(tmp_path, junk):
    (tmp_path / "a.warc.gz").write_bytes(junk)
    with pytest.raises(DataError, match="not a web archive"):
        urls(tmp_path / "a.warc.gz")


@pytest.mark.parametrize("number", [2, 300])
@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_compressed_as_a_whole_serves_only_for_addresses(tmp_path, number, pack):
    noise = b"".join(page(f"http://x/{one}", f"<img src={hash((one, 1)):x}.png alt={one}>") for one in range(number))
    path = tmp_path / "a.warc.packed"
    path.write_bytes(pack(noise))
    with pytest.raises(DataError, match="compressed as a whole"):
        urls(path)
    candidates, responses = rows_of(source_at(path, "images_from=web"))
    assert len(candidates) == len(responses) == number
    assert {row["offset"] for row in responses[1:]} == {None}
    path.write_bytes(pack(noise)[:-20])
    with pytest.raises(DataError, match=r"cut off or damaged|not a web archive"):  # Zstandard gives whole blocks only
        urls(path, "images_from=web")


@pytest.mark.parametrize("compressed", [True, False])
def test_zstd_with_a_dictionary(tmp_path, compressed):
    """As ArchiveTeam writes them: the first frame of the file holds the dictionary of all records."""
    pages = [page(f"http://x/{one}", f"<p>a page of words<img src={one}.png alt='number {one}'>") for one in range(500)]
    dictionary = zstd_train_dictionary_from_samples(pages, 2048)
    packed = io.BytesIO()
    writer = ZstdWriter(packed, dictionary=dictionary, compress_dictionary_frame=compressed)
    for one in pages[:5]:
        writer.write(one)
        writer.finish()
    writer.close()
    path = tmp_path / "a.warc.zst"
    path.write_bytes(packed.getvalue())
    assert path.read_bytes().startswith(b"\x5d\x2a\x4d\x18")
    source = source_at(path)
    candidates, responses = rows_of(source)
    assert [row["text"] for row in candidates] == [f"number {one}" for one in range(5)]
    for number, row in reversed(list(enumerate(responses))):
        assert source.read(row["file"], row["offset"]).endswith(f"alt='number {number}'>".encode())


def test_records_of_every_kind(tmp_path):
    records = [
        record("warcinfo", "urn:x", b"software: x\r\n", "application/warc-fields"),
        record("request", "http://x/r", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "application/http; msgtype=request"),
        record("resource", "http://x/a.png", b"bytes", "image/png"),
        record("resource", "http://x/p", "<img src=é alt=é>".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        record("metadata", "http://x/p", b"fetchTimeMs: 3\r\n", "application/warc-fields"),
        record("metadata", "http://x/p", b'{"HTML-Metadata": 1}', "application/json"),
        response("http://x/old", b"", "text/html", "301 Moved", headers="Location: /new?a b\r\n"),
        response("http://x/odd", b"", "text/html", "302 Found", headers="Location: ftp://y/\r\n"),
        response("<HTTP://X/angle>", b"", "image/png"),
        response("http://x/404", b"<img src=a>", "text/html", "404 Not Found"),
        record("revisit", "http://x/copy", b"HTTP/1.1 200 OK\r\n\r\n", "application/http; msgtype=response",
               "WARC-Refers-To-Target-URI: http://x/a.png\r\n"),
        record("revisit", "http://x/same", b"HTTP/1.1 200 OK\r\n\r\n", "application/http; msgtype=response",
               "WARC-Refers-To-Target-URI: http://x/same\r\n"),
    ]  # fmt: skip
    counts = Counter()
    source = source_at(write_archive(tmp_path / "a.warc.gz", records))
    candidates, responses = rows_of(source, counts)
    assert [(row["url"], row["text"]) for row in candidates] == [("http://x/%C3%A9", "é")]
    assert [(row["url"], row["status"], row["location"]) for row in responses] == [
        ("http://x/a.png", 200, None),
        ("http://x/p", 200, None),
        ("http://x/old", 301, "http://x/new?a%20b"),
        ("http://x/odd", 302, None),
        ("http://x/angle", 200, None),
        ("http://x/404", 404, None),
        ("http://x/copy", 302, "http://x/a.png"),
    ]
    assert source.read(responses[0]["file"], responses[0]["offset"]) == b"bytes"
    assert without_outcomes(counts) == {"pages": 2, "pages_unreadable": 1, "rows": 1}


def test_wat(tmp_path):
    links = [
        {"path": "A@/href", "url": "/x", "text": "a link"},
        {"path": "IMG@/src", "url": "a.png?x=1&amp;y=2&copy=3", "alt": "A &amp; B"},
        {"path": "IMG@/src", "url": "//cdn.example/b.png", "title": "T", "alt": "&nbsp;"},
        {"path": "IMG@/src", "url": "", "alt": "half \ud83d a pair"},
    ]
    records = [
        record("warcinfo", "urn:x", b"software: x\r\n", "application/warc-fields"),
        wat("http://x/dir/page", links),
        wat("http://x/dir/page2", links[1:2], base="http://b.example/"),
        wat("http://x/404", links, status="404"),
        wat("http://x/empty", []),
    ]
    counts = Counter()
    source = source_at(write_archive(tmp_path / "a.wat.gz", records))
    candidates, responses = rows_of(source, counts)
    assert responses == []
    assert [(row["url"], row["text"], row["text_source"], row["problem"]) for row in candidates] == [
        ("http://x/dir/a.png?x=1&y=2&copy=3", "A & B", "alt", None),
        ("http://cdn.example/b.png", "T", "title", None),
        ("http://x/dir/page#img-2", "half ? a pair", "alt", "no address"),
        ("http://b.example/a.png?x=1&y=2&copy=3", "A & B", "alt", None),
    ]
    assert without_outcomes(counts) == {"pages": 3, "rows": 4}


def test_every_text_of_pages_and_of_wat(tmp_path):
    links = [
        {"path": "IMG@/src", "url": "a.png", "alt": "A &amp; B", "title": "a &lt; b"},
        {"path": "IMG@/src", "url": "b.png", "alt": "same", "title": "&#115;ame "},
        {"path": "IMG@/src", "url": "c.png", "alt": "&nbsp;", "title": ""},
    ]
    html = b"<img src=a.png alt='A &amp; B' title='a &lt; b'><img src=b.png alt=same title='same '><img src=c.png>"
    archives = {"a.wat.gz": wat("http://x/p", links), "b.warc.gz": page("http://x/p", html)}
    for name, one in archives.items():
        candidates, _ = rows_of(source_at(write_archive(tmp_path / name, [one]), "texts_per_picture=all"))
        assert [(row["url"], row["text"], row["text_source"]) for row in candidates] == [
            ("http://x/a.png", "A & B", "alt"), ("http://x/a.png", "a < b", "title"),
            ("http://x/b.png", "same", "alt"), ("http://x/c.png", "", None),
        ]  # fmt: skip


@pytest.mark.parametrize(
    "odd", ["{", "}", "}]", '"', "\\", '{"path": "IMG@/src"}', '}],"x":[{', "IMG@/src", "half \ud83d", "é 𝟛"]
)
def test_wat_texts_that_look_like_json(tmp_path, odd):
    links = [
        {"path": "A@/href", "url": "/x", "text": odd}, {"path": "IMG@/src", "url": "a.png", "alt": f"A {odd} b"},
        {"url": "b.png", "title": odd, "path": "IMG@/src"}, {"path": "A@/href", "url": "/y", "text": "IMG@/src"},
        {"path": "IMG@/src", "url": "c.png", "alt": "last"},
    ]  # fmt: skip
    for number, chosen in enumerate((links, links[:1], links[1:2], links[2:], links[::-1], [])):
        path = write_archive(tmp_path / f"{number}.wat.gz", [wat("http://x/", chosen)])
        candidates = rows_of(source_at(path))[0]
        whole = odd.encode("utf-8", "replace").decode()
        expected = {"a.png": f"A {whole} b", "b.png": whole, "c.png": "last"}
        assert [(row["url"], row["text"]) for row in candidates] == [
            (f"http://x/{link['url']}", expected[link["url"]]) for link in chosen if link["path"] == "IMG@/src"
        ]
