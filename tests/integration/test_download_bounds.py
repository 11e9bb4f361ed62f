"""The downloader's work is bounded, however many hosts a crawl names and whatever they answer; and a take-down holds
however its picture is reached: by another spelling, or by a redirect, live or in an archive.
"""

import gzip
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pycurl
import pytest

from align.formats.policy import Entry, OptedOut, write_opted_out
from align.formats.raw import iter_images, raw_shards
from align.ingest.download import Downloader, hosts
from align.ingest.download.hosts import Host
from align.ingest.robots import MAX_BYTES
from align.web import connection
from tests.support import ROOT, missing
from tests.support.downloads import PICTURE, any_host, config, fetch_one
from tests.support.reading import ingested
from tests.support.warc_records import page, picture, record, write_archive
from tests.support.warc_records import response as archived
from tests.support.web_server import WebServer, endless_body, redirect, response


@pytest.fixture
def server():
    with WebServer() as running:
        running.fallback = response(PICTURE)
        yield running


@pytest.fixture
def dead_port():
    """A port of all loopback addresses on which nothing listens."""
    with socket.socket() as bound:
        bound.bind(("0.0.0.0", 0))
        yield bound.getsockname()[1]


def dead_urls(port, count):
    return [f"http://127.1.{i // 250}.{1 + i % 250}:{port}/x.jpg" for i in range(count)]


def test_a_host_is_looked_at_a_few_times_however_many_there_are(monkeypatch, dead_port):
    looks = 0
    is_idle = vars(Host)["is_idle"].fget

    def count(host):
        nonlocal looks
        looks += 1
        return is_idle(host)

    monkeypatch.setattr(Host, "is_idle", property(count))
    monkeypatch.setattr(hosts, "_MAX_HOSTS", 100)
    urls = dead_urls(dead_port, 2000)
    with Downloader(config(obey_robots=True, num_retries=0)) as downloader:
        for _ in range(2):
            assert {fetched.error for fetched in downloader.fetch(urls)} == {"connection refused"}
        assert looks <= 4 * 2 * len(urls)  # once they were half of 2,000 squared
        assert len(downloader._schedule.hosts) <= 2 * len(urls) + 100


def test_a_forgotten_host_is_still_not_asked_before_its_time(monkeypatch, server):
    monkeypatch.setattr(hosts, "_MAX_HOSTS", 10)
    server.routes["/busy.jpg"] = response(b"", 429, Retry_After=1000)
    with Downloader(config(), curl_options=any_host(server)) as downloader:
        list(downloader.fetch(["http://busy.test/busy.jpg"]))
        for i in range(20):
            list(downloader.fetch([f"http://{i}.test/x.jpg"]))
        (fetched,) = downloader.fetch(["http://busy.test/x.jpg"])
        assert fetched.error == "HTTP 429: to be asked again in 1,000 s"
        monkeypatch.setattr(hosts, "_MAX_BARRED", 0)
        list(downloader.fetch([f"http://a{i}.test/x.jpg" for i in range(20)]))
        assert len(downloader._schedule.hosts) < 40
        (fetched,) = downloader.fetch(["http://busy.test/x.jpg"])
        assert fetched.error is None  # nothing is remembered for ever


def test_libcurl_remembers_names_for_about_a_second():
    """It walks through all that it remembers at each look-up. On a busy machine a second may pass between two pictures,
    but not between each two.
    """
    asked = 0

    def count(*arguments):
        nonlocal asked
        asked += 1
        return 0

    with WebServer() as server:
        server.fallback = response(PICTURE, Connection="close")
        options = {pycurl.RESOLVER_START_FUNCTION: count, pycurl.IPRESOLVE: pycurl.IPRESOLVE_V4}
        with Downloader(config(), curl_options=options) as downloader:
            looks = []
            for _ in range(20):
                (fetched,) = downloader.fetch([f"http://a.localhost:{server.port}/x.jpg"])
                assert fetched.error is None
                looks.append(asked)
            assert len(set(looks)) < 20
            time.sleep(2.5)
            (fetched,) = downloader.fetch([f"http://a.localhost:{server.port}/x.jpg"])
            assert fetched.error is None and asked > looks[-1]


