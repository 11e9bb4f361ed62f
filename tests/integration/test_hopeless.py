"""From ingest to filter: with pictures that ingest did not fetch the kept pairs are the same, and wider rules on texts
say what is missing; and part of the committed web archive, with the real evaluation sets.
"""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastwarc.warc import ArchiveIterator

from align.cli import main
from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.filter.filter import FilterFolders, filter_pairs
from align.filter.network import ImageNetwork
from align.filter.rules import RULES
from align.formats.raw import iter_images, raw_shards
from align.ingest.ingest import Resources, ingest
from tests.support import thinned
from tests.support.params import at, load_params, sets
from tests.support.reading import ingested, raw_rows, url_table
from tests.support.small_filter import noise
from tests.support.web_server import WebServer
from tests.support.web_server import response as answer


@pytest.fixture(autouse=True)
def _cheap(monkeypatch):
    """No test here looks at a figure."""
    monkeypatch.setattr("align.filter.page.png", lambda figure: b"a figure")


TEXTS = ["a good long text", "three words only", "two words", "another good long text"]


def test_wider_rules_are_told_what_is_missing_until_it_is_fetched(tmp_path, capsys):
    common, narrow = table_of(tmp_path) + place(tmp_path), sets("filter.min_words=4")
    with WebServer() as server:
        for number in range(len(TEXTS)):
            server.routes[f"/{number}.png"] = answer(noise(number))
        url_table(tmp_path, [(server.url(f"/{number}.png"), text) for number, text in enumerate(TEXTS)])
        assert main(["ingest", *common, *narrow]) == 0

        assert main(["filter", *common, *narrow]) == 0  # the rules that ingest knew
        assert reasons(tmp_path) == {
            "a good long text": [], "another good long text": [],
            "three words only": ["text_too_short", "image_not_fetched"],
            "two words": ["text_too_short", "image_not_fetched"],
        }  # fmt: skip
        assert "did not fetch" not in capsys.readouterr().err + page(tmp_path)

        assert main(["filter", *common]) == 0
        assert reasons(tmp_path)["three words only"] == ["image_not_fetched"]
        assert reasons(tmp_path)["two words"] == ["text_too_short", "image_not_fetched"]
        said = capsys.readouterr().err
        assert "warning: 1 pair(s) pass every rule on texts, but" in said and "run `align ingest` again" in said
        assert "1 more pass every rule on texts, but" in page(tmp_path)
        metrics = json.loads((tmp_path / "reports/filter/metrics.json").read_text())
        assert metrics["filter/dropped/image_not_fetched"] == 1

        bands = ("keep_rate=[0.0, 1.0]", "dropped_share.text_too_short=[0.0, 1.0]")
        values = ("min_pairs=1", "min_evaluation_sets=0", *bands)
        gate = ["validate", *common, *sets(*(f"validate.{value}" for value in values))]
        assert main(gate) == 1
        assert "dropped-image-not-fetched: share dropped as image_not_fetched: observed 25%" in capsys.readouterr().err

        assert main(["ingest", *common]) == 0
        assert [server.count(f"/{number}.png") for number in range(4)] == [1, 1, 0, 1]
    assert main(["filter", *common]) == 0
    assert reasons(tmp_path)["three words only"] == []
    assert main(gate) == 0  # all pictures that were to be fetched are there: two words were not


NUM_PAGES = 10


