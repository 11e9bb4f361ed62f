"""Every benchmark runs to its end at its smallest size, so that it does so on the day when somebody measures.

The sizes are constants of the modules. What has processes of its own, for their peak memory, runs here in this one.
Peers with an environment of their own have a stand-in or are left out; open_clip is laid beside our packages.
"""

import importlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import benchmarks.__main__ as training_half
import benchmarks.data.__main__ as data_half
import benchmarks.near_duplicates.__main__ as near_duplicates
import benchmarks.scale.__main__ as scale
from align.config import Params
from align.config.filter import FilterConfig
from align.release.packaging.package import package
from align.services.executors import executors
from benchmarks import evaluate, runs, search, vectors
from benchmarks import world as worlds
from benchmarks.data import download, extraction, filtering
from benchmarks.near_duplicates.labelled import labelled_pairs
from benchmarks.near_duplicates.pictures import archive_pictures, evaluation_pictures
from benchmarks.peers import FOLDER, build_beside_us
from benchmarks.scale import page as growth
from benchmarks.scale.steps import STAGES, WITH_PICTURES
from benchmarks.world import World
from tests.support import ROOT, missing
from tests.support.local_stack import Stack
from tests.support.params import PARAMS_FILE, load_params
from tests.support.training_data import MODEL, RECIPE, noted_slowly

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # webdataset does not close the tars
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SAMPLE = ROOT / "data/sample"
PAPER: dict[str, object] = {"RESIZE_PX": 72, "CROP_PX": 64}
#: Module -> its constants here.
SIZES: dict[str, dict[str, object]] = {
    "losses": {"TIMED": (16,), "BATCHES": (16, 9000), "WIDTH": 8},
    "training": {"BATCH_SIZE": 16, "NUM_STEPS": 3, "CPU_PART": 8},
    "kept_memory": {"BATCH_SIZE": 16, "CPU_PART": 8, "PAIRS": 16} | PAPER,
    "open_clip_step": {"BATCH_SIZE": 16, "NUM_STEPS": 3},
    "towers": {"BATCH_SIZE": 8},
    "ranks": {"NUM_STEPS": 2, "FROM_SHARDS": ((36, 32, 8, 16),)},
    "overlap": {"WORLD_SIZES": (2,), "SHARE": 8},
    "resuming": {"BATCH_SIZE": 16, "STALL_STEPS": 5, "KILLED_AFTER": 8, "SAVED_AT": 6, "_note": noted_slowly},
    "preprocess": {"NUM_IMAGES": 4},
    "reading": {},
    "train_loader": {"BATCH_SIZE": 8, "STEADY_STEPS": 2} | PAPER,
    "open_clip_loader": {"BATCH_SIZE": 8} | PAPER,
    "data.extraction": {"NUM_LARGE_PAGES": 4},
    "data.download": {"NUM_PICTURES": 151, "NUM_FEW": 4, "NUM_HOSTILE": 151, "TIMEOUT_S": 1, "NUM_RETRIES": 1},
    "data.dead_hosts": {"FEW": 5, "MANY": 20},
    "data.filtering": {
        "NUM_PAIRS": 500,
        "NUM_PANDAS": 500,
        "NUM_DATA_JUICER": 500,
        "TIMES": 2,
        "SHARD_SIZE": 500,
        "_NUM_WORDS": 20_000,
    },
    "data.sharding": {"NUM_PICTURES": 8},
    "vectors": {"NUM": 4000, "EXACT_BELOW": 1000, "ASKED": 999, "WIDTH": 16, "BLOCK": 500, "NUM_TOPICS": 10},
    "evaluate": {"NUM_IMAGES": 50, "NUM_TEXTS": 250, "WIDTH": 16, "SHAPES": {"the demo's model": ({}, 8)}},
    "search": {"USERS": 2, "TURN_S": 0.5, "TURNS": 1},
    "near_duplicates": {"NUM_PLANTED": 2},
}


def here(function: Callable[..., None], *arguments: object) -> tuple[float, int]:
    """`in_process` without the process."""
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start, 1 << 20


EVERYWHERE: dict[str, object] = {"REPETITIONS": 1, "PRESETS": {"demo": {}}, "in_process": here}