@pytest.mark.kill
def test_names_that_nobody_answers_for_do_not_hold_up_the_others(tmp_path):
    if shutil.which("unshare") is None or shutil.which("ip") is None or os.geteuid() != 0:
        missing("a name server of the test's own needs root, util-linux and iproute2")
    command = ["unshare", "-rmn", sys.executable, "-m", "tests.support.slow_names", "240", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=120, check=True)
    outcomes = json.loads(done.stdout)
    assert outcomes["slow timed out: no connection"] == 120
    assert outcomes["fast connection refused"] > 90, outcomes  # with one multi handle of libcurl: 9 of 120


def test_the_rules_of_all_hosts_together_are_bounded(monkeypatch, server):
    monkeypatch.setattr(hosts, "_MAX_RULES_BYTES", 1 << 20)
    large = "User-agent: *\n" + "".join(f"Disallow: /{i}\n" for i in range(2000))  # 300 KB in memory
    small = "User-agent: *\nDisallow: /x"

    def rules(request):
        return response((small if request.headers["host"].startswith("s") else large).encode())

    server.routes["/robots.txt"] = rules
    names = [f"{'s' if i % 2 else 'l'}{i}.test" for i in range(20)]
    urls = [f"http://{name}/{i}.jpg" for name in names for i in ("a", "b", "x")]
    with Downloader(config(obey_robots=True, max_connections=20), curl_options=any_host(server)) as downloader:
        results = {fetched.url: fetched for fetched in downloader.fetch(urls)}
        kept = [host.rules.num_bytes for host in downloader._schedule.hosts if host.rules is not None]
    assert sum(kept) <= 1 << 20
    errors = {url: fetched.error for url, fetched in results.items()}
    for name in names:
        of_host = [errors[f"http://{name}/{i}.jpg"] for i in ("a", "b", "x")]
        if name.startswith("s"):
            assert of_host == [None, None, "robots.txt: disallows it"]
        else:
            assert of_host in ([None] * 3, ["robots.txt: too large to keep now"] * 3)
    refused = [fetched for fetched in results.values() if fetched.error and "too large" in fetched.error]
    assert refused and all(fetched.retryable for fetched in refused)


@pytest.mark.parametrize("encoding", ["", "gzip", "identity"])
def test_just_500_kib_of_robots_txt_are_read(server, encoding):
    line = b"\nUser-agent: *\nDisallow: /x\n"
    for num_before, error in ((MAX_BYTES - len(line), "robots.txt: disallows it"), (MAX_BYTES, None)):
        body = b"#" * num_before + line + b"#" * 1_000_000
        body = gzip.compress(body) if encoding == "gzip" else body
        server.routes["/robots.txt"] = response(body, **({"Content_Encoding": encoding} if encoding else {}))
        assert fetch_one(server.url("/x.jpg"), obey_robots=True).error == error


@pytest.mark.parametrize(
    "header", ["Content-Length: 1", "Content-Encoding: a", "Location: a", "Retry-After: 1", "X-Robots-Tag: a"]
)
def test_a_header_with_many_spaces_takes_no_time(server, header):
    value = header.encode() + b" " * 60_000
    server.routes["/x.jpg"] = b"HTTP/1.1 302 Found\r\n" + value + b"b\r\nContent-Length: 0\r\n\r\n"
    start = time.process_time()
    assert fetch_one(server.url("/x.jpg"), num_retries=0).error
    assert time.process_time() - start < 2


def test_a_name_with_many_addresses_takes_few_sockets(dead_port, monkeypatch):
    opened = []
    most = 0
    real = connection.socket.socket

    class Counted:
        @staticmethod
        def socket(*arguments):
            nonlocal most
            opened.append(real(*arguments))
            most = max(most, sum(one.fileno() >= 0 for one in opened))
            return opened[-1]

    monkeypatch.setattr(connection, "socket", Counted)
    addresses = ",".join(f"127.0.{1 + i // 250}.{1 + i % 250}" for i in range(500))
    options = {pycurl.RESOLVE: [f"many.test:{dead_port}:{addresses}"]}
    with Downloader(config(num_retries=0), curl_options=options) as downloader:
        (fetched,) = downloader.fetch([f"http://many.test:{dead_port}/x.jpg"])
    assert fetched.error == "connection refused"
    assert len(opened) > 100 and most <= 3


