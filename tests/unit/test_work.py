"""Work folders that several processes share: ranges that start at the same moment, waiters, other parameters."""

import multiprocessing
import threading
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

import align.work
from align.errors import AlignError, DataError, LockedError
from align.work import Portion, one_at_a_time, work_directory

NUM_PROCESSES, NUM_ROUNDS = 16, 50
SPAWN = multiprocessing.get_context("spawn")


def ranges(root: Path, number: int, barrier: Barrier, errors: Any) -> None:
    """One of the processes: in every round it makes the shard of its number, at the same moment as all others.

    The disk is slow, as a shared one is: some milliseconds pass before a process discards what it found.
    """
    discard = align.work._discard

    def slowly(folder: Path, path: Path) -> None:
        time.sleep(0.002 * (number % 4))
        discard(folder, path)

    align.work._discard = slowly
    for attempt in range(NUM_ROUNDS):
        barrier.wait(60)
        try:
            with work_directory(root / f"{attempt}", "stage", "key", Portion(range(number, number + 1))) as work:
                (work / f"{number}").write_text("done")
        except (AlignError, OSError) as error:
            errors.put(f"round {attempt}: {type(error).__name__}: {error}")


def test_ranges_may_start_at_the_same_moment(tmp_path: Path) -> None:
    for attempt in range(1, NUM_ROUNDS, 2):  # an earlier run under other parameters left its work folder
        with pytest.raises(RuntimeError), work_directory(tmp_path / f"{attempt}", "stage", "another key") as work:
            (work / "stale").mkdir()
            raise RuntimeError
    barrier, errors = SPAWN.Barrier(NUM_PROCESSES), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=ranges, args=(tmp_path, number, barrier, errors)) for number in range(NUM_PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * NUM_PROCESSES
    assert [errors.get() for _ in range(errors.qsize())] == []
    expected = sorted(str(number) for number in range(NUM_PROCESSES))
    for attempt in range(NUM_ROUNDS):
        with work_directory(tmp_path / f"{attempt}", "stage", "key", Portion(finish=True)) as work:
            assert sorted(path.name for path in work.iterdir() if not path.name.startswith(".")) == expected
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith((".part", ".old"))] == []


def hold(lock: Path, ready: Any) -> None:
    """A process that holds a lock until it is killed."""
    with one_at_a_time(lock, "nothing"):
        ready.set()
        time.sleep(60)


def test_work_under_other_parameters_is_safe_while_its_range_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with work_directory(out, "stage", "one", Portion(range(1))) as work:
        (work / "0").write_text("hours of work")
        for other in (Portion(range(1, 2)), Portion(), Portion(finish=True)):
            with pytest.raises(LockedError), work_directory(out, "stage", "two", other):
                pass
        with pytest.raises(LockedError), work_directory(out, "stage", "one", Portion(finish=True)):
            pass
        with work_directory(out, "stage", "one", Portion(range(1, 2))) as same:
            assert same == work
    assert (work / "0").read_text() == "hours of work"
    with work_directory(out, "stage", "two", Portion(range(1))) as work:
        assert not (work / "0").exists()
    with (
        pytest.raises(DataError, match="no work under these"),
        work_directory(out, "stage", "one", Portion(finish=True)),
    ):
        pass


def test_a_waiter_says_so_and_follows_one_that_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=hold, args=(tmp_path / "lock", ready), daemon=True)
    holder.start()
    assert ready.wait(60)
    killer = threading.Timer(0.3, holder.kill)
    killer.start()
    with one_at_a_time(tmp_path / "lock", "the plan"):
        assert capsys.readouterr().err == "waiting for the plan\n"
        assert not killer.is_alive()
    holder.join()
    with one_at_a_time(tmp_path / "lock", "the plan"):
        assert capsys.readouterr().err == ""
