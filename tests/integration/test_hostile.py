"""A web archive with one of everything that a hostile author writes goes from ingest to search."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from align.formats.raw import raw_shards, read_table
from tests.e2e.test_repro import REDUCED
from tests.support import ROOT, hostile, thinned, warc_records

MAX_BYTES = 1_500_000_000
STAGES = (
    "ingest", "filter", "validate", "shard", "validate_shards", "fit_tokenizer", "pretrain", "evaluate", "package",
    "index",
)  # fmt: skip


class Peak:
    """The most memory that a process and its children held together, looked at 20 times a second."""

    def __init__(self, pid: int) -> None:
        self.num_bytes = 0
        self._root, self._end = psutil.Process(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            total = 0
            with suppress(psutil.NoSuchProcess):
                for process in (self._root, *self._root.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        total += process.memory_full_info().pss
            self.num_bytes = max(self.num_bytes, total)

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self.num_bytes


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    warc_records.write_archive(root / "hostile.warc.gz", hostile.records(120))
    evaluation = root / "evaluation"
    evaluation.mkdir()
    thinned.write(sample / "evaluation/classes.json", evaluation, lambda number, key: number % 16 == 0)
    policy = root / "data/policy"
    policy.mkdir(parents=True)
    (policy / "opted_out.csv").write_text("kind,value,reason,added\nhost,opted-out.example,asked,2026-01-01\n")
    yaml = YAML()
    values = yaml.load(ROOT / "params.yaml")
    changes: dict[str, object] = {
        **REDUCED,
        "ingest.max_pages": None,
        "paths.archive": "hostile.warc.gz",
        "paths.evaluation": "evaluation",
        "paths.finetuned": "models/pretrained",  # fine-tuning meets no other bytes
        "index.queries": None,
        "engine.num_workers": 2,
        "pretrain.num_steps": 4,
        "pretrain.warmup_steps": 0,
        "pretrain.validate_every_steps": 4,
        "validate.min_pairs": 10,
        "validate.min_success_share": 0.0,
        "validate.keep_rate": [0.0, 1.0],
        "shard.val_fraction": 0.0,
        "shard.test_fraction": 0.0,
        "filter.max_images_per_text": 1000,
        "filter.drop_filenames": False,
    }
    for name, value in changes.items():
        *sections, key = name.split(".")
        node = values
        for section in sections:
            node = node[section]
        node[key] = value
    for reason in values["validate"]["dropped_share"]:
        values["validate"]["dropped_share"][reason] = [0.0, 1.0]
    yaml.dump(values, root / "params.yaml")
    return root


def align(root: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[bytes], int]:
    """Runs `align`; what it printed, and its peak memory."""
    command = [sys.executable, "-m", "align.cli", *arguments]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        peak = Peak(process.pid)
        try:
            out, err = process.communicate(timeout=500)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            num_bytes = peak.stop()
    return subprocess.CompletedProcess(command, process.returncode, out, err), num_bytes


@pytest.mark.timeout(900)
def test_from_ingest_to_search(project: Path) -> None:
    printed = b""
    for stage in STAGES:
        began = time.monotonic()
        done, num_bytes = align(project, stage)
        print(f"{stage}: {time.monotonic() - began:.1f} s, {num_bytes / 1e6:,.0f} MB")
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
        assert num_bytes < MAX_BYTES, stage
        printed += done.stdout + done.stderr
    for query in (["red circle"], ["--image", str(project / "query.jpg")]):
        (project / "query.jpg").write_bytes(hostile.jpeg((320, 240), orientation=6))
        done, num_bytes = align(project, "search", *query)
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
        assert num_bytes < MAX_BYTES
        printed += done.stdout + done.stderr
    assert b"\x1b" not in printed
    assert "\u202e".encode() not in printed
    assert not list(project.rglob("hostile-eps-ran"))


def test_every_odd_thing_is_a_row_with_a_reason(project: Path) -> None:
    rows = [row for shard in raw_shards(project / "data/raw") for row in read_table(shard).to_pylist()]
    pictures = {row["url"].rpartition("/")[2]: row for row in rows if row["page_url"].endswith("pictures.html")}
    outcome = {name: row["error_message"] for name, row in pictures.items()}
    assert set(outcome) == set(hostile.pictures())
    good = {name for name, message in outcome.items() if message is None}
    decisions = {row["key"]: row for row in pq.read_table(project / "data/filtered/decisions.parquet").to_pylist()}
    by_name = {name: decisions[row["key"]] for name, row in pictures.items()}
    assert {"grey-16.png", "portrait.jpg"} <= good
    for name in ("scans.jpg", "damaged.avif", "cut.jpg", "claims.webp", "postscript.jpg", "huge.ico"):
        assert outcome[name] or "image_undecodable" in by_name[name]["reasons"], name
    moved = next(row for row in rows if row["url"].endswith("/moved.png"))
    assert (moved["status"], moved["error_message"]) == ("failed_to_download", "opted out")
    assert not any("opted-out.example" in row["url"] and row["sha256"] for row in rows)
    report = json.loads((project / "reports/ingest/report.json").read_text())
    print(report)


def test_long_texts_are_dropped(project: Path) -> None:
    rows = [row for shard in raw_shards(project / "data/raw") for row in read_table(shard).to_pylist()]
    decisions = {row["key"]: row for row in pq.read_table(project / "data/filtered/decisions.parquet").to_pylist()}
    for row in rows:
        assert len(row["caption"]) < 20_000
        if "/text-one-word" in row["url"] or "/text-marks" in row["url"]:
            assert not decisions[row["key"]]["keep"]
    print(Counter(one["reason"] for one in decisions.values()))
