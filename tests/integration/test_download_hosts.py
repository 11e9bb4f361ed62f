"""The downloader's manners: limits by host, robots.txt, X-Robots-Tag; and many hosts at a time."""

import asyncio
from collections import Counter

import pycurl
import pytest

from align.ingest.download import Downloader
from tests.support.downloads import PICTURE, TimelessDownloader, any_host, config
from tests.support.http2_server import Http2Server
from tests.support.web_server import WebServer, after_failures, breaks_off, delayed, redirect, response, silent


@pytest.fixture
def server():
    with WebServer() as running:
        running.fallback = response(PICTURE)
        running.routes["/robots.txt"] = response(b"", 404)
        yield running


def fetch(server, urls, **changes):
    with TimelessDownloader(server, config(**changes), curl_options=any_host(server)) as downloader:
        return {fetched.url: fetched for fetched in downloader.fetch(urls)}


def test_connections_are_few_and_kept(server):
    server.fallback = delayed(0.01, response(PICTURE))
    urls = [f"http://{name}.test/{i}.jpg" for name in "ab" for i in range(100)]
    results = fetch(server, urls, max_connections_per_host=3)
    assert all(fetched.data == PICTURE for fetched in results.values())
    assert server.num_connections == 6 and server.most_open == 6


def test_an_error_does_not_cost_the_connection(server):
    server.routes["/gone.jpg"] = response(b"not here" * 500, 404)
    urls = [f"http://a.test/gone.jpg?{i}" for i in range(50)]
    results = fetch(server, urls, max_connections_per_host=2)
    assert {fetched.error for fetched in results.values()} == {"HTTP 404"}
    assert server.num_connections == 2


def test_the_total_of_connections_is_bounded(server):
    server.fallback = delayed(0.01, response(PICTURE))
    fetch(server, [f"http://{i}.test/x.jpg" for i in range(100)], max_connections=5)
    # as many again are kept for later, and of as many the server may not know yet that they were closed
    assert server.most_open <= 3 * 5


def test_a_host_is_not_asked_faster_than_its_rate(server):
    times = {"a.test": [], "b.test": []}

    def watch(request):
        times[request.headers["host"]].append(downloader.now_s)
        return response(PICTURE)

    server.fallback = watch
    urls = [f"http://{name}.test/{i}.jpg" for name in "ab" for i in range(5)]
    limits = config(max_requests_per_host_per_s=2.0)
    with TimelessDownloader(server, limits, curl_options=any_host(server)) as downloader:
        assert len(list(downloader.fetch(urls))) == 10
    assert times == {"a.test": [0.0, 0.5, 1.0, 1.5, 2.0], "b.test": [0.0, 0.5, 1.0, 1.5, 2.0]}


def test_a_slow_host_does_not_hold_up_the_others(server):
    server.routes["/slow.jpg"] = silent
    urls = [f"http://slow.test/slow.jpg?{i}" for i in range(200)]
    urls += [f"http://fast.test/{i}.jpg" for i in range(200)]
    num_fast = 0
    limits = config(max_connections=16, num_retries=0)
    with TimelessDownloader(server, limits, curl_options=any_host(server)) as downloader:
        for fetched in downloader.fetch(urls):
            assert fetched.data  # and no time-out of the slow one
            num_fast += 1
            if num_fast == 200:
                break
        assert downloader.now_s == 0


def test_the_table_is_read_no_further_than_needed(server):
    taken = 0

    def table():
        nonlocal taken
        for i in range(100_000):
            taken += 1
            yield f"http://{i % 100}.test/{i}.jpg"

    with Downloader(config(), curl_options=any_host(server)) as downloader:
        results = downloader.fetch(table())
        assert all(next(results).data == PICTURE for _ in range(100))
        assert taken <= 100 + 20_000
        results.close()


def test_a_busy_host_is_asked_less_at_a_time_until_it_copes(server):
    under_way = 0

    def at_most_two(request):
        async def go():
            nonlocal under_way
            under_way += 1
            await delayed(0.005, response(PICTURE) if under_way <= 2 else response(b"", 429))(request)
            under_way -= 1

        return go()

    server.fallback = at_most_two
    results = fetch(server, [f"http://a.test/{i}.jpg" for i in range(100)], max_connections_per_host=8, num_retries=6)
    assert Counter(fetched.error for fetched in results.values()) == {None: 100}


ROBOTS = b"""
User-agent: *
Disallow: /

User-agent: other-robot
User-agent: align-ingest
Disallow: /private
Allow: /private/open
Disallow: /*.gif$
Crawl-delay: 100
"""


