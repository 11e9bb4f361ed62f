"""Leases over a store in memory whose clock stands still unless a test moves it."""

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import align.pieces
from align.durable.work import CLAIMS, one_at_a_time
from align.errors import AlignError, DataError, ServiceError
from align.interfaces.store import StoredObject
from align.lease import Lease, leased
from align.pieces import Outcome, Piece, Pieces, last_those_of_others
from align.services.store_work import require_conditions

TIMEOUT_S = 60.0


class Memory:
    """`ConditionalObjects`, and ways in which a server may fail."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.obeys_conditions = self.answers = self.is_up = self.is_readable = True
        self.error: AlignError = ServiceError("no answer")
        self._objects: dict[str, tuple[bytes, str, float]] = {}
        self._etags = itertools.count()
        self._lock = threading.Lock()

    def read(self, name: str) -> StoredObject | None:
        if not self.is_up or not self.is_readable:
            raise self.error
        found = self._objects.get(name)
        return None if found is None else StoredObject(found[0], found[1], self.now_s - found[2])

    def write(self, name: str, data: bytes, etag: str | None) -> str | None:
        if not self.is_up:
            raise self.error
        with self._lock:
            found = self._objects.get(name)
            if self.obeys_conditions and (None if found is None else found[1]) != etag:
                return None
            self._objects[name] = data, f"{next(self._etags)}", self.now_s
            if not self.answers:
                self.answers = True
                return None  # the client repeated the request, as its answer was lost
            return self._objects[name][1]

    def delete(self, name: str) -> None:
        self._objects.pop(name, None)


def test_a_lease_has_one_holder_until_it_is_released() -> None:
    objects = Memory()
    first, second = Lease(objects, "plan", TIMEOUT_S), Lease(objects, "plan", TIMEOUT_S)
    assert first.acquire() and not second.acquire()
    assert Lease(objects, "other", TIMEOUT_S).acquire()
    first.release()
    assert second.acquire() and not first.acquire()


def test_a_lease_that_is_renewed_is_kept_and_one_that_is_not_is_taken_over() -> None:
    objects = Memory()
    first, second = Lease(objects, "plan", TIMEOUT_S), Lease(objects, "plan", TIMEOUT_S)
    assert first.acquire()
    for _ in range(5):
        objects.now_s += TIMEOUT_S / 3
        assert first.renew() and not second.acquire()
    objects.now_s += TIMEOUT_S + 1
    assert not second.acquire()  # servers tell whole seconds
    objects.now_s += 0.1
    assert second.acquire()
    assert not first.renew() and not first.renew()
    first.release()  # of a lease that is not its own any more
    assert second.renew() and not first.acquire()


def test_a_servers_clock_that_jumps_blocks_nobody_for_good() -> None:
    objects = Memory()
    objects.now_s = 86_400.0
    lost, lives, other = (Lease(objects, "plan", TIMEOUT_S) for _ in range(3))
    assert lost.acquire()
    objects.now_s = 86_400.0 - 3.0  # corrected by a little: it is held
    assert not other.acquire()
    objects.now_s = 0.0  # set back by a day: a holder that lives renews it, else it is taken over
    assert lost.renew() and not other.acquire()
    objects.now_s = -86_400.0
    assert lives.acquire() and not lost.renew() and not other.acquire()
    objects.now_s = 86_400.0  # set forward: who comes first takes it over, and the holder learns that
    assert other.acquire() and not lives.renew()


def test_of_those_who_take_over_one_succeeds() -> None:
    objects = Memory()
    assert Lease(objects, "plan", TIMEOUT_S).acquire()
    objects.now_s += 2 * TIMEOUT_S
    stale = objects.read("plan")
    assert stale is not None
    leases = [Lease(objects, "plan", TIMEOUT_S) for _ in range(8)]
    assert [lease._write(stale) for lease in leases] == [True] + [False] * 7  # all saw that it had ended


def test_an_answer_that_was_lost_does_not_lose_the_lease() -> None:
    objects = Memory()
    objects.answers = False
    lease = Lease(objects, "plan", TIMEOUT_S)
    assert lease.acquire()
    objects.answers = False
    assert lease.renew() and lease.renew()


def test_a_lost_answer_and_a_server_that_fails_then_do_not_lose_the_lease() -> None:
    objects = Memory()
    lease = Lease(objects, "plan", TIMEOUT_S)
    assert lease.acquire()
    objects.answers = objects.is_readable = False
    with pytest.raises(ServiceError):
        lease.renew()
    objects.is_readable = True
    assert lease.renew()
    lease.release()
    assert Lease(objects, "plan", TIMEOUT_S).acquire()


def test_refused_credentials_cost_the_lease_and_not_the_work(recwarn: pytest.WarningsRecorder) -> None:
    objects = Memory()
    with leased(objects, "plan", 0.03) as mine:
        objects.error, objects.is_up = DataError("the server refuses access (ExpiredToken)"), False
        threading.Event().wait(0.1)
        objects.is_up = True
        later = objects._objects["plan"][1]
        wait_until(lambda: objects._objects["plan"][1] != later)  # it is still renewed
        objects.is_up = False
    assert mine and not recwarn.list


def test_a_holder_that_is_refused_while_it_holds_keeps_its_lease() -> None:
    objects = Memory()
    lease = Lease(objects, "plan", TIMEOUT_S)
    assert lease.acquire()
    lease._etag = "of an earlier renewal"  # of two writes at the same moment, servers may refuse both
    assert lease.renew() and lease.renew()


def test_a_thread_renews_while_the_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    objects = Memory()
    with leased(objects, "plan", 0.03) as mine:
        assert mine
        first = objects.read("plan")
        assert first is not None
        wait_until(lambda: objects._objects["plan"][1] != first.etag)
        objects.is_up = False
        threading.Event().wait(0.1)
        objects.is_up = True  # an outage does not end it
        later = objects._objects["plan"][1]
        wait_until(lambda: objects._objects["plan"][1] != later)
        with leased(objects, "plan", 0.03) as other:
            assert not other
        objects._objects["plan"] = json.dumps({"holder": "another"}).encode(), "taken over", objects.now_s
        wait_until(lambda: "another machine has taken this work over" in capsys.readouterr().err)
    assert objects._objects["plan"][1] == "taken over"
    with leased(objects, "work", 0.03) as mine, pytest.raises(ServiceError):
        objects.is_up = False
        raise ServiceError("no answer")  # and no second error when the lease cannot be freed


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen")


def test_a_server_that_ignores_conditions_is_refused() -> None:
    objects = Memory()
    require_conditions(objects, "probe", "s3://bucket/work")
    objects.obeys_conditions = False
    with pytest.raises(ServiceError, match="s3://bucket/work: this server ignores the conditions of writes"):
        require_conditions(objects, "probe", "s3://bucket/work")
    assert objects.read("probe") is None


@pytest.mark.parametrize("lost", [1, 3])
def test_a_lost_answer_does_not_make_a_server_one_that_ignores_conditions(lost: int) -> None:
    objects = Memory()
    write, written = objects.write, itertools.count(1)

    def losing(name: str, data: bytes, etag: str | None) -> str | None:
        objects.answers = next(written) != lost
        return write(name, data, etag)

    objects.write = losing  # type: ignore[method-assign]
    require_conditions(objects, "probe", "s3://bucket/work")
    objects.answers = True
    assert objects.read("probe") is None


@pytest.mark.parametrize(("skew_s", "refused"), [(4.0, False), (-4.0, False), (7.0, True), (-3600.0, True)])
def test_a_server_whose_times_disagree_is_refused(skew_s: float, refused: bool) -> None:
    objects = Memory()
    read = objects.read

    def skewed(name: str) -> StoredObject | None:
        found = read(name)
        return found and dataclasses.replace(found, age_s=found.age_s + skew_s)

    objects.read = skewed  # type: ignore[method-assign]
    if not refused:
        require_conditions(objects, "probe", "s3://bucket/work")
        return
    with pytest.raises(ServiceError, match=rf"^s3://bucket/work: .* {skew_s:,.0f} s old .* set the clocks") as error:
        require_conditions(objects, "probe", "s3://bucket/work")
    assert "\n" not in str(error.value) and read("probe") is None


class Server:
    """`SharedPieces` in memory; `busy` are claimed by another machine."""

    location = "s3://bucket/work/stage/key"

    def __init__(self) -> None:
        self.stored: dict[str, dict[str, str]] = {}
        self.busy: set[str] = set()

    def finished(self) -> frozenset[str]:
        return frozenset(self.stored)

    def has(self, piece: str) -> bool:
        return piece in self.stored

    @contextmanager
    def claim(self, piece: str) -> Iterator[bool]:
        yield piece not in self.busy

    def publish(self, piece: str, folder: Path, files: Sequence[str]) -> None:
        self.stored.setdefault(piece, {name: (folder / name).read_text() for name in files})

    def fetch(self, piece: str, folder: Path, last: str) -> bool:
        for name, text in self.stored.get(piece, {}).items():
            (folder / name).write_text(text)
        return piece in self.stored


PIECE = Piece("0", "last", lambda: ["first"], "shard 0")


def maker(folder: Path, text: str = "mine") -> str:
    (folder / "first").write_text(text)
    (folder / "last").write_text(text)
    return text


def test_a_piece_is_made_once_here(tmp_path: Path) -> None:
    pieces = Pieces(tmp_path)
    assert pieces.make(PIECE, lambda: maker(tmp_path)) == Outcome(True, "mine")
    assert pieces.make(PIECE, lambda: maker(tmp_path)) == Outcome(True)
    (tmp_path / "last").unlink()
    with one_at_a_time(tmp_path / CLAIMS / "0.lock", "nothing"):  # another process is making it
        assert pieces.make(PIECE, lambda: maker(tmp_path), wait=False) == Outcome(False)
    assert not (tmp_path / "last").exists()


def test_a_piece_is_made_once_by_all_machines(tmp_path: Path) -> None:
    server, one, other, third = Server(), tmp_path / "one", tmp_path / "other", tmp_path / "third"
    for folder in (one, other, third):
        folder.mkdir()
    with pytest.raises(DataError, match="s3://bucket/work/stage/key: no shard 0 under these parameters, data and code"):
        Pieces(other, server).make(PIECE, lambda: maker(other), may_make=False)
    assert Pieces(one, server).make(PIECE, lambda: maker(one)) == Outcome(True, "mine")
    assert server.stored == {"0": {"first": "mine", "last": "mine"}}
    assert Pieces(other, server).make(PIECE, lambda: maker(other, "another"), bring=False) == Outcome(True)
    assert not (other / "last").exists()
    assert Pieces(third, server).make(PIECE, lambda: maker(third, "another"), may_make=False) == Outcome(True)
    assert (third / "last").read_text() == "mine"
    server.stored.clear()  # what is here and was not stored before a kill is stored later
    assert Pieces(one, server).make(PIECE, lambda: maker(one, "again")) == Outcome(True)
    assert server.stored == {"0": {"first": "mine", "last": "mine"}}


def test_a_piece_that_another_machine_makes_is_awaited_or_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    server.busy.add("0")
    pieces = Pieces(tmp_path, server)
    assert pieces.make(PIECE, lambda: maker(tmp_path), wait=False) == Outcome(False)
    pauses: list[float] = []

    def lost_after_three(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            server.busy.clear()

    monkeypatch.setattr(align.pieces.time, "sleep", lost_after_three)
    assert pieces.make(PIECE, lambda: maker(tmp_path)) == Outcome(True, "mine")
    assert len(pauses) == 3
    assert (
        capsys.readouterr().err == "waiting for shard 0: another run makes it, or is lost and will be replaced soon\n"
    )


def test_those_of_others_come_last() -> None:
    calls: list[tuple[list[int], bool]] = []

    def do(some: list[int], wait: bool) -> Iterator[Outcome[int]]:
        calls.append((some, wait))
        for item in some:
            yield Outcome(wait or item % 2 == 0, item if item != 2 else None)

    assert list(last_those_of_others([0, 1, 2, 3], do)) == [0, 1, 3]
    assert calls == [([0, 1, 2, 3], False), ([1, 3], True)]
    calls.clear()
    assert list(last_those_of_others([], do)) == []
    assert len(calls) == 1
