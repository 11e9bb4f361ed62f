"""Work folders that several processes share: ranges that start at the same moment, waiters, other parameters."""

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from itertools import count
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

import align.durable.files
import align.durable.work
from align.durable.files import MARK, replace_directory
from align.durable.work import ALL, Portion, asked, one_at_a_time, work_directory
from align.errors import AlignError, DataError, LockedError
from tests.support.small_process import killed_at, small_process

NUM_PROCESSES, NUM_ROUNDS = 8, 50
SPAWN = multiprocessing.get_context("spawn")


def ranges(root: Path, number: int, barrier: Barrier, errors: Any) -> None:
    """One of the processes: in every round it makes the shard of its number, at the same moment as all others.

    The disk is slow, as a shared one is: some milliseconds pass before a process discards what it found.
    """
    discard = align.durable.work._discard

    def slowly(folder: Path, path: Path) -> None:
        time.sleep(0.002 * (number % 4))
        discard(folder, path)

    align.durable.work._discard = slowly
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


def test_finish_does_not_discard_work_under_another_key(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with work_directory(out, "stage", "one", Portion(range(1)), elsewhere=True) as work:
        (work / "0").write_text("days of work that are not stored yet")
    with (
        pytest.raises(DataError, match=r"\.out\.part: work under other parameters, data or code, which --finish"),
        work_directory(out, "stage", "two", Portion(finish=True), elsewhere=True),
    ):
        pass
    assert (work / "0").exists()
    with work_directory(out, "stage", "one", Portion(finish=True), elsewhere=True):
        pass
    assert (out / "0").exists()
    with work_directory(out, "stage", "two", Portion(finish=True), elsewhere=True) as work:  # all ranges were elsewhere
        assert list(work.glob("[0-9]*")) == []


def test_work_that_is_discarded_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for key, portion in (("one", Portion(range(1))), ("two", Portion(range(1))), ("three", ALL)):
        with work_directory(out, "stage", key, portion):
            pass
        told = capsys.readouterr().err
        if key == "one":
            assert told == ""
        else:
            assert told.startswith(
                f"{tmp_path}/.out.part: discarding the work of an earlier run, which had other param"
            )
            assert told.count("\n") == 1
    with work_directory(out, "stage", "four"):  # the output of an earlier run is replaced, as ever
        pass
    assert capsys.readouterr().err == ""


def kill_at_each_step(folder: Path, before: str | None, can_exchange: bool, then: Portion) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not can_exchange:
            patch.setattr(align.durable.files, "_exchange", lambda one, other: False)
        _kill_at_each_step(folder, before, then)


def _kill_at_each_step(folder: Path, before: str | None, then: Portion) -> None:
    made_by = None if before == "a person" else "stage"

    def finish(out: Path) -> None:
        with work_directory(out, made_by, "key", Portion(finish=True)) as work:
            assert (work / "0").exists()

    for step in count():
        out = folder / f"{step}" / "out"
        out.parent.mkdir()
        if before == "stage":
            with replace_directory(out, "stage") as old:
                (old / "old").touch()
        elif before == "a person":
            out.mkdir()
            (out / "old").touch()
        with work_directory(out, made_by, "key", Portion(range(1))) as work:
            (work / "0").write_text("days of work")
        if (code := killed_at(step, partial(finish, out))) == 0:
            break
        assert code == -signal.SIGKILL
        if not (out / "0").exists() or (out / ".work.json").exists():  # otherwise it had come to its end
            with work_directory(out, made_by, "key", then) as work:
                assert (work / "0").exists(), f"step {step}"
            if then.shards is not None:
                finish(out)
        assert (out / "0").read_text() == "days of work"
        left = [path.name for path in out.parent.iterdir() if not path.name.endswith(".lock")]
        assert left == ["out"], f"step {step}: {left}"
        assert {path.name for path in out.iterdir()} == ({MARK, "0"} if made_by else {"0"})
    assert step >= 8, step


@pytest.fixture(scope="module")
def small() -> Iterator[Executor]:
    with small_process() as process:
        yield process


@pytest.mark.parametrize("before", [None, "stage", "a person"])
@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("then", [Portion(range(1)), Portion(finish=True), ALL], ids=["range", "finish", "all"])
def test_a_kill_at_the_end_loses_nothing(
    tmp_path: Path, small: Executor, before: str | None, can_exchange: bool, then: Portion
) -> None:
    small.submit(kill_at_each_step, tmp_path, before, can_exchange, then).result()


def test_another_run_takes_an_output_that_a_kill_left_with_a_key_for_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with work_directory(out, "stage", "one") as work:
        (work / "0").touch()
    (out / ".work.json").write_text('{"key": "one"}\n')
    with work_directory(out, "stage", "two", Portion(range(1))):
        assert sorted(path.name for path in out.iterdir()) == [MARK, "0"]
    with work_directory(out, "stage", "one", Portion(range(1))) as work:
        assert not (work / "0").exists()
    assert (out / "0").exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_range_beyond_the_last_shard_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked("shard", ALL, range(3)) == [0, 1, 2]
    assert asked("filter", Portion(range(1, 4)), [0, 1, 3, 7]) == [1, 3]
    assert capsys.readouterr().err == ""
    assert asked("shard", Portion(range(2, 10**12)), range(3)) == [2]
    assert capsys.readouterr().err == "shard: --shards 2-999999999999: the last shard is 2\n"
    with pytest.raises(DataError, match="filter: --shards 4-6: none of them exists; its shards are 0-1, 3, 7"):
        asked("filter", Portion(range(4, 7)), [0, 1, 3, 7])
    with pytest.raises(DataError, match="ingest: --shards 0-0: none of them exists; it has no shards"):
        asked("ingest", Portion(range(1)), [])
