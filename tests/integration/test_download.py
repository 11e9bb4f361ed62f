"""The downloader against a server that misbehaves in every way known."""

import _thread
import asyncio
import gzip
import socket
import time
import zlib
from email.utils import formatdate
from types import SimpleNamespace

import pycurl
import pytest

from align.ingest.download import Downloader
from align.web import connection
from tests.support.downloads import PICTURE, TimelessDownloader, config, fetch_one
from tests.support.web_server import (
    WebServer,
    after_failures,
    breaks_off,
    endless_body,
    endless_headers,
    gzip_bomb,
    redirect,
    response,
    silent,
    slow_loris,
)

LARGEST = bytes(1 << 20)


@pytest.fixture
def server():
    with WebServer() as running:
        running.routes["/good.jpg"] = response(PICTURE)
        yield running


def test_a_picture(server):
    start = time.monotonic()
    fetched = fetch_one(server.url("/good.jpg?width=3#top"))
    assert (fetched.data, fetched.error, fetched.num_attempts) == (PICTURE, None, 1)
    assert fetched.url.endswith("#top")
    assert 0 < fetched.wall_s <= time.monotonic() - start
    assert server.requests == [f"127.0.0.1:{server.port}/good.jpg?width=3"]
    assert server.agents == {config().user_agent.lower()}


@pytest.mark.parametrize(("route", "error"), [
    (slow_loris(0.05), "timed out: after"),
    (silent, "timed out: no answer"),
    (breaks_off(PICTURE, 5000), "truncated: connection lost after 5,000 bytes"),
    (breaks_off(PICTURE, 5000, reset=True), "truncated: connection lost"),
    (response(gzip.compress(PICTURE)[:-30], Content_Encoding="gzip"), "truncated: gzip data end early"),
    (response(b"", 500), "HTTP 500"),
    (response(b"sorry" * 100_000, 503), "HTTP 503"),
])  # fmt: skip
def test_what_may_pass_is_retried(server, route, error):
    server.routes["/x.jpg"] = route
    fetched = fetch_one(server.url("/x.jpg"), server)
    assert fetched.error and fetched.error.startswith(error)
    assert (fetched.data, fetched.retryable, fetched.num_attempts) == (None, True, 3)
    assert server.count("/x.jpg") == 3


@pytest.mark.parametrize(("route", "error"), [
    (response(b"", 404), "HTTP 404"),
    (response(b"gone" * 100_000, 410), "HTTP 410"),
    (response(b"", 204, Content_Length=""), "HTTP 204"),
    (response(b"", 302), "HTTP 302"),
    (response(b"", 501), "HTTP 501"),
    (response(b""), "empty body"),
    (response(bytes((1 << 20) + 1)), "too large: 1,048,577 bytes by the header"),
    (response(b"", Content_Length=10**15), "too large: 1,000,000,000,000,000 bytes by the header"),
    (endless_body, "too large: more than 1,048,576 bytes"),
    (endless_headers, "too large: more than 64 KiB of headers"),
    (gzip_bomb(300 << 20), "too large: more than 1,048,576 bytes decoded"),
    (response(PICTURE, Content_Encoding="gzip"), "broken encoding: no gzip data"),
    (response(PICTURE, Content_Encoding="br"), "broken encoding: br was not asked for"),
    (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "not HTTP"),
    (b"HTTP/1.1 200x OK\r\nContent-Length: 1\r\n\r\na", "not HTTP: its first line is not an answer of HTTP"),
    (redirect("ftp://127.0.0.1/x"), "broken redirect: scheme 'ftp'"),
    (redirect("file:///etc/passwd"), "broken redirect: scheme 'file'"),
    (redirect("http://:80/"), "broken redirect: no usable host"),
])  # fmt: skip
def test_what_stays_is_not_retried(server, route, error):
    server.routes["/x.jpg"] = route
    fetched = fetch_one(server.url("/x.jpg"))
    assert fetched.error and fetched.error.startswith(error)
    assert (fetched.data, fetched.retryable, fetched.num_attempts) == (None, False, 1)
    assert server.count("/x.jpg") == 1


def deflated(data):
    """Without zlib's head."""
    bare = zlib.compressobj(wbits=-15)
    return bare.compress(data) + bare.flush()


@pytest.mark.parametrize(
    ("route", "data"),
    [
        (response(gzip.compress(PICTURE), Content_Encoding="gzip"), PICTURE),  # nobody asked for a coding
        (response(zlib.compress(PICTURE), Content_Encoding="deflate"), PICTURE),
        (response(deflated(PICTURE), Content_Encoding="deflate"), PICTURE),
        (response(LARGEST), LARGEST),
        (response(gzip.compress(LARGEST), Content_Encoding="gzip"), LARGEST),
        (response(b"100000\r\n%b\r\n0\r\n\r\n" % LARGEST, Content_Length="", Transfer_Encoding="chunked"), LARGEST),
        (response(PICTURE, Content_Length=100), PICTURE[:100]),
    ],
    ids=["gzip", "zlib", "deflate", "the largest", "the largest, gzip", "the largest, chunked", "longer than it says"],
)
def test_a_body_is_decoded_and_bounded(server, route, data):
    server.routes["/x.jpg"] = route
    assert fetch_one(server.url("/x.jpg")).data == data