def test_what_is_not_asked_for_does_not_count_into_the_rate(server):
    server.routes["/robots.txt"] = response(ROBOTS, Content_Type="text/plain")
    urls = [f"http://a.test/private/{i}.jpg" for i in range(500)]
    limits = config(obey_robots=True, max_requests_per_host_per_s=5.0)
    with TimelessDownloader(server, limits, curl_options=any_host(server)) as downloader:
        assert len(list(downloader.fetch(urls))) == 500 and downloader.now_s < 1  # with it: 100 s


@pytest.mark.parametrize(
    ("route", "error", "retryable"),
    [
        (response(b"", 404), None, False),
        (response(b"", 403), None, False),
        (redirect("/robots.txt"), None, False),
        (redirect("http://b.test/rules"), "robots.txt: disallows it", False),
        (
            response(b"\xef\xbb\xbfUser-agent: *\nDisallow: /x", Content_Type="text/plain"),
            "robots.txt: disallows it",
            False,
        ),
        (response(b"<html>\xff\x00 no rules here", X_Robots_Tag="noai"), None, False),
        (after_failures(2, response(b"", 500), b"User-agent: *\nDisallow: /x"), "robots.txt: disallows it", False),
        (response(b"User-agent: *\nContent-Signal: /x ai-train=no"), "Content-Signal: in robots.txt", False),
        (response(b"User-agent: GPTBot\nDisallow: /x"), "training robots: robots.txt disallows gptbot", False),
        (response(b"", 500), "robots.txt unreachable: HTTP 500", True),
        (response(b"", 429), "robots.txt unreachable: HTTP 429", True),
        (silent, "timed out: no answer", True),
        (breaks_off(b"User-agent: *", 5), "truncated: connection lost after 5 bytes", True),
    ],
)
def test_what_robots_txt_can_be(server, route, error, retryable):
    server.routes["/robots.txt"] = route
    server.routes["/rules"] = response(b"User-agent: *\nDisallow: /x", Content_Type="text/plain")
    urls = [f"http://a.test/x{i}.jpg" for i in range(3)]
    results = fetch(server, urls, obey_robots=True)
    assert {(fetched.error, fetched.retryable) for fetched in results.values()} == {(error, retryable)}
    assert any(path.startswith("a.test/x") for path in server.requests) == (error is None)


#: Disallowed paths, by host.
RULES = {
    "a.test": ["/private/", "/shut", "/*?size=large"],
    "b.test": ["/private/", "/r.jpg", "/*?size=large"],
    "a.test:81": ["/"],
}


@pytest.mark.parametrize(
    ("first", "hops", "asked", "is_allowed"),
    [
        ("a.test/r.jpg", "http://b.test/x.jpg", "a.test/robots a.test/r.jpg b.test/robots b.test/x.jpg", True),
        ("a.test/r.jpg", "http://b.test/private/x.jpg", "a.test/robots a.test/r.jpg b.test/robots", False),
        ("a.test/r.jpg", "http://b.test/shut", "a.test/robots a.test/r.jpg b.test/robots b.test/shut", True),
        ("a.test/r.jpg", "/x.jpg", "a.test/robots a.test/r.jpg a.test/x.jpg", True),
        ("a.test/r.jpg", "/x/../private/x.jpg", "a.test/robots a.test/r.jpg", False),
        ("a.test/r.jpg", "private/x.jpg", "a.test/robots a.test/r.jpg", False),
        ("a.test/r.jpg?size=large", "/x.jpg", "a.test/robots", False),
        ("a.test/r.jpg", "/x.jpg?size=large", "a.test/robots a.test/r.jpg", False),
        ("a.test/r.jpg", "http://a.test:81/x.jpg", "a.test/robots a.test/r.jpg a.test:81/robots", False),
        ("a.test/r.jpg", "/s http://b.test/private/", "a.test/robots a.test/r.jpg a.test/s b.test/robots", False),
        ("a.test/r.jpg", "http://b.test/s /private/", "a.test/robots a.test/r.jpg b.test/robots b.test/s", False),
    ],
)
def test_each_hop_is_judged_by_its_own_path_and_the_robots_txt_of_its_own_host(server, first, hops, asked, is_allowed):
    def rules(request):
        lines = ["User-agent: *", *(f"Disallow: {path}" for path in RULES[request.headers["host"]])]
        return response("\n".join(lines).encode())

    server.routes["/robots.txt"] = rules
    for path, target in zip(["/r.jpg", "/s"], hops.split(), strict=False):
        server.routes[path] = redirect(target)
    (fetched,) = fetch(server, [f"http://{first}"], obey_robots=True).values()
    assert fetched.error == (None if is_allowed else "robots.txt: disallows it")
    assert server.requests == asked.replace("/robots", "/robots.txt").split()


