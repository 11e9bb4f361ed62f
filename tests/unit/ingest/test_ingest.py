"""ingest on an archive written by hand: every bad input gets its row or its clear error, and nothing is lost."""

import hashlib
import json

import pytest

from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.durable.files import MARK, mark
from align.errors import DataError
from align.formats.policy import Entry, OptedOut, write_opted_out
from align.formats.raw import iter_images, raw_shards
from align.ingest.fetching import share_of
from align.ingest.ingest import Resources
from align.ingest.ingest import ingest as stage
from align.ingest.report import not_read, write_page
from align.ingest.sources import open_source
from align.pairs.text import MAX_CHARACTERS
from tests.support.deadly import DeadlySource
from tests.support.params import load_params
from tests.support.reading import ingested, raw_rows, short
from tests.support.warc_records import page, picture, png_header, record, response, write_archive

PARAMS = load_params(overrides=["engine.num_workers=1"])
CONFIG = PARAMS.section(IngestConfig)
RED = picture(300, 250, "red")
LONG = "word " * 10_000

HTML = f"""<base href="/img/">
<img src="red.png" alt="a red picture"><img src="red.png" alt="the same URL again"><img src="copy.png" alt="same bytes">
<img src="red.png" alt=""><img src="red.png" alt="{LONG}"><img src="gone.png" alt="not in the archive">
<img src="404.png" alt="not found"><img src="huge.png" alt="200 megapixels"><img src="lie.png" alt="lies: HTML">
<img src="jpeg.png" alt="lies: a JPEG named png"><img src="data:image/gif;base64,R0lGOD" alt="inline"><img alt="no src">
"""

RECORDS = [
    response("http://x.example/img/red.png", b"", "image/png", "500 Error"),  # the good copy below is the one to take
    page("http://x.example/page.html", HTML),
    response("http://x.example/img/red.png", RED, "image/png"),
    response("http://x.example/img/copy.png", RED, "image/png"),
    response("http://x.example/img/404.png", b"nope", "text/html", "404 Not Found"),
    response("http://x.example/img/huge.png", png_header(20_000, 10_000), "image/png"),
    response("http://x.example/img/lie.png", b"<html>sorry", "image/png"),
    response("http://x.example/img/jpeg.png", picture(301, 250, "blue", "JPEG"), "image/png"),
    page("http://y.example/", '<img src="http://x.example/img/red.png" alt="Gr\xfc\xdfe">'.encode("cp1252")),
    page("http://y.example/none", "<p>no picture"),
]


def ingest(config, archive, raw):
    resources = Resources(PARAMS.section(DownloadConfig), PARAMS.section(EngineConfig), PARAMS.section(StoreConfig))
    done = stage(config, resources, archive=str(archive), raw=raw, policy=raw.parent / "policy")
    assert done is not None and not done.changed
    return done.report


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "a.warc.gz", RECORDS)


@pytest.mark.usefixtures("any_blocks")
def test_every_img_is_a_row(archive, tmp_path):
    report = ingest(CONFIG, archive, tmp_path / "raw")
    written = raw_rows(tmp_path / "raw")
    ok, gone, bad = "success", "failed_to_download", "failed_to_resize"
    assert [(row["caption"], row["status"], row["error_message"], row["image_key"]) for row in written] == [
        ("a red picture", ok, None, "000000000"),
        ("the same URL again", ok, None, "000000000"),
        ("same bytes", ok, None, "000000000"),
        ("", ok, None, "000000000"),
        (LONG[:MAX_CHARACTERS], ok, None, "000000000"),
        ("not in the archive", gone, "not in archive", None),
        ("not found", gone, "HTTP 404", None),
        ("200 megapixels", bad, "too many pixels: 20000 x 10000", None),
        ("lies: HTML", bad, "not a picture that we decode", None),
        ("lies: a JPEG named png", ok, None, "000000009"),
        ("inline", bad, "not a picture that we decode", None),
        ("no src", gone, "no address", None),
        ("Grüße", ok, None, "000000000"),  # a page in a wrong charset
    ]
    assert written[0]["sha256"] == hashlib.sha256(RED).hexdigest()
    assert (written[0]["width"], written[0]["height"], written[0]["page_url"]) == (
        300, 250, "http://x.example/page.html",
    )  # fmt: skip
    assert (written[7]["width"], written[7]["original_width"]) == (None, 20_000)
    assert [key for key, _ in iter_images(raw_shards(tmp_path / "raw")[0])] == ["000000000", "000000009"]
    assert dict(report.metrics) == {
        "ingest/num_pages": 2,  # one has no picture
        "ingest/num_pairs": 13,
        "ingest/num_images": 2,
        "ingest/num_retryable": 0,
        "ingest/success_rate": round(7 / 13, 6),
        "ingest/status/success": 7,
        "ingest/status/failed_to_download": 3,
        "ingest/status/failed_to_resize": 3,
        "ingest/status/not_fetched": 0,
    }
    assert report.errors["too many pixels"] == 1
    assert (report.counts["texts_cut"], report.counts.get("page_urls_cut"), report.files_quarantined) == (1, None, [])


