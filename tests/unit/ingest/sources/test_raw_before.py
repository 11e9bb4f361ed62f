"""A table that gained rows, and the data/raw before it: only what that does not know is asked for."""

import io
import itertools
import shutil

import pytest

from align.cli import main
from align.formats.policy import Entry, OptedOut, write_opted_out
from align.formats.raw import image_spans, raw_shards
from align.ingest import lanes
from tests.support.killing import digests
from tests.support.reading import URL_TABLE, ingest_words, raw_rows, url_table
from tests.support.warc_records import picture
from tests.support.web_server import WebServer, redirect
from tests.support.web_server import response as answer

#: What the server has beside pictures.
GONE, LATE, BROKEN, LOGO = 2, 3, 4, 5


def command(server, folder, rows, *settings, raw="raw"):
    """The words of `align ingest` for a table of these rows; row LOGO has a text that cannot pass."""
    table = url_table(folder, [(server.url(f"/{n}.png"), "logo" if n == LOGO else f"a good text {n}") for n in rows])
    own = ("ingest.shard_size=3", "download.obey_robots=false", "download.resize_px=200", f"paths.raw={folder / raw}")
    return ingest_words(folder, table, *URL_TABLE, *own, *settings)


@pytest.fixture
def server():
    with WebServer() as running:
        running.routes |= {f"/{number}.png": answer(picture(300 + number, 250)) for number in range(20)}
        running.routes |= {f"/{GONE}.png": answer(b"", 404), f"/{LATE}.png": answer(b"", 503)}
        running.routes[f"/{BROKEN}.png"] = answer(b"no picture")
        yield running


def asked(server):
    """What was asked for since the last call."""
    paths = sorted(request.partition("/")[2].removesuffix(".png") for request in server.requests)
    server.requests.clear()
    return paths


def numbers(*of):
    return sorted(map(str, of))


def fresh(server, folder, rows, *settings):
    """What an ingest makes that reuses nothing."""
    assert main(command(server, folder, rows, *settings, raw="fresh")) == 0
    assert len(asked(server)) >= len(rows) - 1
    made = digests(folder / "fresh")
    shutil.rmtree(folder / "fresh")
    return made


def test_requests_are_the_new_rows_and_failures_that_may_pass(tmp_path, server):
    """12 rows, then 13, in as many shards as before; then twenty, in more."""
    assert main(command(server, tmp_path, range(12))) == 0
    assert asked(server) == numbers(*(n for n in range(12) if n != LOGO))
    for rows, new in ((range(13), [12]), (range(20), range(13, 20)), (range(1, 20), [])):
        assert main(command(server, tmp_path, rows)) == 0
        assert asked(server) == numbers(LATE, *new)
        made = digests(tmp_path / "raw")
        assert made == fresh(server, tmp_path, rows)
    server.routes[f"/{LATE}.png"] = answer(picture(400, 300))
    assert main(command(server, tmp_path, range(20), "filter.min_words=1")) == 0
    assert asked(server) == numbers(0, LATE, LOGO)
    assert digests(tmp_path / "raw") == fresh(server, tmp_path, range(20), "filter.min_words=1")
    assert main(command(server, tmp_path, range(20), "filter.min_words=1")) == 0
    assert asked(server) == []  # nothing is left that may pass