def test_the_kept_pairs_of_the_sample_are_the_same_with_fewer_requests(tmp_path, sample, monkeypatch):
    """The sample's pages, their pictures on a server: all fetched, and only those of which a text can pass.

    The network looks at each picture alone, so any function of the picture may stand for it.
    """
    monkeypatch.setattr(
        ImageNetwork, "_classify", lambda self, pixels: [(0.0, one[::28, ::28].ravel() / 255) for one in pixels]
    )
    run = [*table_of(tmp_path), *sets("download.num_retries=0")]
    rows = ingested(tmp_path / "pages", sample / "archive.warc.gz", f"ingest.max_pages={NUM_PAGES}")
    pictures = dict(iter_images(*raw_shards(tmp_path / "pages/raw")))
    num_requests, kept, dropped = {}, {}, {}
    with WebServer() as server:
        number = {url: index for index, url in enumerate(dict.fromkeys(row["url"] for row in rows))}
        for row in rows:
            if row["image_key"] is not None:
                server.routes[f"/{number[row['url']]}"] = answer(pictures[row["image_key"]])
        url_table(tmp_path, [(server.url(f"/{number[row['url']]}"), row["caption"]) for row in rows])
        for skip in ("false", "true"):
            before = num_asked(server)
            out = place(tmp_path / skip)
            assert main(["ingest", *run, *out, "--set", f"ingest.skip_hopeless={skip}"]) == 0
            num_requests[skip] = num_asked(server) - before
            assert main(["filter", *run, *out]) == 0
            decided = pq.read_table(tmp_path / skip / "filtered/decisions").to_pylist()
            kept[skip] = [(row["key"], row["image_id"], row["text"]) for row in decided if row["keep"]]
            dropped[skip] = {row["key"]: row["reasons"] for row in decided if not row["keep"]}
    print("requests", num_requests, "kept", len(kept["true"]), "pairs", len(rows))
    assert num_requests["true"] < 0.9 * num_requests["false"]
    assert kept["true"] == kept["false"] != []
    on_texts = {"text_shared_by_many_images", "text_rare_ngram", "text_too_short", "text_too_long", "text_is_filename"}
    for key, reasons in dropped["true"].items():
        if "image_not_fetched" in reasons:
            assert on_texts & set(dropped["false"][key])
        else:
            assert reasons == dropped["false"][key]


def test_the_one_difference_is_a_text_of_an_equal_picture_that_was_not_fetched(tmp_path, monkeypatch):
    """Rule I4 counts the texts of a content; that of an address which nobody asked for is not known."""
    monkeypatch.setattr(ImageNetwork, "_classify", lambda self, pixels: [(0.0, np.ones(8, np.float32)) for _ in pixels])
    run, decided = [*table_of(tmp_path), *sets("filter.max_texts_per_image=1")], {}
    with WebServer() as server:
        server.routes |= {path: answer(noise(0)) for path in ("/a.png", "/b.png", "/c.png")}
        pairs = [("/a.png", "a good long text"), ("/b.png", "logo"), ("/c.png", "a good long text")]
        url_table(tmp_path, [(server.url(path), text) for path, text in pairs])
        for skip in ("false", "true"):
            words = [*run, *place(tmp_path / skip)]
            assert main(["ingest", *words, "--set", f"ingest.skip_hopeless={skip}"]) == 0
            assert main(["filter", *words]) == 0
            decided[skip] = reasons(tmp_path / skip)
    assert decided["false"] == {
        "a good long text": ["image_too_many_texts"], "logo": ["image_too_many_texts", "text_too_short"],
    }  # fmt: skip
    assert decided["true"] == {"a good long text": [], "logo": ["text_too_short", "image_not_fetched"]}


def num_asked(server):
    return sum(not path.endswith("/robots.txt") for path in server.requests)


def table_of(root):
    """The values for a table of addresses on this machine, without evaluation sets."""
    (root / "none").mkdir()
    return sets(
        "ingest.source=url_table", "download.allow_networks=[127.0.0.0/8]", "engine.num_workers=1",
        f"paths.archive={root / 'table.jsonl'}", f"paths.evaluation={root / 'none'}",
    )  # fmt: skip


def place(folder):
    folder.mkdir(exist_ok=True)
    return sets(*at(folder, "raw", "filtered", "reports", "runtime", "policy"))


def reasons(folder):
    rows = pq.read_table(folder / "filtered/decisions").to_pylist()
    assert all(row["reason"] == next(iter(row["reasons"]), None) for row in rows)
    return {row["text"]: row["reasons"] for row in rows}


def page(folder):
    return (folder / "reports/filter/report.html").read_text()


#: Pages of the sample: the first six show pictures of evaluation sets, the others are of all hosts.
FIRST_PAGES, EACH = 6, 25


def write_some_pages(archive, path):
    """Writes an archive with some pages of another one, and all its pictures."""
    with archive.open("rb") as file:
        records = [(record.stream_pos, "html" in str(record.http_headers)) for record in ArchiveIterator(file)]
    data, pages = archive.read_bytes(), 0
    with path.open("wb") as out:
        for (begin, is_page), (end, _) in pairwise([*records, (len(data), False)]):
            pages += is_page
            if not is_page or pages <= FIRST_PAGES or pages % EACH == 0:
                out.write(data[begin:end])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sample):
    folder = tmp_path_factory.mktemp("ingest_filter")
    write_some_pages(sample / "archive.warc.gz", folder / "archive.warc.gz")
    params = load_params(overrides=["ingest.shard_size=200"])
    resources = Resources(params.section(DownloadConfig), params.section(EngineConfig), params.section(StoreConfig))
    archive = str(folder / "archive.warc.gz")
    ingest(params.section(IngestConfig), resources, archive=archive, raw=folder / "raw", policy=folder / "policy")
    return folder


