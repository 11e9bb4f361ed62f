"""Locks of the kernel: who has one, who waits, and what both see."""

import threading
from pathlib import Path

import pytest

from align.durable.locks import locked, take, tried
from tests.support import ROOT


def test_one_has_it_and_the_others_know(tmp_path: Path) -> None:
    lock, said = tmp_path / "made/with/it/lock", list[str]()
    with locked(lock, "run 'a'", said.append):
        with tried(lock) as ours, tried(lock, shared=True) as ours_too:
            assert not ours and not ours_too
        assert lock.read_text() == "run 'a'"
    with tried(lock) as ours:
        assert ours and not said


def test_readers_share_it_until_one_of_them_wants_it_alone(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with lock.open("a+") as one, lock.open("a+") as other, tried(lock, shared=True) as third:
        assert take(one, shared=True) and take(other, shared=True) and third
        assert not take(one)
        with tried(lock) as ours:
            assert not ours


def test_who_waits_says_for_whom_and_may_be_told_to_stop(tmp_path: Path) -> None:
    lock, said = tmp_path / "lock", list[str]()

    def stop() -> None:
        raise InterruptedError

    with locked(lock, "run 'a'", said.append):
        with pytest.raises(InterruptedError), locked(lock, "run 'b'", said.append, stop):
            raise AssertionError
        assert said == [f"waiting for run 'a', which holds {lock}"]
        assert lock.read_text() == "run 'a'"


@pytest.mark.parametrize("patience_s", [20.0, None])
def test_patience_ends_when_the_lock_is_free(tmp_path: Path, patience_s: float | None) -> None:
    lock, free = tmp_path / "lock", threading.Event()
    with lock.open("a+") as file:
        with locked(lock, "run 'a'", print):
            assert not take(file, patience_s=0.05)
            waiter = threading.Thread(target=lambda: take(file, patience_s=patience_s) and free.set())
            waiter.start()
            assert not free.wait(0.1)
        waiter.join(20)
        assert free.is_set()


def test_nothing_else_takes_one() -> None:
    modules = [path for folder in ("align", "flows", "infra") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in modules if "flock(" in path.read_text("utf-8")] == ["locks.py"]
