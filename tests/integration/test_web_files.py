"""Archives on a web server, by range requests: what comes back is what the file has, or the run ends in one line."""

import asyncio
import gzip
import io
import pickle
import random
import time

import pytest
from PIL import Image

from align.config.infrastructure import StoreConfig
from align.errors import DataError, ServiceError
from align.formats.raw import iter_images, raw_shards
from align.services.files import web_files
from align.services.files.files import StoreFiles
from align.web.connection import Connection
from tests.support import ROOT, local_store
from tests.support.downloads import config as download
from tests.support.http2_server import Http2Server
from tests.support.ranges import cut_off, in_turn, ranges
from tests.support.reading import ingested
from tests.support.warc_records import page, write_archive
from tests.support.warc_records import response as archived
from tests.support.web_server import WebServer, delayed, endless_headers, redirect, response, slow_loris

MIB = 1 << 20
ONE_BYTE = "Content-Range: bytes 0-0/5\nContent-Length: 1"
SAMPLE = ROOT / "data/sample/archive.warc.gz"


@pytest.fixture
def server():
    with WebServer() as running:
        yield running


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(web_files, "_BACKOFF_S", 0.02)


def files(tmp_path, timeout_s=20.0, **changes):
    store = local_store.config(tmp_path, None, num_retries=2, timeout_s=timeout_s)
    return pickle.loads(pickle.dumps(StoreFiles(store, download(user_agent="of-the-tests/1", **changes))))


def noise(num_bytes, seed=0):
    return random.Random(seed).randbytes(num_bytes)


def test_a_stream_reads_and_seeks_as_a_file_does(server, tmp_path):
    data = noise(11 * MIB + 7)
    server.routes["/x"] = ranges(data)
    (tmp_path / "x").write_bytes(data)
    draw = random.Random(1)
    ours = files(tmp_path)
    with ours.open(server.url("/x")) as theirs, (tmp_path / "x").open("rb") as here:
        for _ in range(40):
            if draw.random() < 0.5:
                offset = draw.choice([0, len(data) - 5, len(data), len(data) + 9, draw.randrange(len(data))])
                assert theirs.seek(offset) == here.seek(offset)
            size = draw.choice([0, 1, 511, 70_000, 3 * MIB])
            assert theirs.read(size) == here.read(size)
            assert theirs.tell() == here.tell()
        assert theirs.seek(0) == 0
        assert theirs.read() == data
    assert ours.read(server.url("/x"), len(data) - 2, 10) == data[-2:]
    assert ours.read(server.url("/x"), len(data), 10) == b""
    assert server.agents == {"of-the-tests/1"}
    assert server.num_connections < 10  # they are kept


def test_an_empty_file_is_empty(server, tmp_path):
    server.routes |= {"/nginx": ranges(b""), "/apache": response(b"")}
    for path in server.routes:
        with files(tmp_path).open(server.url(path)) as stream:
            assert stream.read() == b""


def test_a_connection_that_ends_early_is_tried_again(server, tmp_path):
    data = noise(3 * MIB)
    server.routes["/x"] = cut_off(ranges(data), 2, 3, 5)
    with files(tmp_path).open(server.url("/x")) as stream:
        assert stream.read() == data
    server.routes["/y"] = cut_off(ranges(data), *range(2, 99))
    with files(tmp_path).open(server.url("/y")) as stream, pytest.raises(ServiceError, match="/y: failed 3 times"):
        stream.read()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_after_the_wait_that_it_names(server, tmp_path, status):
    server.routes["/x"] = in_turn(response(b"busy", status, Retry_After="1"), ranges(b"bytes"))
    start = time.monotonic()
    with files(tmp_path).open(server.url("/x")) as stream:
        assert stream.read() == b"bytes"
    assert time.monotonic() - start > 1
    server.routes["/y"] = response(b"busy", status)
    with pytest.raises(ServiceError, match=rf"/y: failed 3 times \(HTTP {status}\)"):
        files(tmp_path).stamp(server.url("/y"))


@pytest.mark.parametrize(
    "other",
    [ranges(noise(3 * MIB), ETag='"two"'), ranges(noise(2 * MIB)), ranges(b""), ranges(noise(3 * MIB), ETag="")],
)
def test_a_file_that_changes_under_a_reader_is_detected(server, tmp_path, other):
    server.routes["/x"] = in_turn(ranges(noise(3 * MIB)), ranges(noise(3 * MIB)), other)
    with (
        files(tmp_path).open(server.url("/x")) as stream,
        pytest.raises(DataError, match="/x: it was replaced while it was read"),
    ):
        stream.read()