@pytest.fixture(scope="module")
def evaluation(folder, sample):
    """The committed sets, of each the planted images and some others: the network looks at all, ten times a second."""
    planted = {one["key"] for one in json.loads((sample / "planted.json").read_text())["planted"]}
    out = folder / "evaluation"
    out.mkdir()
    for header in sorted((sample / "evaluation").glob("*.json")):
        thinned.write(header, out, lambda number, key: key in planted or number % 240 == 0)
    return out


@pytest.fixture(scope="module")
def report(folder, evaluation):
    params = load_params()
    return filter_pairs(
        params.section(FilterConfig),
        params.section(EngineConfig),
        FilterFolders(folder / "raw", evaluation, folder / "policy", folder / "filtered", folder / "report"),
    )


def test_raw_is_consistent(folder):
    shards, rows = raw_shards(folder / "raw"), raw_rows(folder / "raw")
    stored = {key for shard in shards for key, _ in iter_images(shard)}
    assert len(shards) > 1
    assert len({row["key"] for row in rows}) == len(rows)
    assert {row["image_key"] for row in rows if row["status"] == "success"} == stored
    copies = {(row["sha256"], row["key"][:5]) for row in rows if row["sha256"]}
    assert len(copies) == len(stored)  # each picture stored once in each shard that shows it
    hosts = Counter(row["page_url"].split("/")[2] for row in rows)
    assert len(hosts) >= 3


def test_every_pair_has_its_decision(folder, report):
    rows = {row["key"]: row for row in raw_rows(folder / "raw")}
    decisions = pq.read_table(folder / "filtered/decisions").to_pylist()
    assert [one["key"] for one in decisions] == sorted(rows)
    images = {one["image_id"]: one for one in pq.read_table(folder / "filtered/images.parquet").to_pylist()}
    for one in decisions:
        assert one["keep"] == (not one["reasons"]) == (one["reason"] is None)
        assert one["reasons"] == [code for code in RULES if code in one["reasons"]]  # in rule order
        row = rows[one["key"]]
        if "image_too_small" in one["reasons"]:
            assert min(row["width"], row["height"]) <= 200
        if one["keep"]:
            image = images[one["image_id"]]
            assert min(row["width"], row["height"]) > 200
            assert max(row["width"], row["height"]) < 3 * min(row["width"], row["height"])
            assert image["nsfw_score"] is not None
            assert image["evaluation_sets"] == []
    kept = sum(one["keep"] for one in decisions)
    assert (report.num_pairs, report.num_kept) == (len(rows), kept)
    assert 0.2 < kept / len(rows) < 0.9
    assert sum(row.num_first for row in report.funnel) + kept == len(rows)


def test_planted_test_images_and_no_others_are_found(folder, report, sample):
    planted = {one["url"]: one["set"] for one in json.loads((sample / "planted.json").read_text())["planted"]}
    images = pq.read_table(folder / "filtered/images.parquet").to_pylist()
    sets = {one["image_id"]: one["evaluation_sets"] for one in images}
    here = [row for row in raw_rows(folder / "raw") if row["url"] in planted and row["sha256"]]
    assert here
    assert all(planted[row["url"]] in sets[row["sha256"]] for row in here)
    planted_ids = {row["sha256"] for row in here}
    others = [image_id for image_id, names in sets.items() if names and image_id not in planted_ids]
    assert len(others) <= 2
    assert set(report.evaluation_matches) == {"classes", "concepts", "vendor"}


def test_report_reads_offline(folder, report):
    html = (folder / "report/report.html").read_text(encoding="utf-8")
    assert len(html) < 3_000_000
    assert 'src="http' not in html
    assert '<link rel="stylesheet' not in html
    for row in report.funnel:
        if row.num_first:
            assert f"Dropped: {row.reason}" in html
    assert json.loads((folder / "report/metrics.json").read_text()) == report.metrics
