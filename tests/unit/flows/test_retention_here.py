"""What `align gc` takes of a checkout beside DVC's cache: real folders, locks and times; and the order of a removal."""

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from align.config.promote import PromoteConfig
from align.config.retention import RetentionConfig
from align.config.store import StoreConfig
from align.files import mark
from align.git import git
from align.run_records import FOLDER, RunRecord, hold
from flows.failed_runs import MADE_BY
from flows.retention import here
from flows.retention.here import Times
from flows.retention.item import Item
from flows.retention.objects import Objects, read_journal
from flows.retention.plan import _journaled
from flows.run_context import log_file
from tests.support import small_git
from tests.support.params import load_params

DAY_S = 86400.0
CONFIG = load_params(overrides=["retention.days=30", "retention.finished_days=7"]).section(RetentionConfig)


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    params = "paths:\n  reports: reports\n"
    return small_git.write(tmp_path / "project", {"params.yaml": params, ".gitignore": "/.align/\n/reports/\n"})


@pytest.fixture(name="times")
def _times() -> Times:
    return Times(time.time(), None)


def aged(path: Path, days: float) -> Path:
    """Makes a file or a folder with all that is in it so old."""
    then = time.time() - days * DAY_S
    for each in (*path.rglob("*"), path):
        os.utime(each, (then, then), follow_symlinks=False)
    return path


def taken(items: Iterable[Item]) -> list[str]:
    """Removes them, twice; returns their names."""
    listed = list(items)
    for item in (*listed, *listed):
        item.remove()
    return sorted(name for item in listed for name in item.names)


@pytest.mark.parametrize(
    ("live_since", "before"), [(None, 1000 - 2 * DAY_S), (500.0, 1000 - 2 * DAY_S), (-9 * DAY_S, -9 * DAY_S)]
)
def test_what_is_younger_than_the_oldest_live_run_stays(live_since: float | None, before: float) -> None:
    assert Times(1000.0, live_since).before(2) == before
    assert Times(1000.0, live_since).before(0) == (1000.0 if live_since is None else live_since)


def worktree(root: Path, name: str) -> Path:
    """As a run has it that has reported something."""
    path = root / ".align/worktrees" / name
    git(root, "worktree", "add", "--quiet", "--detach", str(path))
    log_file(path).parent.mkdir(parents=True)
    log_file(path).write_text("what was printed")
    (path / "reports").mkdir()
    (path / "reports/report.json").write_text("{}")
    (root / ".align/locks").mkdir(exist_ok=True)
    (root / ".align/locks" / name).touch()
    return path


def test_a_dead_run_s_worktree_goes_and_what_it_reported_is_kept(root: Path, times: Times) -> None:
    """Not one whose lock is held, nor one of another machine, whose lock is not seen here."""
    dead, live, elsewhere = (worktree(root, f"{number:016x}") for number in range(3))
    run = hold(RunRecord("wide", "f1", 1, "", "", str(root), str(elsewhere)))
    file = root / FOLDER / "f1-1.json"
    run.close()
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"host": "elsewhere", "boot": "another"}))
    with (root / ".align/locks" / live.name).open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert taken(here.worktrees(root, CONFIG, times)) == [dead.name]
    assert not dead.exists() and live.exists() and elsewhere.exists()
    assert len(git(root, "worktree", "list").splitlines()) == 3
    [kept] = (root / ".align/failed").glob("killed-*")
    assert (kept / "reports/report.json").is_file() and (kept / "log.txt").read_text() == "what was printed"


def test_one_without_a_lock_may_be_about_to_begin(root: Path, times: Times) -> None:
    path = worktree(root, "0" * 16)
    (root / ".align/locks" / path.name).unlink()
    assert taken(here.worktrees(root, CONFIG, times)) == [] and path.exists()
    aged(path, 31)
    assert taken(here.worktrees(root, CONFIG, times)) == [path.name] and not path.exists()


def test_failed_runs_and_logs_that_are_old(root: Path, times: Times) -> None:
    failed, logs = root / ".align/failed", root / ".align/logs"
    for name, days in (("old", 31), ("young", 29), ("mine", 31)):
        (failed / name).mkdir(parents=True)
        if name != "mine":
            mark(failed / name, MADE_BY)
        aged(failed / name, days)
    assert taken(here.failed_runs(root, CONFIG, times)) == ["old"]
    assert sorted(path.name for path in failed.iterdir()) == ["mine", "young"]

    logs.mkdir()
    for name, days in (("prefect.log", 31), ("mlflow.log", 31), ("run.log", 29), ("notes.txt", 31)):
        (logs / name).write_text("x")
        aged(logs / name, days)
    with subprocess.Popen(["sleep", "60"], cwd=root) as process:
        service = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
        (root / ".align/services.json").write_text(json.dumps({"prefect": service}))
        assert taken(here.logs(root, CONFIG, times)) == ["mlflow.log"]  # prefect writes into its own
        process.kill()
    assert sorted(path.name for path in logs.iterdir()) == ["notes.txt", "prefect.log", "run.log"]


def checkpoints(folder: Path, number: int, *, finished: bool, days: float) -> str:
    path = folder / f"{number:016x}-00000000"
    path.mkdir(parents=True)
    for name in ("lock", "step-00000010.pt", *(["speed.json"] if finished else [])):
        (path / name).write_text("x")
    return aged(path, days).name


