"""Worker processes: the order of results, and what becomes of an item that kills its worker."""

import signal
import threading
from contextlib import nullcontext
from functools import partial

import pytest

from align.durable.locks import locked, take, tried
from align.durable.processes import in_processes
from align.errors import DataError
from align.interfaces.executor import Task
from tests.support import ROOT
from tests.support.deadly import deadly, deadly_once, twice


def mapped(function, items, num_workers, **task):
    return in_processes(Task(nullcontext, partial(without_resource, function), **task), items, num_workers)


def without_resource(function, _, item):
    return function(item)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_are_in_order(num_workers):
    assert list(mapped(twice, range(20), num_workers)) == list(range(0, 40, 2))


class Counted:
    """Counts how often it is sent to another process."""

    num_sent = 0

    def __call__(self, item):
        return twice(item)

    def __getstate__(self):
        Counted.num_sent += 1
        return {}


def test_each_worker_gets_the_function_once():
    assert list(mapped(Counted(), range(20), 2)) == list(range(0, 40, 2))
    assert 0 < Counted.num_sent <= 2


def test_a_culprit_is_left_out_and_the_others_go_on():
    left_out = []

    def instead(item):
        left_out.append(item)
        return -item

    results = list(mapped(partial(deadly, frozenset({4, 9})), range(12), 2, instead=instead))
    assert results == [0, 2, 4, 6, -4, 10, 12, 14, 16, -9, 20, 22]
    assert left_out == [4, 9]


def test_a_culprit_that_cannot_be_left_out_is_named():
    results = mapped(partial(deadly, frozenset({4})), range(12), 2, name_of=lambda item: f"data/{item}.parquet")
    with pytest.raises(DataError, match=r"^data/4\.parquet: .* killed twice .* larger machine, or take it out"):
        list(results)


def test_one_death_by_chance_changes_nothing(tmp_path, capfd):
    function = partial(deadly_once, tmp_path / "died")
    assert list(mapped(function, range(12), 2)) == list(range(0, 24, 2))
    assert (tmp_path / "died").exists()
    assert "a worker process was killed" in "".join(capfd.readouterr())


@pytest.mark.parametrize("num_items", [2, 12])
def test_where_everything_dies_the_machine_is_to_blame(num_items):
    all_items = frozenset(range(num_items))
    with pytest.raises(DataError, match=r"too little memory.* larger machine"):
        list(mapped(partial(deadly, all_items), range(num_items), 2, instead=twice))


def test_an_error_of_the_function_stays_what_it_is():
    results = mapped(partial(divided, 12), [1, 2, 0, 3], 2)
    assert [next(results), next(results)] == [12, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def divided(number, item):
    return number // item


def test_one_has_it_and_the_others_know(tmp_path):
    lock, said = tmp_path / "made/with/it/lock", list[str]()
    with locked(lock, "run 'a'", said.append):
        with tried(lock) as ours, tried(lock, shared=True) as ours_too:
            assert not ours and not ours_too
        assert lock.read_text() == "run 'a'"
    with tried(lock) as ours:
        assert ours and not said


def test_readers_share_it_until_one_of_them_wants_it_alone(tmp_path):
    lock = tmp_path / "lock"
    with lock.open("a+") as one, lock.open("a+") as other, tried(lock, shared=True) as third:
        assert take(one, shared=True) and take(other, shared=True) and third
        assert not take(one)
        with tried(lock) as ours:
            assert not ours


def test_who_waits_says_for_whom_and_a_signal_ends_it(tmp_path):
    lock, said = tmp_path / "lock", list[str]()

    def stop(*_signal):
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with locked(lock, "run 'a'", said.append):
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(InterruptedError), locked(lock, "run 'b'", said.append):
                raise AssertionError
            assert said == [f"waiting for run 'a', which holds {lock}"]
            assert lock.read_text() == "run 'a'"
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("patience_s", [20.0, None])
def test_patience_ends_when_the_lock_is_free(tmp_path, patience_s):
    lock, free = tmp_path / "lock", threading.Event()
    with lock.open("a+") as file:
        with locked(lock, "run 'a'", print):
            assert not take(file, patience_s=0.05)
            waiter = threading.Thread(target=lambda: take(file, patience_s=patience_s) and free.set())
            waiter.start()
            assert not free.wait(0.1)
        waiter.join(20)
        assert free.is_set()


def test_nothing_else_takes_one():
    modules = [path for folder in ("align", "flows", "infra") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in modules if "flock(" in path.read_text("utf-8")] == ["locks.py"]
