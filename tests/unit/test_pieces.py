"""Pieces of work folders: who makes them, who waits, and what is stored for machines that share no disk."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import align.pieces
from align.durable.work import CLAIMS, one_at_a_time
from align.errors import DataError
from align.pieces import Outcome, Piece, Pieces, last_those_of_others


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