def test_a_file_that_kills_its_worker_is_left_out_and_named(tmp_path, monkeypatch, capfd):
    for name in ("1-good", "2-deadly", "3-good"):
        text = f'<img src="{name}.png" alt="a text of {name}">'
        records = [page(f"http://x.example/{name}/", text)]
        if name == "1-good":
            records.append(response("http://x.example/1-good/1-good.png", picture(300, 250), "image/png"))
        write_archive(tmp_path / f"{name}.warc.gz", records)
    opened = lambda *arguments: DeadlySource(open_source(*arguments), "deadly")  # noqa: E731
    monkeypatch.setattr("align.ingest.ingest.open_source", opened)
    written = ingested(tmp_path, f"{tmp_path}/*.warc.gz", "engine.num_workers=2")
    assert sorted(row["caption"] for row in written) == ["a text of 1-good", "a text of 3-good"]
    deadly = str(tmp_path / "2-deadly.warc.gz")
    report = json.loads((tmp_path / "reports/ingest/report.json").read_bytes())
    assert (report["files_quarantined"], report["num_files"]) == ([deadly], 3)
    assert deadly in (tmp_path / "reports/ingest/report.html").read_text()
    assert f"1 file(s) left out, as reading killed a worker: {deadly}" in "".join(capfd.readouterr())


def test_an_opted_out_pair_is_a_row_without_its_text(archive, tmp_path):
    page_url, sha256 = "http://y.example/", hashlib.sha256(picture(301, 250, "blue", "JPEG")).hexdigest()
    entries = [Entry("url", page_url, "", "2026-01-02"), Entry("image_id", sha256, "", "2026-01-02")]
    write_opted_out(tmp_path / "policy", OptedOut(entries))
    ingest(CONFIG, archive, tmp_path / "raw")
    written = raw_rows(tmp_path / "raw")
    forgotten = [row for row in written if row["error_message"] == "opted out"]
    assert [(row["url"], row["page_url"], row["caption"]) for row in forgotten] == [
        ("http://x.example/img/jpeg.png", "http://x.example/page.html", ""),
        ("http://x.example/img/red.png", page_url, ""),
    ]
    assert written[0]["caption"] == "a red picture"


def test_what_is_too_large_is_a_row_or_a_number(tmp_path, capsys):
    records = [
        page("http://x/", "<img src=a.png alt=small><img src=b.png alt=large>"),
        page("http://x/large", b"<img src=a.png>".ljust(20_001)),
        response("http://x/a.png", RED, "image/png"),
        response("http://x/b.png", RED.ljust(20_001), "image/png"),
    ]
    archive = write_archive(tmp_path / "a.warc.gz", records)
    report = ingest(CONFIG.model_copy(update={"max_record_bytes": 20_000}), archive, tmp_path / "raw")
    assert [(row["caption"], row["status"], row["error_message"]) for row in raw_rows(tmp_path / "raw")] == [
        ("small", "success", None),
        ("large", "failed_to_download", "too large: more than 20,000 bytes, see ingest.max_record_bytes"),
    ]
    assert (report.num_pages_in_archive, report.counts["pages_too_large"]) == (2, 1)
    assert "pages_unreadable" not in report.counts
    assert report.errors == {"too large": 1}
    assert not_read(report) == [("pages that are too large", 1)]
    assert "http://x/large: skipped: too large: more than 20,000 bytes" in capsys.readouterr().err
    write_page(report, tmp_path)
    assert "pages that are too large" in (tmp_path / "report.html").read_text()