@pytest.mark.parametrize(
    ("tag", "error"),
    [
        ("noai", "noai"), ("nofollow, NoImageAI", "noimageai"), ("noindex", "noindex"), ("none", "none"),
        ("noimageindex", "noimageindex"), ("align-ingest: noai", "noai"),
        ("otherbot: noarchive, align-ingest: noai", "noai"),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noai", "noai"),
        ("otherbot: noai, noindex", None), ("nofollow", None), ("all", None), ("max-image-preview: none", None),
        ("noaid", None),
    ],
)  # fmt: skip
def test_x_robots_tag_is_obeyed_before_the_body(server, tag, error):
    sent = []  # by request: a body that is refused may still be sent while the next one begins

    async def large(request):
        number = len(sent)
        sent.append(0)
        request.write(response(X_Robots_Tag=tag, Content_Length=1 << 20))
        while sent[number] < 1 << 20 and not request.transport.is_closing():
            await asyncio.sleep(0.002)
            sent[number] += 1 << 15
            request.write(bytes(1 << 15))

    server.fallback = large
    (fetched,) = fetch(server, ["http://a.test/x.jpg"], obey_robots=True).values()
    assert fetched.error == (f"X-Robots-Tag: {error}" if error else None)
    assert (sent[0] < 1 << 20) == (error is not None)
    (fetched,) = fetch(server, ["http://a.test/x.jpg"]).values()  # where robots are not obeyed
    assert fetched.error is None and sent[1:] == [1 << 20]


def test_headers_that_forbid_training(server):
    server.routes["/a.jpg"] = response(PICTURE, Content_Signal="search=yes, ai-train=no")
    server.routes["/b.jpg"] = response(PICTURE, Content_Usage="train-ai=y")
    urls = ["http://a.test/a.jpg", "http://a.test/b.jpg"]
    results = fetch(server, urls, obey_robots=True)
    assert [results[url].error for url in urls] == ["Content-Signal: in its headers", None]
    assert {fetched.error for fetched in fetch(server, urls).values()} == {None}


def test_two_thousand_urls_of_twenty_hosts_some_of_them_bad(server):
    kinds = {
        "slow": (silent, "timed out: no answer", 2),
        "broken": (breaks_off(PICTURE, 100), "truncated: connection lost after 100 bytes", 2),
        "gone": (response(b"", 404), "HTTP 404", 1), "flaky": (response(PICTURE), None, 2),
    }  # fmt: skip
    urls, expected = [], {}
    for i in range(2000):
        kind = ("slow", "broken", "gone", "flaky")[i % 20 // 5] if i % 20 in (0, 5, 10, 15) else ""
        route, error, attempts = kinds.get(kind, (None, None, 1))
        path = f"/{kind}{i}.jpg"
        if kind == "flaky":
            server.routes[path] = after_failures(1, response(b"", 503), PICTURE)
        elif route:
            server.routes[path] = route
        url = f"http://host{i // 20 % 20}.test{path}"
        urls.append(url)
        expected[url] = (error, attempts)
    limits = config(num_retries=1, timeout_s=2.0, backoff_s=0.01)
    with TimelessDownloader(server, limits, curl_options=any_host(server)) as downloader:
        results = list(downloader.fetch(urls))
        assert downloader.now_s < 20  # one by one: 20 for each host, 400 for all
    assert {fetched.url: (fetched.error, fetched.num_attempts) for fetched in results} == expected
    assert len(results) == 2000
    codes = Counter("ok" if fetched.error is None else fetched.error.partition(":")[0] for fetched in results)
    assert codes == {"ok": 1700, "timed out": 100, "truncated": 100, "HTTP 404": 100}
    assert sum(fetched.num_attempts for fetched in results) == 2000 + 100 * 3


def test_http2_shares_one_connection(tmp_path):
    with Http2Server(tmp_path, PICTURE) as server:
        options = {pycurl.CAINFO: str(server.certificate)} | {pycurl.CONNECT_TO: [f"::127.0.0.1:{server.port}"]}
        urls = [f"https://pictures.test/{i}.jpg" for i in range(200)]
        with Downloader(config(obey_robots=True), curl_options=options) as downloader:
            assert [fetched.error for fetched in downloader.fetch(urls)] == [None] * 200
        assert server.num_connections == 1 and server.num_streams == 201 and server.most_streams == 8
        with Downloader(config(num_retries=0), curl_options={pycurl.CONNECT_TO: options[pycurl.CONNECT_TO]}) as strict:
            (fetched,) = strict.fetch(urls[:1])
        assert fetched.error and fetched.error.startswith("TLS: ") and not fetched.retryable
