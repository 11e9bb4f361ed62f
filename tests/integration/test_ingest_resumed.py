"""What a run with other values resumes: patience and tolerance decide no row, so nothing is done or asked twice."""

import itertools
import pickle
from collections import Counter
from pathlib import Path

import pytest

from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig
from align.errors import DataError
from align.ingest import lanes
from align.ingest.sources.archives.warc import Warc
from align.services.files.files import StoreFiles
from tests.support.params import load_params
from tests.support.ranges import ranges
from tests.support.reading import ingested, raw_rows
from tests.support.warc_records import page, picture, response, write_archive
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer

PARAMS = load_params(overrides=["download.allow_networks=[127.0.0.0/8]"])
DAMAGED = "cut off or damaged at byte"


@pytest.fixture
def reads(monkeypatch):
    """How often each archive is scanned, by its name."""
    found = Counter()
    scan = Warc.scan

    def counted(self, file, counts):
        found[Path(file).name[:1]] += 1
        return scan(self, file, counts)

    monkeypatch.setattr(Warc, "scan", counted)
    return found


def archives(folder, names, damaged):
    folder.mkdir()
    for name in names:
        file = f"http://{name}.example/a.png"
        records = [page(f"http://{name}.example/{n}", f"<img src={file} alt='a text of {name}'>") for n in range(2)]
        path = write_archive(folder / f"{name}.warc.gz", [response(file, picture(9, 9), "image/png"), *records])
        if name in damaged:
            path.write_bytes(path.read_bytes()[:-20])
    return folder


def test_a_larger_share_of_damaged_files_reads_no_file_again(tmp_path, reads, capsys):
    archive = archives(tmp_path / "archives", "abcdef", damaged="ce")
    ingested(tmp_path, archive, code=1)
    assert reads == Counter("abc")  # it ends at the first
    said = capsys.readouterr().err
    assert f"c.warc.gz: {DAMAGED}" in said
    assert "set ingest.max_damaged_share (now 0; 0.166667 allows 1 of 6 files)" in said
    ingested(tmp_path, archive, code=1)
    assert reads == Counter("abc")  # and again, without reading on
    ingested(tmp_path, archive, "ingest.max_damaged_share=0.166667", code=1)
    assert reads == Counter("abcde")
    assert "0.333334 allows 2 of 6 files" in capsys.readouterr().err
    rows = ingested(tmp_path, archive, "ingest.max_damaged_share=0.34", "download.num_retries=9")
    assert reads == Counter("abcdef")
    assert Counter(row["caption"][-1] for row in rows) == Counter("aabbcddeff")
    said = capsys.readouterr().err
    assert f"ingest: warning: {archive}/e.warc.gz: {DAMAGED}" in said
    html = (tmp_path / "reports/ingest/report.html").read_text()
    assert f"c.warc.gz: {DAMAGED}" in html
    assert f"e.warc.gz: {DAMAGED}" in html


def test_a_smaller_share_than_that_of_a_finished_plan_ends_the_run(tmp_path, monkeypatch, capsys):
    archive = archives(tmp_path / "archives", "ab", damaged="b")
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "write_archived", _fails)
        ingested(tmp_path, archive, "ingest.max_damaged_share=0.5", code=1)
    assert "the disk is full" in capsys.readouterr().err
    ingested(tmp_path, archive, code=1)
    assert f"b.warc.gz: {DAMAGED}" in capsys.readouterr().err


def _fails(*_, **__):
    raise DataError("the disk is full")


def test_other_patience_fetches_nothing_again(tmp_path, monkeypatch):
    with WebServer() as server:
        addresses = [f"/{number}.png" for number in range(8)]
        server.routes |= dict.fromkeys(addresses, answer(picture(9, 9)))
        table = tmp_path / "table.tsv"
        table.write_text("url\tcaption\n" + "".join(f"{server.url(one)}\ta text of it\n" for one in addresses))
        values = ["ingest.source=url_table", "ingest.shard_size=2", "download.obey_robots=false"]
        write, calls = lanes.write_fetched, itertools.count()

        def fails_after_two(*arguments):
            return write(*arguments) if next(calls) < 2 else _fails()

        with monkeypatch.context() as patch:
            patch.setattr(lanes, "write_fetched", fails_after_two)
            ingested(tmp_path, table, *values, code=1)
        num_fetched = sum(map(server.count, addresses))
        assert 0 < num_fetched < len(addresses)
        patience = ["download.timeout_s=9.0", "download.max_connections=3", "download.num_retries=0"]
        rows = ingested(tmp_path, table, *values, *patience)
        assert [server.count(one) for one in addresses] == [1] * len(addresses)
        assert [row["status"] for row in rows] == ["success"] * len(addresses)
        ingested(tmp_path, table, *values, "download.user_agent=another/1.0")  # this one decides what is served
        assert sum(map(server.count, addresses)) == 2 * len(addresses)
    assert raw_rows(tmp_path / "raw") == rows


def test_each_file_on_a_server_is_asked_once_what_it_is(tmp_path):
    folder, asked = archives(tmp_path / "archives", "abc", damaged=""), Counter[str]()
    with WebServer() as server:
        for path in folder.iterdir():
            server.routes[f"/{path.name}"] = _counting(ranges(path.read_bytes()), path.name[:1], asked)
        names = [server.url(f"/{name}.warc.gz") for name in "abc"]
        listed = tmp_path / "list.paths"
        listed.write_text("\n".join(names))
        files = StoreFiles(PARAMS.section(StoreConfig), PARAMS.section(DownloadConfig))
        rows = ingested(tmp_path, listed)
        assert [row["status"] for row in rows] == ["success"] * 6
        assert asked == Counter("abc")
        files.stamps(names)
        asked.clear()
        copy = pickle.loads(pickle.dumps(files))  # as another process gets it
        assert copy.open(names[0]).read() == (folder / "a.warc.gz").read_bytes()
        assert not +asked
        server.routes["/a.warc.gz"] = ranges((folder / "a.warc.gz").read_bytes(), ETag='"two"')
        with pytest.raises(DataError, match="it was replaced while it was read"):
            copy.open(names[0]).read()


def _counting(route, name, asked):
    def answer(request):
        asked[name] += request.headers.get("range") == "bytes=0-0"
        return route(request)

    return answer