def test_without_an_etag_the_date_tells(server, tmp_path):
    server.routes["/x"] = ranges(b"bytes", ETag="", Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")
    assert files(tmp_path).stamp(server.url("/x")) == "5 Thu, 01 Jan 2026 00:00:00 GMT"


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (response(noise(100_000)), "the server sends no single range of bytes; copy the file"),
        (response(b"a", 206), "the server sends no single range of bytes"),
        (response(b"a", 206, Content_Range="bytes 0-0/*"), "the server sends no single range of bytes"),
        (response(b"ab", 206, Content_Range="bytes 0-1/9"), r"more than the 1 bytes that were asked for"),
        (response(b"a", 206, Content_Range="bytes 4-4/9"), r"bytes 4 to 4 were sent, others were asked for"),
        (response(b"a", 206, Content_Range="bytes 0-0/9", Content_Encoding="br"), "Content-Encoding br"),
        (response(b"", 404), "the server has no such file"),
        (response(b"", 410), "the server has no such file"),
        (response(b"", 403), "the server refuses access .403; some answer this for files that do not exist"),
        (response(b"", 401), "the server refuses access .401"),
        (response(b"", 400), r"cannot be read \(HTTP 400\); check the address"),
        (redirect("/x"), r"more than 5 redirects"),
        (redirect("ftp://h/x"), r"broken redirect: scheme 'ftp' is neither http nor https"),
        (redirect("file:///etc/passwd"), r"broken redirect: scheme 'file'"),
        (response(b"", 302), r"more than 5 redirects"),
    ],
)  # fmt: skip
def test_what_no_retry_mends_is_one_line_at_once(server, tmp_path, route, reason):
    server.routes["/x"] = route
    with pytest.raises(DataError, match=f"/x: .*{reason}"):
        files(tmp_path).open(server.url("/x"))
    assert server.count("/x") == (6 if "redirects" in reason else 1)


async def gives_up(request):
    """Before a test has to."""
    await asyncio.sleep(60)
    request.cut()


@pytest.mark.parametrize(
    ("route", "reason"),
    [(gives_up, "no answer, or less than 10 KiB/s, for 1 s"), (endless_headers, "truncated: connection lost")],
)
def test_a_server_that_wastes_time_is_given_up(server, tmp_path, route, reason):
    server.routes["/x"] = route
    with pytest.raises(ServiceError, match=f"failed 3 times .{reason}"):
        files(tmp_path, timeout_s=1.0).open(server.url("/x"))
    assert server.count("/x") == 3


@pytest.mark.parametrize(
    ("lines", "body", "reason"),
    [
        ("HTTP/1.1 206 P\nHTTP/x: y\n" + ONE_BYTE, b"a", None),
        ("HTTP/1.1 206 P\nHTTP/1.1 404: y\n" + ONE_BYTE, b"a", None),
        ("HTTP/1.1 103 E\nContent-Range: bytes 0-0/9\n\nHTTP/1.1 206\n" + ONE_BYTE, b"a", None),
        ("HTTP/1.1 206x P\n" + ONE_BYTE, b"a", "not an answer of HTTP"),
        ("HTTP/1.1 404 P\nContent-Length : \u00b2", b"ab", "the server has no such file"),
        (
            "HTTP/1.1 206 P\nContent-Range: bytes 0-0/5\nTransfer-Encoding: chunked",
            b"1\r\na\r\n0\r\nContent-Range: bytes 0-0/999\r\nHTTP/1.1 404 : z\r\nHTTP/1: z\r\n\r\n",
            None,
        ),
    ],
    ids=[
        "a header like a status",
        "a header that is a status",
        "early hints",
        "a broken status",
        "a length",
        "trailers",
    ],
)
def test_odd_headers_are_headers_or_one_line(server, tmp_path, capfd, lines, body, reason):
    server.routes["/x"] = f"{lines}\n\n".replace("\n", "\r\n").encode() + body
    if reason is None:
        assert files(tmp_path).stamp(server.url("/x")) == "5 "
    else:
        with pytest.raises(DataError, match=f"/x: .*{reason}"):
            files(tmp_path).stamp(server.url("/x"))
    assert "Traceback" not in capfd.readouterr().err


def test_a_range_that_drips_is_given_up(server, tmp_path):
    async def drip(request):
        request.write(response(b"", 206, Content_Length=65536, Content_Range="bytes 0-65535/65536", ETag='"one"'))
        await slow_loris(0.01)(request)

    server.routes["/x"] = in_turn(ranges(bytes(65536)), drip)
    with (
        files(tmp_path, timeout_s=2.0).open(server.url("/x")) as stream,  # for its first bytes, on a busy machine
        pytest.raises(ServiceError, match="less than 10 KiB/s, for 2 s"),
    ):
        stream.read()