def test_a_long_location_is_a_broken_redirect(server):
    server.routes["/x.jpg"] = redirect("/" + "a" * 60_000)
    server.routes["/y.jpg"] = redirect("../" * 20_000)
    assert fetch_one(server.url("/x.jpg")).error == "broken redirect: longer than 16,384 characters"
    assert fetch_one(server.url("/y.jpg")).data == PICTURE


def test_memory_is_bounded_however_many_large_bodies_come_at_a_time(server):
    """40 pictures of 4 MiB at once, 8 MiB of these may be in memory: the rest waits without timing out."""
    body = bytes(4 << 20)
    server.fallback = response(body)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    server.routes["/chunked.jpg"] = response(chunked, Content_Length="", Transfer_Encoding="chunked")
    server.routes["/endless.jpg"] = endless_body
    names = ("plain", "chunked", "plain", "endless")
    urls = [f"http://{i}.test/{names[i % 4]}.jpg" for i in range(53)]
    context = multiprocessing.get_context("spawn")  # a process of its own, since the server has the bodies, too
    with context.Pool(1) as pool:
        outcomes, growth, passed_s = pool.apply(_large_bodies, (urls, any_host(server)))
    assert Counter(outcomes) == {len(body): 40, "too large: more than 4,194,304 bytes": 13}
    print(f"grew by {growth >> 20} MiB, {passed_s} s")
    assert growth < (40 << 20)  # all of them at once: more than 160 MiB
    assert passed_s > 5  # more than twice the time-out


class _Paused(Downloader):
    """1.5 s pass for each picture that all others wait for, and no time otherwise."""

    now_s, _last = 0.0, None

    def _now(self):
        return self.now_s

    def _advance(self, *, wait):
        super()._advance(wait=wait)
        job, _ = self._active.get(self._budget.leader, (self._last, None))
        if job is not self._last and len(self._budget.paused) == len(self._active) - 1 > 0:
            self._last, self.now_s = job, self.now_s + 1.5
            self._sweep(self.now_s)