def test_redirects_are_followed_as_far_as_allowed(server):
    for hop in range(1, 7):
        server.routes[f"/{hop}"] = redirect(f"{hop - 1}", (301, 302, 303, 307, 308, 301)[hop - 1])
    server.routes["/0"] = response(PICTURE)
    server.routes["/loop"] = redirect("/loop")
    server.routes["/long"] = response(b"<html>" * 100_000, 302, Location=server.url("/0"))
    five = fetch_one(server.url("/5"))
    assert (five.data, five.num_attempts) == (PICTURE, 1)
    assert fetch_one(server.url("/6")).error == "too many redirects"
    assert fetch_one(server.url("/loop")).error == "too many redirects"
    assert server.count("/loop") == 6
    assert fetch_one(server.url("/long")).data == PICTURE


def test_credentials_are_not_forwarded(server):
    seen = []

    def watch(request):
        seen.append(request.headers)
        return response(PICTURE)

    server.routes["/x.jpg"] = watch
    server.routes["/r.jpg"] = redirect(f"http://me:secret@127.0.0.1:{server.port}/x.jpg")
    assert fetch_one(server.url("/x.jpg").replace("//", "//user:password@")).data == PICTURE
    assert fetch_one(server.url("/r.jpg")).data == PICTURE
    assert len(seen) == 2 and not any("authorization" in headers or "cookie" in headers for headers in seen)


def test_proxies_of_the_environment_are_not_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert fetch_one(server.url("/good.jpg")).data == PICTURE


@pytest.mark.parametrize("address", [
    "127.0.0.2", "169.254.169.254", "224.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "[64:ff9b::10.0.0.1]", "2130706434",
    "0177.0.0.2",
])  # fmt: skip
def test_addresses_of_the_operators_network_are_refused(server, monkeypatch, address):
    """Given as such, or by a redirect: no socket is opened but those to the test's own server."""
    opened = record_sockets(monkeypatch)
    server.routes["/r.jpg"] = redirect(f"http://{address}/x.jpg")
    only = ("127.0.0.1/32",)
    direct = fetch_one(f"http://{address}/x.jpg", allow_networks=only)
    assert opened == [] and server.requests == []
    redirected = fetch_one(server.url("/r.jpg"), allow_networks=only)
    assert len(opened) == 1 and len(server.requests) == 1
    for fetched in (direct, redirected):
        assert fetched.error and fetched.error.startswith("address refused: ")
        assert (fetched.retryable, fetched.num_attempts) == (False, 1)


def record_sockets(monkeypatch):
    """The sockets that the downloader opens from now on."""
    opened = []
    real = socket.socket

    def record(*arguments):
        opened.append(real(*arguments))
        return opened[-1]

    monkeypatch.setattr(connection, "socket", SimpleNamespace(socket=record))
    return opened


def test_every_address_is_asked_about_before_it_is_connected_to(server):
    asked = []

    def only_the_server(address, port):
        asked.append((address, port))
        return (address, port) == ("127.0.0.1", server.port)

    inside = [
        "http://127.0.0.1:1/", "http://169.254.169.254/latest/meta-data", "http://[::1]/", "http://10.0.0.1:8080/",
    ]  # fmt: skip
    for i, url in enumerate(inside):
        server.routes[f"/{i}"] = redirect(url)
    names = ["rebound.test:80:127.0.0.3", f"good.test:{server.port}:127.0.0.1"]
    limits = config(max_connections=10)  # so few share one cache of names, which RESOLVE fills
    with Downloader(limits, address_allowed=only_the_server, curl_options={pycurl.RESOLVE: names}) as downloader:
        results = list(downloader.fetch([server.url(f"/{i}") for i in range(4)] + ["http://rebound.test/x.jpg"]))
        good = list(downloader.fetch([f"http://good.test:{server.port}/good.jpg"]))
    assert {fetched.error for fetched in results} == {
        f"address refused: {a}" for a in ("127.0.0.1", "169.254.169.254", "::1", "10.0.0.1", "127.0.0.3")
    }
    assert good[0].data == PICTURE
    assert set(asked) == {
        ("127.0.0.1", server.port), ("127.0.0.1", 1), ("169.254.169.254", 80), ("::1", 80), ("10.0.0.1", 8080),
        ("127.0.0.3", 80),
    }  # fmt: skip


