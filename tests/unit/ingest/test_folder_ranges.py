"""A folder of pictures gives the same data/raw at once and in ranges, on a machine with the files in another order."""

import json
from pathlib import Path

from align.cli import main
from tests.support.dvc_projects import file_bytes
from tests.support.params import PARAMS_FILE
from tests.support.pictures import blurred_png


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
