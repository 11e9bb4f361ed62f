"""`align filter` under `kill -9`: the same command then writes the same bytes, and an edit of its code is obeyed."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.cli import main
from tests.support import ROOT, killing, warm
from tests.support.cpu_budget import costs
from tests.support.params import PARAMS_FILE
from tests.support.small_filter import evaluation_set, noise, shards, stock_folder

SETTINGS = ("filter.num_frequent_ngrams=60", "engine.num_workers=2", "engine.memory_limit=200MB")


@pytest.fixture(scope="module")
@costs(4, "a run of the filter, to compare with")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A folder with the inputs and a whole run's results in `whole`; and its seconds."""
    root = tmp_path_factory.mktemp("filter")
    shards(root / "raw", 6)
    evaluation_set(root / "evaluation", noise(2))
    return root, killing.run(command(root, root / "whole"), root)


def command(inputs: Path, out: Path, *more: str) -> list[str]:
    """The words of `align` that filter these inputs."""
    paths = {one: out / one for one in ("filtered", "reports", "runtime")}
    paths |= {one: inputs / one for one in ("raw", "evaluation", "policy")}
    settings = [*SETTINGS, *(f"paths.{one}={path}" for one, path in paths.items())]
    return ["filter", *(word for setting in settings for word in ("--set", setting)), *more]


def require_equal(root: Path, whole: Path) -> None:
    for folder in ("filtered", "reports"):
        expected = killing.digests(whole / "whole" / folder)
        assert expected
        assert killing.digests(root / folder) == expected


@pytest.mark.costs(7, "a run is killed, and resumed in two processes")
def test_a_killed_filter_resumes_and_writes_the_same_bytes(tmp_path: Path, whole: tuple[Path, float]) -> None:
    """At one moment, with worker processes; tests/integration/test_killed_at_writes.py kills it at its writes."""
    inputs, whole_s = whole
    killing.kill_and_resume(
        command(inputs, tmp_path / "killed"), tmp_path, seed=3, num_moments=1, whole_s=whole_s,
        reset=lambda: shutil.rmtree(tmp_path / "killed"),
    )  # fmt: skip
    require_equal(tmp_path / "killed", inputs)
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        ".filtered.lock", "filtered", "reports", "runtime",
    }  # fmt: skip


@pytest.mark.costs(4, "two ranges are measured at once")
def test_ranges_at_once_give_the_bytes_of_one_run(tmp_path: Path, whole: tuple[Path, float]) -> None:
    one_worker = command(whole[0], tmp_path / "parts", "--set", "engine.num_workers=1")
    started = [killing.Command([*one_worker, "--shards", part], tmp_path) for part in ("0-3", "2-5")]
    for each in started:
        assert each.ended(120)
        each.require_success()
    assert main([*one_worker, "--finish"]) == 0
    require_equal(tmp_path / "parts", whole[0])


#: Runs the command with the code as it is now, which a fork has not imported.
EDITED = """
import sys

for name in [name for name in sys.modules if name.partition(".")[0] == "align"]:
    del sys.modules[name]
from align.cli import main

sys.exit(main(sys.argv[1:]))
"""
#: And ends it like kill -9 when all images are scored and nothing is decided.
KILLED = """
import os, signal
from align.filter import filter as stage

stage.compare_with_evaluation_images = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED = EDITED.replace("from align.cli", f"{KILLED}from align.cli")
RULE, OTHER_RULE = 'return f"num_words < {config.min_words}"', 'return f"num_words < {config.min_words + 1}"'


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{path.name}: {text.count(old)} times {old!r}"
    path.write_text(text.replace(old, new), "utf-8")


@pytest.mark.costs(4, "three runs, each with edited code")
def test_a_killed_filter_resumes_after_a_reworded_line_and_starts_again_after_an_edited_rule(tmp_path: Path) -> None:
    """With a copy of the package, whose code is edited between the runs."""
    code = tmp_path / "code/align"
    shutil.copytree(ROOT / "align", code, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PARAMS_FILE, tmp_path)
    pairs = [("three words here", noise(0)), ("and four words here", noise(1)), ("two words", noise(2))]
    stock_folder(tmp_path / "raw", [*pairs])
    (tmp_path / "evaluation").mkdir()
    settings = [
        f"paths.{name}={tmp_path / name}" for name in ("raw", "evaluation", "policy", "filtered", "reports", "runtime")
    ]
    settings += ["engine.num_workers=1", "engine.memory_limit=200MB"]
    words = ["filter", *(word for setting in settings for word in ("--set", setting))]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "code"), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(code: str) -> subprocess.CompletedProcess[str]:
        arguments = [warm.commands() / "python", "-c", code, *words]
        return subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    def files() -> dict[str, int]:
        work = tmp_path / ".filtered.part"
        names = ("pairs/00000.parquet", "scored/00000.parquet", "verdicts.parquet")
        return {name: (work / name).stat().st_ino for name in names}

    killed = run(KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "filter: SQL, rules" in killed.stderr
    first = files()

    edit(code / "filter/judge.py", 'say("filter: SQL, rules")', 'say("filter: the cheap rules")  # reworded')
    edit(
        code / "filter/rules.py", '"""T3: fewer than 3 unigrams; 2 are dropped, 3 kept."""', '"""T3: too few words."""'
    )
    resumed = run(KILLED)
    assert resumed.returncode == -signal.SIGKILL, resumed.stderr
    assert "SQL" not in resumed.stderr and "cheap rules" not in resumed.stderr
    assert files() == first  # nothing was measured, judged or scored again

    edit(code / "filter/rules.py", RULE, OTHER_RULE)
    done = run(EDITED)
    assert done.returncode == 0, done.stderr
    assert "filter: the cheap rules" in done.stderr
    table = pq.read_table(tmp_path / "filtered/decisions.parquet", columns=["text", "keep"])
    assert dict(zip(*table.to_pydict().values(), strict=True)) == {
        "three words here": False, "and four words here": True, "two words": False,
    }  # fmt: skip