@pytest.mark.parametrize(("url", "error", "attempts"), [
    ("http://nowhere.invalid/x.jpg", "DNS failure", 3),
    ("http://127.0.0.1:1/x.jpg", "connection refused", 3),
    ("http://a b/x.jpg", "invalid URL: no usable host", 0),
])  # fmt: skip
def test_hosts_that_are_not_there(url, error, attempts):
    fetched = fetch_one(url)
    assert (fetched.error, fetched.retryable, fetched.num_attempts) == (error, attempts > 0, attempts)


def test_an_https_url_of_a_plain_server_is_a_tls_error(server):
    fetched = fetch_one(server.url("/good.jpg").replace("http:", "https:"), timeout_s=0.4)
    assert fetched.error and fetched.error.startswith(("TLS: ", "timed out"))


@pytest.mark.parametrize("retry_after", ["1", "date"])
def test_retry_after_is_honoured_by_the_whole_host(server, retry_after):
    start = time.monotonic()
    value = formatdate(time.time() + 2, usegmt=True) if retry_after == "date" else retry_after
    server.routes["/busy.jpg"] = after_failures(1, response(b"", 429, Retry_After=value), PICTURE)
    times = []

    def watch(request):
        times.append(time.monotonic())
        return response(PICTURE)

    server.routes["/later.jpg"] = watch
    with Downloader(config(max_connections_per_host=1)) as downloader:
        results = list(downloader.fetch([server.url("/busy.jpg"), server.url("/later.jpg")]))
    assert [fetched.data for fetched in results] == [PICTURE, PICTURE]
    assert {fetched.num_attempts for fetched in results} == {1, 2}
    assert times[0] - start >= 0.95


def test_a_host_that_wants_us_back_too_late_is_left_alone(server):
    server.fallback = response(b"", 503, Retry_After=3600)
    with Downloader(config(max_connections_per_host=2)) as downloader:
        results = list(downloader.fetch([server.url(f"/{i}.jpg") for i in range(500)]))
    assert len(results) == 500 and all(fetched.retryable for fetched in results)
    assert len(server.requests) <= 2
    assert {fetched.error for fetched in results} <= {"HTTP 503", "HTTP 503: to be asked again in 3,600 s"}


def test_a_dead_host_is_given_up(server):
    server.fallback = silent
    with TimelessDownloader(server, config(max_failures_per_host=8, num_retries=0)) as downloader:
        results = list(downloader.fetch([server.url(f"/{i}.jpg") for i in range(1000)]))
    assert len(results) == 1000 and all(fetched.retryable for fetched in results)
    assert 8 <= len(server.requests) <= 16
    assert results[-1].error == "timed out: no answer; given up after 8 such failures in a row"


def test_a_picture_has_a_deadline(server):
    server.routes["/x.jpg"] = response(b"", 503)
    fetched = fetch_one(server.url("/x.jpg"), server, deadline_s=2.0, num_retries=100, backoff_s=0.1)
    assert (fetched.error, fetched.retryable) == ("HTTP 503", True)
    assert fetched.num_attempts == 5  # after waits that double: at 0, 0.1, 0.3, 0.7 and 1.5 s
    server.routes["/y.jpg"] = slow_loris(0.05)
    late = fetch_one(server.url("/y.jpg"), server, deadline_s=0.5)
    assert late.error and late.error.startswith("timed out: after") and late.wall_s == 0.5


def test_a_time_out_was_a_wait_already_a_refused_connection_was_none(server):
    server.routes["/x.jpg"] = silent
    late = fetch_one(server.url("/x.jpg"), server, timeout_s=1.0, backoff_s=1.0)
    assert (late.num_attempts, late.wall_s) == (3, 4.0)  # with the waits of a refused connection: 6
    refused = fetch_one("http://127.0.0.1:1/x.jpg", server, backoff_s=0.25)
    assert (refused.num_attempts, refused.wall_s) == (3, 0.75)


def test_ctrl_c_ends_promptly_and_the_downloader_serves_on(server):
    async def interrupt():
        await asyncio.sleep(0.2)  # the downloader only waits then; libcurl swallows what a callback of its raises
        _thread.interrupt_main()

    at_most = config().max_connections_per_host
    server.fallback = lambda request: interrupt() if len(server.requests) == at_most else silent(request)
    results = []
    with Downloader(config()) as downloader:
        with pytest.raises(KeyboardInterrupt):
            results.extend(downloader.fetch([server.url(f"/{i}.jpg") for i in range(100)]))
        assert not results  # no request had to time out first
        (fetched,) = downloader.fetch([server.url("/good.jpg")])
        assert fetched.data == PICTURE
        unfinished = downloader.fetch([server.url("/good.jpg")])
        next(unfinished)
        with pytest.raises(RuntimeError, match="has not finished"):
            next(downloader.fetch([server.url("/good.jpg")]))
        unfinished.close()
        assert len(list(downloader.fetch([server.url("/good.jpg")]))) == 1
