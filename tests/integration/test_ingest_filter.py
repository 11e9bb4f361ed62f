"""ingest -> filter on part of the committed web archive, with the real evaluation sets."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.filter.filter import FilterFolders, filter_pairs
from align.filter.report import FilterReport
from align.filter.rules import RULES
from align.formats.raw import iter_images, raw_shards, read_table
from align.ingest.ingest import ingest
from align.ingest.workers import Resources
from tests.support import thinned
from tests.support.cpu_budget import costs
from tests.support.params import load_params

NUM_PAGES = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    folder = tmp_path_factory.mktemp("ingest_filter")
    params = load_params(overrides=[f"ingest.max_pages={NUM_PAGES}", "ingest.shard_size=400"])
    resources = Resources(params.section(DownloadConfig), params.section(EngineConfig), params.section(StoreConfig))
    archive = str(sample / "archive.warc.gz")
    ingest(params.section(IngestConfig), resources, archive=archive, raw=folder / "raw", policy=folder / "policy")
    return folder


@pytest.fixture(scope="module")
def evaluation(folder: Path, sample: Path) -> Path:
    """The committed sets, of each the planted images and some others: the network looks at all, ten times a second."""
    planted = {one["key"] for one in json.loads((sample / "planted.json").read_text())["planted"]}
    out = folder / "evaluation"
    out.mkdir()
    for header in sorted((sample / "evaluation").glob("*.json")):
        thinned.write(header, out, lambda number, key: key in planted or number % 80 == 0)
    return out


@pytest.fixture(scope="module")
@costs(12, "the network looks at each picture")
def report(folder: Path, evaluation: Path) -> FilterReport:
    params = load_params()
    report = filter_pairs(
        params.section(FilterConfig),
        params.section(EngineConfig),
        FilterFolders(folder / "raw", evaluation, folder / "policy", folder / "filtered", folder / "report"),
    )
    assert report is not None
    return report


def test_raw_is_consistent(folder: Path) -> None:
    shards = raw_shards(folder / "raw")
    rows = [row for shard in shards for row in read_table(shard).to_pylist()]
    stored = {key for shard in shards for key, _ in iter_images(shard)}
    assert len(shards) > 1
    assert len({row["page_url"] for row in rows}) <= NUM_PAGES
    assert len({row["key"] for row in rows}) == len(rows)
    assert {row["image_key"] for row in rows if row["status"] == "success"} == stored
    copies = {(row["sha256"], row["key"][:5]) for row in rows if row["sha256"]}
    assert len(copies) == len(stored)  # each picture stored once in each shard that shows it
    hosts = Counter(row["page_url"].split("/")[2] for row in rows)
    assert len(hosts) >= 3  # a reduced run keeps the sources


def test_every_pair_has_its_decision(folder: Path, report: FilterReport) -> None:
    rows = {row["key"]: row for shard in raw_shards(folder / "raw") for row in read_table(shard).to_pylist()}
    decisions = pq.read_table(folder / "filtered/decisions.parquet").to_pylist()
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


def test_planted_test_images_and_no_others_are_found(folder: Path, report: FilterReport, sample: Path) -> None:
    planted = {one["url"]: one["set"] for one in json.loads((sample / "planted.json").read_text())["planted"]}
    sets = {
        one["image_id"]: one["evaluation_sets"] for one in pq.read_table(folder / "filtered/images.parquet").to_pylist()
    }
    rows = [row for shard in raw_shards(folder / "raw") for row in read_table(shard).to_pylist()]
    here = [row for row in rows if row["url"] in planted and row["sha256"]]
    assert all(planted[row["url"]] in sets[row["sha256"]] for row in here)
    planted_ids = {row["sha256"] for row in here}
    others = [image_id for image_id, names in sets.items() if names and image_id not in planted_ids]
    assert len(others) <= 2
    assert set(report.evaluation_matches) == {"classes", "concepts", "vendor"}


def test_report_reads_offline(folder: Path, report: FilterReport) -> None:
    html = (folder / "report/report.html").read_text(encoding="utf-8")
    assert len(html) < 3_000_000
    assert 'src="http' not in html
    assert '<link rel="stylesheet' not in html
    for row in report.funnel:
        if row.num_first:
            assert f"Dropped: {row.reason}" in html
    assert json.loads((folder / "report/metrics.json").read_text()) == report.metrics
