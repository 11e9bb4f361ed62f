"""A take-down holds however its picture is reached: by another spelling, or by a redirect, live or in an archive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.cli import main
from align.formats.policy import Entry, OptedOut, write_opted_out
from align.formats.raw import iter_images, raw_shards, read_table
from align.ingest.download import Downloader
from tests.support.downloads import PICTURE, any_host, config
from tests.support.params import PARAMS_FILE
from tests.support.warc_records import page, picture, record, write_archive
from tests.support.warc_records import response as archived
from tests.support.web_server import WebServer, redirect, response

RED = picture(300, 250, "red")


def opted_out(*entries: tuple[str, str]) -> OptedOut:
    return OptedOut(Entry(kind, value, "", "2026-01-02") for kind, value in entries)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer() as running:
        running.fallback = response(PICTURE)
        yield running


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
def test_every_hop_is_asked_before_it_is_requested(server: WebServer, target: str) -> None:
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


def test_robots_txt_is_not_fetched_from_a_host_that_opted_out(server: WebServer) -> None:
    server.routes["/robots.txt"] = redirect("http://gone.test/rules")
    policy = opted_out(("host", "gone.test"))
    with Downloader(config(obey_robots=True), refuse=policy.refusal, curl_options=any_host(server)) as downloader:
        (fetched,) = downloader.fetch(["http://a.test/x.jpg"])
    assert fetched.error == "robots.txt unreachable: opted out"
    assert server.requests == ["a.test/robots.txt"]


def ingest(tmp_path: Path, policy: OptedOut, **settings: Any) -> list[dict[str, Any]]:
    """Runs the command; returns the rows of data/raw, with the picture's bytes as `data`."""
    write_opted_out(tmp_path / "policy", policy)
    where = {"paths.raw": "raw", "paths.reports": "reports", "paths.runtime": "runtime", "paths.policy": "policy"}
    settings |= {name: tmp_path / folder for name, folder in where.items()}
    settings |= {"engine.num_workers": 1, "ingest.max_pages": "null", "ingest.skip_hopeless": "false"}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert main(["ingest", "--params", str(PARAMS_FILE), *words]) == 0
    rows = []
    for shard in raw_shards(tmp_path / "raw"):
        data = dict(iter_images(shard))
        rows += [{**row, "data": data.get(row["key"])} for row in read_table(shard).to_pylist()]
    return sorted(rows, key=lambda row: str(row["url"]))


def test_a_redirect_within_an_archive_does_not_lead_around_a_take_down(tmp_path: Path) -> None:
    def moved(url: str, to: str) -> bytes:
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
    settings = {"paths.archive": tmp_path / "a.warc.gz", "ingest.source": "warc", "ingest.images_from": "archive"}
    rows = ingest(tmp_path, opted_out(("host", "gone.test")), **settings)
    names = {row["url"]: row["url"].removeprefix("http://a.test/").removesuffix(".png") for row in rows}
    outcomes = {names[row["url"]]: (row["status"], row["error_message"], row["retryable"]) for row in rows}
    refused, good = ("failed_to_download", "opted out", False), ("success", None, False)
    assert outcomes == {"direct": good, "far": refused, "near": refused, "other": good, "same": refused}
    assert all((row["caption"], row["data"], row["sha256"]) == ("", None, None) for row in rows if row["error_message"])


def test_a_redirect_on_the_web_does_not_lead_around_a_take_down(tmp_path: Path) -> None:
    with WebServer(["127.0.0.1", "127.0.0.2"]) as server:
        server.fallback = response(RED)
        server.routes["/robots.txt"] = response(b"", 404)
        server.routes["/r.png"] = redirect(server.url("/red.png", "127.0.0.2"))
        (tmp_path / "pairs.csv").write_text(
            f"url,caption\n{server.url('/r.png')},redirected\n{server.url('/red.png')},direct\n"
            f"{server.url('/red.png', '127.0.0.2')},refused\n"
        )
        settings = {"paths.archive": tmp_path / "pairs.csv", "ingest.source": "url_table"}
        settings |= {"download.allow_networks": "[127.0.0.0/8]"}
        rows = ingest(tmp_path, opted_out(("host", "127.0.0.2")), **settings)
        direct, redirected = server.url("/red.png"), server.url("/r.png")
        refused = server.url("/red.png", "127.0.0.2")
        assert {row["url"]: row["error_message"] for row in rows} == {
            direct: None, redirected: "opted out", refused: "opted out",
        }  # fmt: skip
        assert not any(path.startswith("127.0.0.2") for path in server.requests)