def test_addresses_inside_are_refused_at_every_hop(server, tmp_path):
    server.routes["/x"] = ranges(b"bytes")
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(DataError, match=r"127\.0\.0\.1 is a private address; .*download\.allow_networks"):
            files(tmp_path, allow_networks=()).open(server.url("/x", host))
    assert server.requests == []
    files(tmp_path).stamp(server.url("/x"))  # leaves an open connection, which other rules must not use
    with pytest.raises(DataError, match="is a private address"):
        files(tmp_path, allow_networks=()).stamp(server.url("/x"))
    with WebServer("127.0.0.2") as inside:
        inside.routes["/secret"] = ranges(b"secret")
        server.routes["/y"] = redirect(inside.url("/secret"))
        with pytest.raises(DataError, match=r"/y: .*127\.0\.0\.2 is a private address"):
            files(tmp_path, allow_networks=("127.0.0.1/32",)).open(server.url("/y"))
        assert inside.requests == []
        with files(tmp_path).open(server.url("/y")) as stream:
            assert stream.read() == b"secret"


def test_https_does_not_lead_to_http(tmp_path, monkeypatch):
    def moved(connection):
        connection.status, connection.headers = 302, {"location": ["http://h.test/x"]}
        return b""

    monkeypatch.setattr(Connection, "perform", moved)
    with pytest.raises(DataError, match="a redirect from https:// to http://"):
        files(tmp_path).open("https://h.test/x")


def test_a_certificate_that_nobody_signed_is_refused(tmp_path):
    with Http2Server(tmp_path, b"picture") as tls:
        with pytest.raises(DataError, match=r"TLS: .*certificate"):
            files(tmp_path).open(f"https://127.0.0.1:{tls.port}/x")
        assert tls.num_streams == 0


def test_common_crawls_list_is_used_as_published(server, tmp_path):
    """By the list on the server itself, and by a copy of the list here: the rows are those of a folder."""
    crawl = "crawl-data/CC-MAIN-2024-10/segments/1707947473347.0/warc/CC-MAIN-20240220211055-20240221001055-0000"
    published = gzip.compress(f"{crawl}0.warc.gz\n{crawl}1.warc.gz\n".encode())
    (tmp_path / crawl).parent.mkdir(parents=True)
    for number in range(2):
        site, size = f"http://site{number}.test/", 300 + number
        records = [page(f"{site}{n}.html", f"<img src={n}.png alt='text {n}'>") for n in range(30)]
        images = [Image.frombytes("RGB", (size, size), noise(3 * size**2, n)) for n in range(3)]
        for n, image in enumerate(images):
            image.save(buffer := io.BytesIO(), "PNG")
            records.append(archived(f"{site}{n}.png", buffer.getvalue(), "image/png"))
        file = write_archive(tmp_path / f"{crawl}{number}.warc.gz", records)
        server.routes[f"/{crawl}{number}.warc.gz"] = cut_off(ranges(file.read_bytes()), 3, 5)
    server.routes["/crawl-data/CC-MAIN-2024-10/warc.paths.gz"] = ranges(published)
    (tmp_path / "warc.paths.gz").write_bytes(published)
    root, theirs = f"ingest.paths_root={server.url('/')}", server.url("/crawl-data/CC-MAIN-2024-10/warc.paths.gz")
    here = ingested(tmp_path / "here", tmp_path / "warc.paths.gz")
    images = [list(iter_images(shard)) for shard in raw_shards(tmp_path / "here/raw")]
    assert (len(here), sum(map(len, images))) == (60, 6)
    for name, where, values in (("copy", tmp_path / "warc.paths.gz", ()), ("there", theirs, ("engine.num_workers=2",))):
        assert ingested(tmp_path / name, where, root, *values) == here
        assert [list(iter_images(shard)) for shard in raw_shards(tmp_path / name / "raw")] == images


def test_missing_files_of_a_list_are_named_before_any_is_read(server, tmp_path, capsys):
    server.routes["/0.warc.gz"] = ranges(SAMPLE.read_bytes())
    (tmp_path / "x.paths").write_text("".join(f"{number}.warc.gz\n" for number in range(3)))
    ingested(tmp_path, tmp_path / "x.paths", f"ingest.paths_root={server.url('/')}", "store.num_retries=1", code=1)
    said = capsys.readouterr().err
    for number in (1, 2):
        assert "2 of 3 files: " in said and f"/{number}.warc.gz: the server has no such file" in said
    assert server.count("/0.warc.gz") == 1


def test_files_are_looked_up_at_the_same_time_and_not_for_ever(server, tmp_path):
    few = [server.url(f"/{number}") for number in range(40)]
    server.routes |= {f"/{number}": delayed(0.05, response(b"")) for number in range(40)}
    assert files(tmp_path).stamps(few) == ["0 "] * 40
    assert server.most_open == StoreConfig.num_connections
    many = [server.url(f"/none/{number}") for number in range(500)]
    with pytest.raises(DataError, match="at least 10 of 500 files: "):
        files(tmp_path).stamps(many)
    assert len(server.requests) < 150