def test_a_killed_run_reuses_for_the_shards_that_it_lacks(tmp_path, server, monkeypatch):
    words = command(server, tmp_path, range(12))
    assert main(words) == 0
    write, calls = lanes.write_fetched, itertools.count()

    def killed_after_two(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(lanes, "write_fetched", killed_after_two)
        assert main([*words, "--set", "filter.max_words=9"]) == 130
    asked(server)
    assert main([*words, "--set", "filter.max_words=8"]) == 0  # lists anew what it lacks
    assert asked(server) in ([], numbers(LATE))
    assert digests(tmp_path / "raw") == fresh(server, tmp_path, range(12))


def test_what_was_redirected_to_another_host_is_known_by_its_own_address(tmp_path):
    """It was in a shard of the second round, and is in one of the first now."""
    with WebServer(["127.0.0.1", "127.0.0.2"]) as server:
        server.routes |= {
            "/0.png": redirect(server.url("/there.png", "127.0.0.2")),
            "/1.png": answer(picture(300, 250)),
        }
        server.routes["/there.png"] = answer(picture(301, 250))
        words = command(server, tmp_path, range(2))
        assert main(words) == 0
        before = {row["url"]: (row["status"], row["sha256"]) for row in raw_rows(tmp_path / "raw")}
        assert asked(server) == ["0", "1", "there"] and len(raw_shards(tmp_path / "raw")) == 2
        assert main(words) == 0
        assert asked(server) == []
    assert {row["url"]: (row["status"], row["sha256"]) for row in raw_rows(tmp_path / "raw")} == before
    assert [status for status, _ in before.values()] == ["success"] * 2 and len(raw_shards(tmp_path / "raw")) == 1


def test_other_values_ask_for_all_again_and_other_patience_does_not(tmp_path, server, monkeypatch, capsys):
    first = numbers(*(n for n in range(6) if n != LOGO))
    settings = ["download.user_agent=another/1.0", "download.resize_px=100", "ingest.max_image_pixels=99999"]
    for number in range(4):
        assert main(command(server, tmp_path, range(6), *settings[:number])) == 0
        assert asked(server) == first, number
    assert main(command(server, tmp_path, range(6), *settings, "ingest.reuse=false")) == 0
    assert asked(server) == first
    capsys.readouterr()
    assert main(command(server, tmp_path, range(6), *settings, "download.timeout_s=9.0", "ingest.shard_size=2")) == 0
    assert asked(server) == numbers(LATE)
    said = capsys.readouterr().err
    assert "ingest: 1 pairs of the data/raw before failed in a way that may pass, and are asked for again" in said
    assert "ingest: 4 addresses are known from the data/raw before, and not asked for" in said
    monkeypatch.setattr("align.ingest.ending.provenance.digest", lambda *_: "another")
    assert main(command(server, tmp_path, range(6), *settings)) == 0
    assert asked(server) == first
    assert "which was made with another code" in capsys.readouterr().err


def test_what_is_taken_down_or_damaged_is_not_reused(tmp_path, server, capsys):
    assert main(command(server, tmp_path, range(12))) == 0
    rows = {row["url"]: row for row in raw_rows(tmp_path / "raw")}
    content = rows[server.url("/8.png")]["sha256"]
    entries = [("url", server.url("/7.png")), ("image_id", content)]
    write_opted_out(tmp_path / "policy", OptedOut(Entry(*entry, "asked", "2026-01-01") for entry in entries))
    damaged, changed, *_ = [  # the port decides which shards have pictures
        shard.tar for shard in raw_shards(tmp_path / "raw") if any(image_spans(io.BytesIO(shard.tar.read_bytes()), ""))
    ]
    damaged.chmod(0o644)
    damaged.write_bytes(damaged.read_bytes()[:700])
    lost = [row["url"] for row in rows.values() if row["key"].startswith(damaged.stem)]
    changed.chmod(0o644)
    with changed.open("r+b") as tar:
        key, offset, size = next(image_spans(tar, ""))
        tar.seek(offset + size - 1)
        tar.write(b"x")
    lost += [row["url"] for row in rows.values() if row["image_key"] == key]
    asked(server)
    assert main(command(server, tmp_path, range(12))) == 0
    assert "a shard before is not reused" in capsys.readouterr().err
    expected = {*(url.rpartition("/")[2].removesuffix(".png") for url in lost), str(LATE)} - {"7", str(LOGO)}
    assert set(asked(server)) == expected
    after = {row["url"]: row for row in raw_rows(tmp_path / "raw")}
    for number in (7, 8):
        row = after[server.url(f"/{number}.png")]
        assert (row["status"], row["caption"]) == ("failed_to_download", "")
    write_opted_out(tmp_path / "policy", OptedOut([]))
    assert main(command(server, tmp_path, range(12))) == 0
    assert asked(server) == numbers(LATE, 7, 8)
    damaged.with_suffix(".parquet").unlink()
    assert main(command(server, tmp_path, range(12))) == 0
    assert len(asked(server)) == 12 - 1
    assert "nothing is reused of" in capsys.readouterr().err