def test_checkpoints_by_whether_the_training_has_ended(tmp_path: Path, times: Times) -> None:
    store = load_params().section(StoreConfig)
    ended = checkpoints(tmp_path, 1, finished=True, days=8)
    checkpoints(tmp_path, 2, finished=True, days=6)
    stopped = checkpoints(tmp_path, 3, finished=False, days=31)
    checkpoints(tmp_path, 4, finished=False, days=29)
    held = checkpoints(tmp_path, 5, finished=False, days=99)
    resumed = checkpoints(tmp_path, 6, finished=False, days=99)
    (tmp_path / resumed / "step-00000020.pt").write_text("x")  # one file is young
    (tmp_path / "mine").mkdir()
    aged(tmp_path / "mine", 99)
    (tmp_path / f"{7:016x}-00000000").symlink_to(tmp_path / "mine")
    with (tmp_path / held / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        aged(tmp_path / held, 99)
        beside_a_run = replace(times, live_since=times.now - 60)
        assert taken(here.checkpoints(tmp_path, CONFIG, store, beside_a_run)) == [ended]
        items = list(here.checkpoints(tmp_path, CONFIG, store, times))
        assert [item.names for item in items] == [(stopped,)]
        with (tmp_path / stopped / "lock").open("r+b") as begun:  # by somebody, since it was listed
            fcntl.flock(begun, fcntl.LOCK_EX)
            items[0].remove()
            assert (tmp_path / stopped).exists()
        assert taken(items) == [stopped] and not (tmp_path / stopped).exists()
    assert taken(here.checkpoints(tmp_path, CONFIG, store, times)) == [held]
    assert len(list(tmp_path.iterdir())) == 5


def test_copies_of_stored_tars_go_when_nobody_reads_them(tmp_path: Path, times: Times) -> None:
    store = load_params().section(StoreConfig).model_copy(update={"cache": tmp_path})
    for name, days in (("old", 31), ("young", 29)):
        (tmp_path / "objects" / name).mkdir(parents=True)
        (tmp_path / "objects" / name / f"{name}.tar").write_text("x")
        aged(tmp_path / "objects" / name, days)
    assert taken(here.copies(store, CONFIG, replace(times, live_since=times.now))) == []
    assert taken(here.copies(store, CONFIG, times)) == ["old.tar"]
    assert [path.name for path in tmp_path.rglob("*.tar")] == ["young.tar"]


@pytest.mark.parametrize(("days", "hours", "stays"), [(30, 72.0, 30), (1, 72.0, 3), (0, 0.5, 0)])
def test_promotions_that_are_old_unless_an_approval_may_wait_for_them(
    root: Path, times: Times, days: int, hours: float, stays: int
) -> None:
    params = load_params(overrides=[f"retention.days={days}", f"promote.approval_timeout_h={hours}"])
    config, promote = params.section(RetentionConfig), params.section(PromoteConfig)
    pages = root / ".align/promotions"
    measured = pages / "measured"
    old = ["20261001T120000Z-version-2", f"{1:016x}-{1:016x}"]
    young = ["20261127T120000Z-version-3", f"{2:016x}-{2:016x}"]
    for names, age in ((old, stays + 0.5), (young, stays - 0.5), ([f"{3:016x}-{3:016x}"], 99)):
        for name in names:
            folder = (pages if "version" in name else measured) / name
            folder.mkdir(parents=True)
            (folder / "ranks.parquet").write_text("x")
            aged(folder, max(age, -1))
    os.utime(measured / f"{3:016x}-{3:016x}" / "ranks.parquet", (times.now + 9, times.now + 9))  # used just now
    for mine in (pages / "notes", measured / "mine"):
        mine.mkdir()
        aged(mine, 99)
    (pages / "20260101T120000Z-version-1").symlink_to(pages / "notes")
    assert taken(here.promotions(root, config, promote, replace(times, live_since=times.now - 99 * DAY_S))) == []
    assert taken(here.promotions(root, config, promote, times)) == sorted(old)
    left = {path.name for path in (*pages.iterdir(), *measured.iterdir())}
    assert left == {*young, f"{3:016x}-{3:016x}", "measured", "notes", "mine", "20260101T120000Z-version-1"}


@pytest.fixture(name="removed")
def _removed() -> Iterator[list[str]]:
    yield []


@pytest.mark.parametrize("killed_at", [0, 1, 2, None])
def test_the_choice_is_written_down_from_the_first_removal_to_the_last(
    tmp_path: Path, removed: list[str], killed_at: int | None
) -> None:
    file = tmp_path / "gc.json"
    chosen = Objects(frozenset({"a", "b.dir"}), {"sha": 3})

    def removal(number: int) -> Callable[[], None]:
        def remove() -> None:
            assert read_journal(file) == chosen
            if number == killed_at:
                raise KeyboardInterrupt
            removed.append(str(number))

        return remove

    items = _journaled([Item("x", (str(number),), 0, removal(number)) for number in range(3)], file, chosen)
    assert not file.exists() and removed == []  # a list changes nothing
    try:
        for item in items:
            item.remove()
    except KeyboardInterrupt:
        assert read_journal(file) == chosen
    assert removed == [str(number) for number in range(3 if killed_at is None else killed_at)]
    assert file.exists() == (killed_at is not None)
    assert _journaled([], file, chosen) == []
    only = [Item("x", ("0",), 0, lambda: removed.append("only"))]
    _journaled(only, file, chosen)[0].remove()
    assert removed[-1] == "only" and not file.exists()
