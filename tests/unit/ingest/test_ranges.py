"""Ranges of ingest that start at the same moment: one of them plans, and data/raw is that of one run."""

import json
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from align.cli import main
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.durable.work import Portion
from align.ingest import partition
from align.ingest.ingest import ingest
from align.ingest.workers import Resources
from tests.support.dvc_projects import file_bytes
from tests.support.killing import digests
from tests.support.params import PARAMS_FILE, load_params
from tests.support.pictures import blurred_png
from tests.support.warc_records import page, picture, response, write_archive

PARAMS = load_params(overrides=["engine.num_workers=1", "ingest.shard_size=4"])
SPAWN = multiprocessing.get_context("spawn")


def make(archive: Path, raw: Path, portion: Portion) -> None:
    resources = Resources(PARAMS.section(DownloadConfig), PARAMS.section(EngineConfig), PARAMS.section(StoreConfig))
    config, policy = PARAMS.section(IngestConfig), raw.parent / "policy"
    ingest(config, resources, archive=str(archive), raw=raw, policy=policy, portion=portion)


def one_range(archive: Path, raw: Path, shards: range, barrier: Barrier) -> None:
    scan = partition._scan_all

    def counted(*arguments: Any) -> dict[str, Any]:
        with (raw.parent / "plans").open("a") as file:
            file.write("planned\n")
        return scan(*arguments)

    with patch.object(partition, "_scan_all", counted):
        barrier.wait(60)
        make(archive, raw, Portion(shards))


@pytest.mark.parametrize("num_ranges", [2, pytest.param(4, marks=pytest.mark.full)])
def test_ranges_at_once_plan_once_and_give_the_bytes_of_one_run(tmp_path: Path, num_ranges: int) -> None:
    pictures = [f"http://x.example/{number}.png" for number in range(30)]
    html = "".join(f'<img src="{url}" alt="the picture {url}">' for url in pictures)
    archive = write_archive(
        tmp_path / "a.warc.gz",
        [page("http://x.example/", html), *(response(url, picture(300, 250, "red"), "image/png") for url in pictures)],
    )
    make(archive, tmp_path / "whole", Portion())
    expected = digests(tmp_path / "whole")
    num_shards = sum(name.endswith(".tar") for name in expected)
    # overlapping ranges, as after a restart of a task that still runs
    parts = [range(number, max(number + 1, num_shards - number)) for number in range(num_ranges)]
    barrier = SPAWN.Barrier(num_ranges)
    processes = [
        SPAWN.Process(target=one_range, args=(archive, tmp_path / "parts", shards, barrier)) for shards in parts
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * num_ranges
    assert (tmp_path / "plans").read_text() == "planned\n"
    make(archive, tmp_path / "parts", Portion(finish=True))
    assert digests(tmp_path / "parts") == expected


def photos(root: Path, numbers: range) -> Path:
    (root / "images").mkdir(parents=True)
    for number in numbers:
        (root / f"images/{number}.png").write_bytes(blurred_png(number, (8, 6)))
    rows = [{"file": f"{number}.png", "texts": [f"text {number}", f"another {number}"]} for number in range(12)]
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def ingested(root: Path, archive: Path, *words: str) -> dict[str, bytes]:
    values = [f"paths.{name}={root / name}" for name in ("raw", "reports", "runtime", "policy")]
    values += ["ingest.source=folder", f"paths.archive={archive}", "ingest.shard_size=8", "engine.num_workers=1"]
    arguments = [word for value in values for word in ("--set", value)]
    assert main(["ingest", "--params", str(PARAMS_FILE), *arguments, *words]) == 0
    return file_bytes(root / "raw") if (root / "raw").exists() else {}


def test_ranges_and_one_run_write_the_same_bytes(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", range(10))
    whole = ingested(tmp_path / "whole", folder)
    assert sorted(name for name in whole if name.endswith(".tar")) == ["00000.tar", "00001.tar", "00002.tar"]
    for words in (("--shards", "1-2"), ("--shards", "0-0")):
        assert ingested(tmp_path / "ranges", folder, *words) == {}
    assert ingested(tmp_path / "ranges", folder, "--finish") == whole
    elsewhere = photos(tmp_path / "elsewhere/copy", range(9, -1, -1))
    moved = ingested(tmp_path / "moved", elsewhere)
    del moved["manifest.json"], whole["manifest.json"]  # these name the archive
    assert moved == whole
    assert json.loads((tmp_path / "whole/reports/ingest/report.json").read_text())["statuses"] == {
        "failed_to_download": 4, "success": 20,
    }  # fmt: skip


def test_max_pages_takes_so_many_pictures_where_there_are_no_pages(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", range(12))
    assert ingested(tmp_path / "some", folder, "--set", "ingest.max_pages=3")
    report = json.loads((tmp_path / "some/reports/ingest/report.json").read_text())
    assert report["statuses"] == {"success": 6}  # three pictures of two texts each
