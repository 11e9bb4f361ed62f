"""A web archive with one of everything that a hostile author writes goes from ingest to search."""

import hashlib
import json
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from align.formats.raw import raw_shards, read_table
from align.pairs.text import MAX_CHARACTERS
from tests.support import hostile, thinned, warc_records, warm
from tests.support.cpu_budget import costs
from tests.support.params import PARAMS_FILE
from tests.support.pictures import blurred_png
from tests.support.small_checkout import REDUCED

MAX_BYTES = 1_500_000_000
STAGES = (
    "ingest", "filter", "validate", "shard", "validate_shards", "fit_tokenizer", "pretrain", "evaluate", "package",
    "index",
)  # fmt: skip


class Peak:
    """The most memory that a command and its children held together, looked at 20 times a second.

    What they share is counted once only where they would hold too much otherwise: to ask costs ten times as much.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.05):
            family = warm.processes()
            total = _sum(family, lambda process: process.memory_info().rss)
            if total >= MAX_BYTES:
                total = _sum(family, lambda process: process.memory_full_info().pss)
            self.num_bytes = max(self.num_bytes, total)

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self.num_bytes


def _sum(family: Iterable[psutil.Process], size: Callable[[psutil.Process], int]) -> int:
    total = 0
    for process in family:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += size(process)
    return total


@pytest.fixture(scope="module")
@costs(5, "a picture of 98 megapixels and 6 GiB of zeros are packed")
def project(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    warc_records.write_archive(root / "hostile.warc.gz", hostile.records(48))
    evaluation = root / "evaluation"
    evaluation.mkdir()
    thinned.write(sample / "evaluation/classes.json", evaluation, lambda number, key: number % 64 == 0)
    policy = root / "data/policy"
    policy.mkdir(parents=True)
    (policy / "opted_out.csv").write_text("kind,value,reason,added\nhost,opted-out.example,asked,2026-01-01\n")
    yaml = YAML()
    values = yaml.load(PARAMS_FILE)
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
    command = [str(warm.commands() / "align"), *arguments]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        peak = Peak()
        try:
            out, err = process.communicate(timeout=250)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            num_bytes = peak.stop()
    return subprocess.CompletedProcess(command, process.returncode, out, err), num_bytes


@pytest.mark.costs(19, "ten stages over everything of which a reader could take too much")
def test_from_ingest_to_search(project: Path) -> None:
    printed = b""
    for stage in STAGES:
        began = time.monotonic()
        done, num_bytes = align(project, stage)
        print(f"{stage}: {time.monotonic() - began:.1f} s, {num_bytes / 1e6:,.0f} MB")  # shown with -s, or if it fails
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
        assert 0 < num_bytes < MAX_BYTES, stage
        printed += done.stdout + done.stderr
    for query in (["red circle"], ["--image", str(project / "query.jpg")]):
        (project / "query.jpg").write_bytes(hostile.jpeg((320, 240), orientation=6))
        done, num_bytes = align(project, "search", *query)
        assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
        assert 0 < num_bytes < MAX_BYTES
        printed += done.stdout + done.stderr
    assert b"\x1b" not in printed
    assert "\u202e".encode() not in printed
    assert not list(project.rglob("hostile-eps-ran"))


def rows(project: Path) -> list[dict[str, Any]]:
    return [row for shard in raw_shards(project / "data/raw") for row in read_table(shard).to_pylist()]


def decisions(project: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in pq.read_table(project / "data/filtered/decisions.parquet").to_pylist()}


def test_every_odd_picture_is_a_row_with_a_reason(project: Path) -> None:
    shown = {row["url"].rpartition("/")[2]: row for row in rows(project) if row["page_url"].endswith("pictures.html")}
    assert set(shown) == set(hostile.pictures())
    messages = {name: (row["error_message"] or "").partition(":")[0] for name, row in shown.items()}
    undecodable = "not a picture that we decode"
    assert messages == {
        "scans.jpg": "too many scans",
        "beyond-the-limit.png": "too many pixels",
        "claims.webp": "too many pixels",
        "large.ico": undecodable,
        "huge.ico": undecodable,
        "postscript.jpg": undecodable,
        "empty.gif": undecodable,
        "zip.png": undecodable,
        "nothing.jpg": "bytes cannot be read",
        # their headers are good; the filter decodes them
        **dict.fromkeys(("within-the-limit.png", "grey-16.png", "portrait.jpg", "damaged.avif", "cut.jpg"), ""),
    }
    decided = decisions(project)
    reasons = {name: decided[row["key"]]["reason"] for name, row in shown.items() if not row["error_message"]}
    assert reasons == {
        "within-the-limit.png": None,
        "grey-16.png": None,
        "portrait.jpg": None,
        "damaged.avif": "image_undecodable",
        "cut.jpg": "image_undecodable",
    }
    assert (shown["portrait.jpg"]["width"], shown["portrait.jpg"]["height"]) == (240, 320)


def test_every_odd_page_is_read_or_counted(project: Path) -> None:
    report = json.loads((project / "reports/ingest/report.json").read_text())
    # 100,000 attributes, 200,000 tags, gzip, gzip in gzip; a coding that nobody knows is no hindrance
    assert (report["num_pages_too_large"], report["num_pages_unreadable"]) == (4, 0)
    assert report["num_pages_coding_unknown"] == 1
    pages = Counter(row["page_url"].rpartition("/")[2] for row in rows(project) if "/page/" in row["page_url"])
    assert pages == {"figure.html": 4000, "picture.html": 2000, "binary.html": 100, "figures.html": 1, "srcset.html": 1}


def test_a_redirect_to_an_opted_out_host_is_refused(project: Path) -> None:
    moved = next(row for row in rows(project) if row["url"].endswith("/moved.png"))
    assert (moved["status"], moved["error_message"], moved["caption"]) == ("failed_to_download", "opted out", "")
    forbidden = hashlib.sha256(blurred_png(4242, (230, 240))).hexdigest()
    assert forbidden not in {row["sha256"] for row in rows(project)}


def test_texts_are_kept_as_they_are_and_endless_ones_are_dropped(project: Path) -> None:
    decided = decisions(project)
    texts = {row["page_url"].rpartition("/")[2]: row for row in rows(project) if "/text/" in row["page_url"]}
    assert {name.removesuffix(".html") for name in texts} == set(hostile.TEXTS)
    reasons = {name: decided[row["key"]]["reason"] for name, row in texts.items()}
    assert {name for name, reason in reasons.items() if reason is not None} == {"one-word.html", "marks.html"}
    assert max(len(row["caption"]) for row in texts.values()) == MAX_CHARACTERS
    assert texts["mathematics.html"]["caption"] == hostile.TEXTS["mathematics"]