class Small:
    """Runs commands of the benchmarks in this process, with small constants in whichever module has them."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.patch, self._capsys = patch, capsys

    def run(self, name: str, main: Callable[[], int | None], *words: str) -> None:
        """Exit code 1 is allowed: it says that a figure is below its bar."""
        importlib.import_module(f"benchmarks.{name}")
        for path, module in list(sys.modules.items()):
            for constant, value in (EVERYWHERE | SIZES[name]).items():
                if path.startswith("benchmarks.") and hasattr(module, constant):
                    self.patch.setattr(module, constant, value)
        self.patch.setattr(sys, "argv", ["benchmarks", *words])
        assert main() in (0, 1, None)
        rows = [line for line in self._capsys.readouterr().out.splitlines() if line.startswith("| ")]
        assert len(rows) > 1


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Small:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # worker processes have but their imports to do
    monkeypatch.setattr(executors, "cores", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})  # ranks
    for module in (training_half, download, extraction, filtering, evaluate):
        monkeypatch.setattr(module, "version_of", lambda *_: "0")
    for each in (download, extraction, filtering, evaluate):
        monkeypatch.setattr(each, "build_peers", lambda *_: Path("none"))
    return Small(monkeypatch, capsys)


@pytest.fixture(scope="module", name="world")
def _world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What our own stages make of a few pages, and a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds, "NUM_PAGES", 12)
        patch.setattr(os, "cpu_count", lambda: 1)
        patch.setattr(executors, "cores", lambda: 1)
        world = worlds.build(tmp_path_factory.mktemp("world"))
        assert world.describe().startswith("12 pages of data/sample: 1")
    tiny = {"model": MODEL.model_dump(mode="json"), "pretrain": RECIPE}
    return replace(world, params=replace(world.params, values=world.params.values | tiny))


@pytest.mark.parametrize("name", training_half.BENCHMARKS)
def test_the_training_half(name: str, small: Small, world: World) -> None:
    if training_half.BENCHMARKS[name]:
        if not (FOLDER / "peers_beside_us").exists() and os.environ.get("CI") != "true":
            missing("needs open_clip in .align/peers_beside_us, which CI=true or `make bench-gpu` on a card installs")
        small.patch.syspath_prepend(build_beside_us())
        for module in [path for path in sys.modules if path.partition(".")[0] in ("webdataset", "open_clip_train")]:
            small.patch.delitem(sys.modules, module)  # open_clip's training asks for a webdataset before ours
    small.patch.setattr(training_half, "build", lambda _: world)
    small.patch.setattr(training_half, "run_beside_peers", lambda path, at: importlib.import_module(path).run(at))
    small.run(name, training_half.main, name)


def fetches_one(table: Path) -> download.Cost:
    """Stands in for img2dataset."""
    urls = pq.read_table(table)["url"].to_pylist()
    for pause_s in (0.05, 0.0):  # the server tells the time between the first connection and the last
        urllib.request.urlopen(urls[-1], timeout=10).close()
        time.sleep(pause_s)
    return download.Cost(float(len(urls)), 1.0, 0, len(urls))


def finds_the_same(_: Path, name: str, file: Path, few: Path) -> dict[str, Any]:
    """Stands in for BeautifulSoup and cc2dataset."""
    return {"digest": extraction.found_by_us(name, file)[1], "cpu_s": 1.0, "peak_bytes": 0}


def decides_the_same(_: Path, folder: Path, config: FilterConfig, reader: str) -> tuple[float, int]:
    """Stands in for Data-Juicer."""
    filtering._fresh(folder / "data_juicer")
    pq.write_table(pq.read_table(folder / "filtered/decisions"), folder / "data_juicer/decisions.parquet")
    return 1.0, 0


@pytest.mark.parametrize("name", data_half.NAMES)
def test_the_data_half(name: str, small: Small, world: World) -> None:
    small.patch.setattr(data_half, "build", lambda _: world)
    small.patch.setattr(download, "_peer", lambda *_: fetches_one)
    small.patch.setattr(extraction, "found_by_peer", finds_the_same)
    small.patch.setattr(filtering, "in_data_juicer", decides_the_same)
    small.patch.setattr(filtering, "against_spark", lambda *_: [])  # test_spark.py compares decisions with Spark's
    small.run(f"data.{name}", data_half.main, name)


def test_vectors(small: Small) -> None:
    small.run("vectors", vectors.main)


def test_evaluate(small: Small) -> None:
    answers: list[dict[str, Any]] = []
    ask = evaluate._asked

    def once(command: list[str]) -> dict[str, Any]:
        answers.extend([] if answers else [ask(command)])  # ours is asked first, and stands in for CLIP_benchmark
        return answers[0]

    small.patch.setattr(evaluate, "_asked", once)
    small.run("evaluate", evaluate.main, "--repetitions", "1")


def test_search(small: Small, tmp_path: Path) -> None:
    ready, metrics = SAMPLE / "ready", tmp_path / "evaluation/metrics.json"
    metrics.parent.mkdir()
    metrics.write_text("{}")
    package(
        model=ready / "model", evaluation=metrics.parent, out=tmp_path / "models/packaged", reports=tmp_path / "reports"
    )
    shutil.copytree(ready / "model", tmp_path / "models/finetuned")
    shutil.copytree(ready / "index", tmp_path / "data/index")
    shutil.copy(PARAMS_FILE, tmp_path)
    small.run("search", search.main, "--root", str(tmp_path))


def test_runs(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stub stages."""
    monkeypatch.setattr(runs, "TIMES", 1)
    rows = [wait.row for wait in runs.through_prefect(stack)]
    assert [row.startswith(("| `align run` on", "| a click in Prefect")) for row in rows] == [True] * 3


