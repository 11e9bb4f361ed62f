"""How `align ingest` ends, and what it says of a host that slows it."""

import json
import re
from functools import partial

from align.cli import main
from align.ingest import fetching
from align.ingest.download.slow_hosts import SlowHosts
from align.ingest.ending import commonest, remedy
from align.web.failure import Failure, of_status
from tests.support.downloads import TimelessDownloader
from tests.support.reading import URL_TABLE, ingest_words, url_table
from tests.support.warc_records import picture
from tests.support.web_server import WebServer, silent
from tests.support.web_server import response as answer


def command(server, folder, routes, *settings):
    """Serves a picture, or what a route does, and writes a table of them."""
    server.routes |= {f"/{number}.png": route for number, route in enumerate(routes)}
    table = url_table(folder, [(server.url(f"/{n}.png"), f"a good text number {n}") for n in range(len(routes))])
    return ingest_words(folder, table, *URL_TABLE, *settings)


def test_the_commonest_reasons_are_named_with_what_to_set(tmp_path, capsys, monkeypatch):
    good, long = answer(picture(300, 250)), answer(b"x" * 5000)
    routes = [good, *[answer(b"", 503)] * 4, *[long] * 3, *[silent] * 2, answer(b"", 404)]
    with WebServer() as server:
        monkeypatch.setattr(fetching, "Downloader", partial(TimelessDownloader, server))
        assert main(command(server, tmp_path, routes, "download.max_image_bytes=4000")) == 0
    report = tmp_path / "reports/ingest/report.html"
    assert capsys.readouterr().err.splitlines()[-4:] == [
        "ingest: without a picture: HTTP 503: 4 (may pass: `align ingest` asks again)",
        "ingest: without a picture: too large: 3 (download.max_image_bytes)",
        "ingest: without a picture: timed out: 2 (may pass: `align ingest` asks again, with a larger "
        "download.timeout_s if the servers are slow)",
        f"ingest: without a picture: 1 other reason(s): 1; all in {report}",
    ]


def test_what_was_left_out_on_purpose_is_no_failure():
    errors = {"no text of it can pass the filter": 90, "address refused": 2, "robots.txt": 2, "HTTP 404": 1}
    lines = commonest(errors, "the page")
    assert [line.partition(" (")[0] for line in lines] == [
        f"without a picture: {what}" for what in ("address refused: 2", "robots.txt: 2", "HTTP 404: 1")
    ]
    assert "download.allow_networks" in lines[0] and "download.obey_robots" in lines[1] and "(" not in lines[2]
    assert commonest({}, "the page") == []


def test_a_status_is_said_to_pass_where_the_downloader_retries_it():
    for status in range(400, 600):
        assert (remedy(f"HTTP {status}") is not None) == of_status(status, None, 0.0).retryable, status


def test_no_picture_at_all_is_an_error_after_all_is_written(tmp_path, capsys):
    with WebServer() as server:
        arguments = command(server, tmp_path, [answer(b"", 503), answer(b"", 404)])
        assert main(arguments) == 1
        *_, last = capsys.readouterr().err.splitlines()
        assert last == f"align: error: {tmp_path / 'raw'}: none of its 2 pairs has a picture; `align ingest` asks again"
        assert (tmp_path / "raw/manifest.json").exists() and (tmp_path / "reports/ingest/report.html").exists()
        assert json.loads((tmp_path / "runtime/ingest.json").read_text())["outcome"] == "failed: DataError"
        server.routes["/0.png"] = answer(picture(300, 250))
        assert main(arguments) == 0
        server.routes["/0.png"] = answer(b"", 404)
        assert main([*arguments, "--set", "ingest.reuse=false"]) == 1
        assert "none of its 2 pairs has a picture; see above for the reasons" in capsys.readouterr().err


def lines_of(said):
    return re.findall(r"^ingest: (127\.0\.0\.1.*|more hosts.*)$", said, re.M)


def test_a_host_that_slows_us_is_said_once_while_it_happens(tmp_path, capsys):
    routes = [answer(b"", 503, Retry_After=1), *[answer(b"", 429)] * 7, answer(picture(300, 250))]
    one = ("download.max_connections_per_host=1", "download.deadline_s=200.0")
    with WebServer() as server:
        assert main(command(server, tmp_path, routes, *one)) == 0
        host = f"127.0.0.1:{server.port}"
    said = capsys.readouterr().err
    assert lines_of(said) == [
        f"{host} slows us: it answers HTTP 503 and wants a pause of 1 s; it gets fewer requests from now on "
        "(download.max_connections_per_host, download.max_requests_per_host_per_s)"
    ]
    assert said.index("slows us") < said.index("shards, 9 pairs")  # while it happens


def test_a_host_that_is_given_up_is_said_too_once_by_each_of_the_tasks_that_have_a_part_of_it(tmp_path, capfd):
    few = ("download.max_failures_per_host=2", "engine.num_workers=2", "ingest.shard_size=5")
    with WebServer() as server:
        assert main(command(server, tmp_path, [answer(b"", 429)] * 40, *few)) == 1
        host = f"127.0.0.1:{server.port}"
    lines = lines_of(capfd.readouterr().err)
    slows_us = sum("slows us" in line for line in lines)
    assert slows_us in (1, 2)  # the second of two tasks may begin when the first has done all eight shards
    [given_up] = {line for line in lines if "given up" in line}
    assert lines.count(given_up) == slows_us == len(lines) / 2
    assert given_up == (
        f"{host} is given up for now (HTTP 429: given up after 2 such failures in a row): its other pictures fail at "
        "once, and `align ingest` asks again later"
    )
    assert not [path.name for path in (tmp_path / "raw").iterdir() if "slow" in path.name or path.is_dir()]


def test_few_hosts_are_named(capsys):
    slow, busy = SlowHosts(), Failure("HTTP 429", retryable=True, busy=True, status=429)
    for number in (0, 0, *range(100)):
        slow.say_of(f"host{number}\x1b[2J", busy, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and "more hosts slow us" in lines[-1]
    assert all("\x1b" not in line for line in lines)