def _large_bodies(urls, curl_options):
    limits = config(max_image_bytes=4 << 20, timeout_s=2.0, deadline_s=200.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("align.ingest.download.downloader._MAX_BYTES_IN_FLIGHT", 8 << 20)
        paused = _Paused(limits, curl_options=curl_options)
    with paused as downloader:
        before = _peak_bytes()
        outcomes = [len(fetched.data) if fetched.data else fetched.error for fetched in downloader.fetch(urls)]
        return outcomes, _peak_bytes() - before, downloader.now_s


def _peak_bytes():
    """Of this process's memory so far."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10


RED = picture(300, 250, "red")


def opted_out(*entries):
    return OptedOut(Entry(kind, value, "", "2026-01-02") for kind, value in entries)


@pytest.mark.parametrize(
    "target",
    [
        "http://gone.test/x.jpg", "http://GONE.test/x.jpg", "http://gone.test./x.jpg", "//gone.test:80/x.jpg",
        "http://me:secret@gone.test/x.jpg", "http://img.gone.test/x.jpg", "https://gone.test/x.jpg",
        "http://\uff47one.test/x.jpg", "http://gone\u3002test/x.jpg", "http://b\xfccher.test/x.jpg",
        "http://xn--bcher-kva.test/x.jpg", "http://127.0.0.9/x.jpg", "http://0x7f.9/x.jpg", "http://2130706441/x.jpg",
        "http://ok.test/a/x.jpg", "http://ok.test/%61/x%2ejpg", "http://ok.test/b/../a/./x.jpg#top",
        "http://OK.test:80/b/%2e%2e/a/x.jpg",
    ],
)  # fmt: skip
def test_every_hop_is_asked_before_it_is_requested(server, target):
    policy = opted_out(
        ("host", "gone.test"), ("host", "b\xfccher.test"), ("host", "127.0.0.9"), ("url", "http://ok.test/a/x.jpg")
    )
    server.routes["/one"] = redirect("/two")
    server.routes["/two"] = redirect(target)
    server.routes["/robots.txt"] = response(b"", 404)
    urls = ["http://a.test/one", target.replace("//gone.test:80", "http://gone.test:80"), "http://a.test/fine.jpg"]
    with Downloader(config(obey_robots=True), refuse=policy.refusal, curl_options=any_host(server)) as downloader:
        results = {fetched.url: fetched for fetched in downloader.fetch(urls)}
    assert [results[url].error for url in urls] == ["opted out", "opted out", None]
    assert not any(results[url].retryable or results[url].data for url in urls[:2])
    asked = ["a.test/robots.txt", "a.test/one", "a.test/two", "a.test/fine.jpg"]
    assert sorted(server.requests) == sorted(asked)  # no request to what is refused, not even for its robots.txt


def test_robots_txt_is_not_fetched_from_a_host_that_opted_out(server):
    server.routes["/robots.txt"] = redirect("http://gone.test/rules")
    policy = opted_out(("host", "gone.test"))
    with Downloader(config(obey_robots=True), refuse=policy.refusal, curl_options=any_host(server)) as downloader:
        (fetched,) = downloader.fetch(["http://a.test/x.jpg"])
    assert fetched.error == "robots.txt unreachable: opted out"
    assert server.requests == ["a.test/robots.txt"]


def ingest(tmp_path, policy, archive, *values):
    """Runs the command; returns the rows of data/raw, with the picture's bytes as `data`."""
    write_opted_out(tmp_path / "policy", policy)
    rows = ingested(tmp_path, archive, *values, "ingest.max_pages=null", "ingest.skip_hopeless=false")
    data = dict(iter_images(*raw_shards(tmp_path / "raw")))
    return sorted(({**row, "data": data.get(row["key"])} for row in rows), key=lambda row: str(row["url"]))


def test_a_redirect_within_an_archive_does_not_lead_around_a_take_down(tmp_path):
    def moved(url, to):
        return archived(url, b"", "text/html", "301 Moved", f"Location: {to}\r\n")

    html = "".join(f'<img src="/{name}.png" alt="{name}">' for name in ("direct", "far", "near", "other", "same"))
    write_archive(tmp_path / "a.warc.gz", [
        page("http://a.test/", html),
        archived("http://a.test/direct.png", RED, "image/png"),
        moved("http://a.test/near.png", "http://GONE.test:80/red.png"),
        moved("http://a.test/far.png", "/far2.png"), moved("http://a.test/far2.png", "/far3.png"),
        moved("http://a.test/far3.png", "http://cdn.gone.test/red.png"),
        moved("http://cdn.gone.test/red.png", "http://b.test/red.png"),
        moved("http://a.test/other.png", "http://b.test/red.png"),
        record("revisit", "http://a.test/same.png", b"", "application/http",
               "WARC-Refers-To-Target-URI: http://gone.test/red.png\r\n"),
        archived("http://gone.test/red.png", RED, "image/png"), archived("http://b.test/red.png", RED, "image/png"),
    ])  # fmt: skip
    values = ("ingest.source=warc", "ingest.images_from=archive")
    rows = ingest(tmp_path, opted_out(("host", "gone.test")), tmp_path / "a.warc.gz", *values)
    names = {row["url"]: row["url"].removeprefix("http://a.test/").removesuffix(".png") for row in rows}
    outcomes = {names[row["url"]]: (row["status"], row["error_message"], row["retryable"]) for row in rows}
    refused, good = ("failed_to_download", "opted out", False), ("success", None, False)
    assert outcomes == {"direct": good, "far": refused, "near": refused, "other": good, "same": refused}
    assert all((row["caption"], row["data"], row["sha256"]) == ("", None, None) for row in rows if row["error_message"])


def test_a_redirect_on_the_web_does_not_lead_around_a_take_down(tmp_path):
    with WebServer(["127.0.0.1", "127.0.0.2"]) as server:
        server.fallback = response(RED)
        server.routes["/robots.txt"] = response(b"", 404)
        server.routes["/r.png"] = redirect(server.url("/red.png", "127.0.0.2"))
        (tmp_path / "pairs.csv").write_text(
            f"url,caption\n{server.url('/r.png')},redirected\n{server.url('/red.png')},direct\n"
            f"{server.url('/red.png', '127.0.0.2')},refused\n"
        )
        rows = ingest(tmp_path, opted_out(("host", "127.0.0.2")), tmp_path / "pairs.csv", "ingest.source=url_table")
        direct, redirected = server.url("/red.png"), server.url("/r.png")
        refused = server.url("/red.png", "127.0.0.2")
        assert {row["url"]: row["error_message"] for row in rows} == {
            direct: None, redirected: "opted out", refused: "opted out",
        }  # fmt: skip
        assert not any(path.startswith("127.0.0.2") for path in server.requests)