def test_near_duplicates(small: Small, tmp_path: Path) -> None:
    """On the pictures of a few labelled pairs; into another page's picture."""
    pairs = labelled_pairs()[:20]
    images = archive_pictures(SAMPLE, {pair.image_id for pair in pairs})
    everything = evaluation_pictures(SAMPLE)
    tests = {pair.evaluation: everything[pair.evaluation] for pair in pairs}
    few = {"filter": load_params().values["filter"] | {"near_duplicate_clusters": 2, "near_duplicate_probes": 2}}
    (tmp_path / "docs").mkdir()
    stand_ins = {
        "ROOT": tmp_path, "labelled_pairs": lambda: pairs, "archive_pictures": lambda _: images,
        "evaluation_pictures": lambda _: tests, "load_params": lambda: Params(few, PARAMS_FILE),
    }  # fmt: skip
    for name, value in stand_ins.items():
        small.patch.setattr(near_duplicates, name, value)
    small.run("near_duplicates", near_duplicates.main)
    assert (tmp_path / "docs/img/near_duplicates.png").stat().st_size > 10_000


@pytest.mark.patience(900, "all of make bench-gpu")
@pytest.mark.skipif(torch.cuda.is_available(), reason="it stands in for a card, and there is one")
def test_a_cpu_stands_in_for_a_card(tmp_path: Path) -> None:
    """`make bench-gpu` whole, so that nothing silly stops it on a machine that has a card."""
    page, out = ROOT / "benchmarks/gpu.md", tmp_path / "page.md"
    before = page.read_bytes() if page.exists() else None
    command = [sys.executable, "-m", "benchmarks.gpu", "--without-peers", "--output", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (page.read_bytes() if page.exists() else None) == before
    text = out.read_text("utf-8")
    assert text in done.stdout and "No card" in text and "nothing failed" in done.stderr + done.stdout
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Correctness", "Depthwise convolutions", "B3 + Mini", "B7 + Base", "Several cards",
        "Beside open_clip", "Fed by the loader", "torch.compile",
    ]  # fmt: skip
    assert "**failed**" not in text and "no time was left" not in text
    for check in ("LAMB against NumPy", "micro_batch: 16", "gradient_checkpointing: cheap", "killed (SIGKILL)"):
        line = next(line for line in text.splitlines() if line.startswith("|") and check in line)
        assert "| passed |" in line
    three, seven = "| tiny ones for B3 + Mini ", "| tiny ones for B7 + Base "
    rows = f"{three}| none | 16 |", f"{three}| cheap | 16 |", f"{seven}| none | 8 |", f"{three}| 8 | 6 |"
    for row in (*rows, f"{three}| 16 | on |"):
        assert row in text, row
    assert "open_clip is not installed here" in text
    assert "| towers | kernel | calls |" in text
    for check in ("gradients of 2 ranks beside one ", "gradients of 2 ranks beside one, FSDP2", "a vote of one of 2",
                  "a rank of 2 killed"):  # fmt: skip
        assert any(line.startswith(f"| {check}") and "| passed |" in line for line in text.splitlines()), check
    for way in ("alone", "overlapped", "after", "FSDP2"):
        assert f"| 2 | tiny ones for B3 + Mini | {way} | 8 |" in text
    of_stride_2 = [line for line in text.splitlines() if line.startswith("|") and ", stride 2 |" in line]
    assert len(of_stride_2) == 8 and all(line.count("|") == 8 for line in of_stride_2)  # all have both ways


def test_the_growth_of_each_stage_is_measured_and_reckoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "scale.md"
    page.write_text(f"# Scale\n\n{growth.BEGIN}\nold\n{growth.END}\n\nEnd.\n")
    monkeypatch.setattr(growth, "PAGE", page)
    monkeypatch.setattr(growth, "PLOT", tmp_path / "scale.png")
    assert scale.main(["10000", "20000", "--write"]) == 0
    text = page.read_text()
    assert text.startswith("# Scale\n\n") and text.endswith("\n\nEnd.\n") and "old" not in text
    for stage in (*STAGES, *WITH_PICTURES):
        small, large, reckoned = (line for line in text.split("\n") if line.startswith(f"| {stage} |"))
        assert "[" not in small and "[" in large and reckoned.count("|") == 6
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
