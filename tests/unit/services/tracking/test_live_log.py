"""The journal of live metrics: which rows it keeps, and how it recovers from a killed process."""

import threading
from pathlib import Path

import pytest

from align.errors import RefusedError
from align.services.tracking import live_log
from align.services.tracking.live_log import Journal, LiveLog


def steps(journal: Journal) -> list[float]:
    rows, end = journal.read(0)
    assert journal.read(end) == ([], end)
    return [row["step"] for row in rows]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run" / "live.jsonl")
    assert journal.read(0) == ([], 0)
    journal.append(1, {"train/loss": 0.1 + 0.2})
    rows, end = journal.read(0)
    assert rows[0].pop("time") > 1.7e12
    assert rows == [{"step": 1, "train/loss": 0.1 + 0.2}]
    journal.append(2, {"train/loss": float("inf")})
    (row,), _ = journal.read(end)
    assert (row["step"], row["train/loss"]) == (2, float("inf"))


def test_repeated_steps_are_left_out(tmp_path: Path) -> None:
    """Ranks that died after step 7 resume from their checkpoint at step 4."""
    first = Journal(tmp_path / "live.jsonl")
    for step in range(1, 8):
        first.append(step, {"train/loss": float(step)})
    again = Journal(tmp_path / "live.jsonl")
    assert again.last_step == 7
    for step in range(5, 10):
        again.append(step, {"train/loss": 100.0 + step})
    rows, _ = again.read(0)
    assert [(row["step"], row["train/loss"]) for row in rows] == [
        *((step, step) for step in range(1, 8)), (8, 108.0), (9, 109.0),
    ]  # fmt: skip


@pytest.mark.parametrize("torn", [b'{"step": 3, "ti', b"\0\0\0\n", b"[3]\n", b'{"step": 3, "train/loss": "\xff'])
def test_an_incomplete_or_invalid_last_line_is_ignored(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "live.jsonl"
    before = Journal(path)
    for step in (1, 2):
        before.append(step, {"train/loss": 1.0})
    with path.open("ab") as file:
        file.write(torn)
    assert steps(before) == [1, 2]
    after = Journal(path)
    assert after.last_step == 2
    after.append(3, {"train/loss": 1.0})
    assert steps(after) == [1, 2, 3]


def test_only_half_a_line_is_an_empty_journal(tmp_path: Path) -> None:
    path = tmp_path / "live.jsonl"
    path.write_bytes(b'{"step": 1')
    journal = Journal(path)
    assert journal.last_step == -1
    journal.append(1, {"train/loss": 1.0})
    assert steps(journal) == [1]


def test_a_long_journal_is_read_in_parts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "live.jsonl")
    for step in range(3_000):
        journal.append(step, {f"train/metric{number}": 0.1 for number in range(10)})
    read: list[float] = []
    begin, sizes = 0, []
    while (part := journal.read(begin))[1] > begin:
        read += [row["step"] for row in part[0]]
        sizes.append(part[1] - begin)
        begin = part[1]
    assert read == list(range(3_000))
    assert len(sizes) > 3 and max(sizes) <= 1 << 17  # at most this much is in memory
    assert Journal(tmp_path / "live.jsonl").last_step == 2_999


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", None])
def test_rows_go_to_the_mlflow_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str | None) -> None:
    """A thread that is slow to begin found no address once, and made a database in the folder of whoever came next."""
    asked: list[str] = []
    moved, over = threading.Event(), threading.Event()

    def tracker(address: str) -> None:
        moved.wait(100)
        asked.append(address)
        over.set()
        raise RefusedError

    monkeypatch.setattr(live_log, "Tracker", tracker)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with LiveLog("0" * 32, "pretrain", tmp_path / "live.jsonl") as logger:
        logger({"train/loss": 1.0}, 1)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path / "other")
        moved.set()
        assert over.wait(100)
    assert asked == [uri or f"sqlite:///{tmp_path}/mlflow.db"]
