"""`align filter` under `kill -9`: the same command then writes the same bytes, and an edit of its code is obeyed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from align.cli import main
from tests.support import ROOT, killing
from tests.support.params import PARAMS_FILE
from tests.support.small_filter import evaluation_set, noise, shards, stock_folder

SETTINGS = ("filter.num_frequent_ngrams=60", "engine.num_workers=2", "engine.memory_limit=200MB")
FULL = pytest.param(10, killing.Started, marks=pytest.mark.full)


@pytest.mark.parametrize(("num_moments", "start"), [(1, killing.Command), FULL], ids=["once", "ten"])
def test_a_killed_filter_resumes_and_writes_the_same_bytes(
    tmp_path: Path, num_moments: int, start: killing.Start
) -> None:
    shards(tmp_path / "raw", 6)
    evaluation_set(tmp_path / "evaluation", noise(2))

    def command(name: str) -> list[str]:
        paths = {one: tmp_path / name / one for one in ("filtered", "reports", "runtime")}
        paths |= {one: tmp_path / one for one in ("raw", "evaluation", "policy")}
        settings = [*SETTINGS, *(f"paths.{one}={path}" for one, path in paths.items())]
        return ["filter", *(word for setting in settings for word in ("--set", setting))]

    whole_s = killing.run(command("whole"), tmp_path, start)
    killing.kill_and_resume(
        command("killed"), tmp_path, seed=3, num_moments=num_moments, whole_s=whole_s,
        reset=lambda: shutil.rmtree(tmp_path / "killed"), start=start,
    )  # fmt: skip
    for folder in ("filtered", "reports"):
        whole = killing.digests(tmp_path / "whole" / folder)
        assert whole
        assert killing.digests(tmp_path / "killed" / folder) == whole
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        ".filtered.lock", "filtered", "reports", "runtime",
    }  # fmt: skip


def test_ranges_at_once_give_the_bytes_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shards(tmp_path / "raw", 6)
    evaluation_set(tmp_path / "evaluation", noise(2))

    def command(name: str, *portion: str) -> list[str]:
        paths = {one: tmp_path / name / one for one in ("filtered", "reports", "runtime")}
        paths |= {one: tmp_path / one for one in ("raw", "evaluation", "policy")}
        settings = [*SETTINGS, "engine.num_workers=1", *(f"paths.{one}={path}" for one, path in paths.items())]
        return ["filter", *(word for setting in settings for word in ("--set", setting)), *portion]

    assert main(command("whole")) == 0
    started = [killing.Command(command("parts", "--shards", part), tmp_path) for part in ("0-3", "2-5")]
    for each in started:
        assert each.ended(120)
        each.require_success()
    assert main(command("parts", "--finish")) == 0
    for folder in ("filtered", "reports"):
        assert killing.digests(tmp_path / "parts" / folder) == killing.digests(tmp_path / "whole" / folder)


#: Runs the command, and ends it like kill -9 when all images are scored and nothing is decided.
KILLED = """
import os, signal, sys
from align.filter import filter as stage
from align.cli import main

stage.compare_with_evaluation_images = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""
RULE, OTHER_RULE = 'return f"num_words < {config.min_words}"', 'return f"num_words < {config.min_words + 1}"'


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{path.name}: {text.count(old)} times {old!r}"
    path.write_text(text.replace(old, new), "utf-8")


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
    command = ["filter", *(word for setting in settings for word in ("--set", setting))]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "code"), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*program: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, *program, *command]
        return subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    def files() -> dict[str, int]:
        work = tmp_path / ".filtered.part"
        names = ("pairs/00000.parquet", "scored/00000.parquet", "verdicts.parquet")
        return {name: (work / name).stat().st_ino for name in names}

    killed = run("-c", KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "filter: SQL, rules" in killed.stderr
    first = files()

    edit(code / "filter/judge.py", 'say("filter: SQL, rules")', 'say("filter: the cheap rules")  # reworded')
    edit(
        code / "filter/rules.py", '"""T3: fewer than 3 unigrams; 2 are dropped, 3 kept."""', '"""T3: too few words."""'
    )
    resumed = run("-c", KILLED)
    assert resumed.returncode == -signal.SIGKILL, resumed.stderr
    assert "SQL" not in resumed.stderr and "cheap rules" not in resumed.stderr
    assert files() == first  # nothing was measured, judged or scored again

    edit(code / "filter/rules.py", RULE, OTHER_RULE)
    done = run("-m", "align.cli")
    assert done.returncode == 0, done.stderr
    assert "filter: the cheap rules" in done.stderr
    table = pq.read_table(tmp_path / "filtered/decisions.parquet", columns=["text", "keep"])
    assert dict(zip(*table.to_pydict().values(), strict=True)) == {
        "three words here": False, "and four words here": True, "two words": False,
    }  # fmt: skip