def test_equal_bytes_twice_and_shards_of_any_size(archive, tmp_path):
    small = CONFIG.model_copy(update={"shard_size": 5})
    for name in ("one", "two"):
        ingest(small, archive, tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 17  # five shards of three files, the manifest and the mark
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    written = raw_rows(tmp_path / "one")
    # an address with many pairs makes its shard longer
    assert sorted(str(row["key"])[5:] for row in written)[-1] > "0003"
    shards_of = {}
    for row in written:
        shards_of.setdefault(row["url"], set()).add(str(row["key"])[:5])
    assert all(len(names) == 1 for names in shards_of.values())
    ingest(CONFIG, archive, tmp_path / "whole")
    columns = ("caption", "url", "status", "sha256")
    assert set(short(written, *columns)) == set(short(raw_rows(tmp_path / "whole"), *columns))


def test_max_pages_takes_the_same_pages_spread_over_the_archive(tmp_path):
    records = [page(f"http://{host}.example/{n}", f'<img src="{n}.png" alt=x>') for host in "ab" for n in range(40)]
    archive = write_archive(tmp_path / "a.warc.gz", records)
    report = ingest(CONFIG.model_copy(update={"max_pages": 20}), archive, tmp_path / "raw")
    pages = [str(row["page_url"]) for row in raw_rows(tmp_path / "raw")]
    assert (report.num_pages, report.num_pages_in_archive, len(set(pages))) == (20, 80, 20)
    assert pages == sorted(pages, key=[f"http://{host}.example/{n}" for host in "ab" for n in range(40)].index)
    assert 5 <= sum(url.startswith("http://a.") for url in pages) <= 15
    ingest(CONFIG.model_copy(update={"max_pages": 5}), archive, tmp_path / "fewer")
    assert {str(row["page_url"]) for row in raw_rows(tmp_path / "fewer")} <= set(pages)


def test_no_img_at_all_is_an_error(tmp_path):
    nothing = record("response", "http://x/n", b"\0nobody can tell", "application/http; msgtype=response")
    other = record("response", "http://x/json", b"[]", "application/json")
    archive = write_archive(tmp_path / "a.warc.gz", [page("http://x/", "<p>text"), nothing, nothing, other])
    with pytest.raises(DataError) as error:
        ingest(CONFIG, archive, tmp_path / "raw")
    assert str(error.value) == (
        f"{archive}: the 1 file(s) of this source name no picture: page without images: 1; of another type: 1; not "
        "read: no HTTP status, and no type: 2"
    )


def test_the_report_folder_is_replaced_whole_or_stays(archive, tmp_path, monkeypatch):
    reports = tmp_path / "reports/ingest"
    reports.mkdir(parents=True)
    mark(reports, "ingest")
    (reports / "of_an_old_version.html").write_text("old")
    ingested(tmp_path, archive)
    assert {path.name for path in reports.iterdir()} == {MARK, "metrics.json", "report.html", "report.json"}
    assert str(tmp_path) not in (reports / "report.json").read_text()
    before = {path.name: path.read_bytes() for path in reports.iterdir()}

    def fail(report, directory):
        raise DataError("the disk is full")

    monkeypatch.setattr("align.ingest.ingest.write_page", fail)
    ingested(tmp_path, archive, "ingest.max_pages=1", code=1)
    assert {path.name: path.read_bytes() for path in reports.iterdir()} == before
    assert [path.name for path in reports.parent.iterdir()] == ["ingest"]


def test_tasks_share_the_bounds_of_requests_and_parts_of_a_host_those_of_the_host():
    download = PARAMS.section(DownloadConfig).model_copy(
        update={"max_connections": 10, "max_connections_per_host": 4, "max_requests_per_host_per_s": 6.0}
    )

    def bounds(share):
        return share.max_connections, share.max_connections_per_host, share.max_requests_per_host_per_s

    assert bounds(share_of(download, 3)) == (3, 4, 6.0)
    assert bounds(share_of(download, 20, 3)) == (1, 1, 2.0)
    assert share_of(download, 1) == download
