"""A second `align ingest`, which asks again: killed, and what has changed when it is started once more."""

import json

import pytest

from align.cli import main
from align.ingest.sources.url_table import UrlTable
from tests.support.reading import URL_TABLE, ingest_words, raw_rows, url_table
from tests.support.warc_records import picture
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer


def _interrupt(*_):
    raise KeyboardInterrupt


NUM = 10


def command(folder, *settings):
    return ingest_words(folder, folder / "table.jsonl", *URL_TABLE, *settings)


def make_table(server, folder, failure):
    """A table of pictures at which the server fails."""
    server.routes |= {f"/{number}.png": failure for number in range(NUM)}
    url_table(folder, [(server.url(f"/{n}.png"), f"a good text number {n}") for n in range(NUM)])


def recover(server):
    server.routes |= {f"/{number}.png": answer(picture(300 + number, 250)) for number in range(NUM)}


@pytest.fixture
def scans(monkeypatch):
    """The files that were scanned."""
    found = []
    scan = UrlTable.scan

    def noted(self, file, counts):
        found.append(file)
        return scan(self, file, counts)

    monkeypatch.setattr(UrlTable, "scan", noted)
    return found


def test_a_killed_second_ingest_is_resumed_and_nothing_is_scanned_again(tmp_path, monkeypatch, scans, capsys):
    with WebServer() as server:
        make_table(server, tmp_path, answer(b"", 503))
        assert main(command(tmp_path)) == 1
        assert "10 pairs of the data/raw before" not in capsys.readouterr().err
        recover(server)
        with monkeypatch.context() as killed:
            killed.setattr("align.ingest.ingest.publish", _interrupt)
            assert main(command(tmp_path)) == 130
        assert "10 pairs of the data/raw before failed in a way that may pass" in capsys.readouterr().err
        asked = [server.count(f"/{number}.png") for number in range(NUM)]
        assert main(command(tmp_path, "download.timeout_s=77.0")) == 0
        assert [server.count(f"/{number}.png") for number in range(NUM)] == asked  # the finished shard is taken
    assert [row["status"] for row in raw_rows(tmp_path / "raw")] == ["success"] * NUM
    assert len(scans) == 1


def test_a_take_down_counts_in_an_ingest_that_was_killed_before_it(tmp_path, monkeypatch):
    words = command(tmp_path, "ingest.shard_size=1", f"paths.filtered={tmp_path / 'filtered'}")
    with WebServer() as server:
        make_table(server, tmp_path, answer(b"", 503))
        assert main(words) == 1  # no pair has a picture
        recover(server)
        with monkeypatch.context() as killed:
            killed.setattr("align.ingest.ingest.publish", _interrupt)
            assert main(words) == 130
        (tmp_path / "opted_out.txt").write_text(server.url("/0.png") + "\n")
        assert main(["opt_out", *words[1:], "--urls", str(tmp_path / "opted_out.txt"), "--reason", "asked"]) == 0
        assert main(words) == 0
    assert not (tmp_path / ".raw.scan").exists()  # it would have the text
    found = {row["caption"]: row["status"] for row in raw_rows(tmp_path / "raw")}
    assert found == {"": "failed_to_download"} | {f"a good text number {n}": "success" for n in range(1, NUM)}


def test_another_source_or_another_value_is_scanned(tmp_path, scans):
    with WebServer() as server:
        make_table(server, tmp_path, answer(b"", 404))
        recover(server)
        for number, settings in enumerate(((), ("ingest.shard_size=7",), ()), start=1):
            assert main(command(tmp_path, *settings)) == 0
            assert len(scans) == number
            [kept] = [path for path in (tmp_path / ".raw.scan").iterdir() if path.is_dir()]
            assert {path.name for path in kept.iterdir()} == {"000000"}
        with (tmp_path / "table.jsonl").open("a") as table:
            table.write(json.dumps({"url": server.url("/0.png"), "caption": "a new text of it"}) + "\n")
        assert main(command(tmp_path)) == 0
    assert (len(scans), len(raw_rows(tmp_path / "raw"))) == (4, NUM + 1)
