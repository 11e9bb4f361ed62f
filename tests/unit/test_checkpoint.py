"""Checkpoints: kept, passed over when broken, locked, keyed."""

from pathlib import Path

import pytest
import torch

from align.errors import CorruptError, LockedError
from align.training.checkpoint import CheckpointFolder, run_key

CPU = torch.device("cpu")


def test_keeps_the_last_ones_and_loads_the_newest(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run", keep=2)
    assert folder.steps() == [] and folder.load_latest(CPU) is None
    for step in (9, 10, 11):
        folder.save(step, {"value": torch.tensor(step)})
    assert folder.steps() == [10, 11]
    latest = folder.load_latest(CPU)
    assert latest is not None and latest["step"] == 11 and int(latest["value"]) == 11


def test_a_broken_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (1, 2):
        folder.save(step, {})
    (tmp_path / "step-00000002.pt").write_bytes(b"torn")
    latest = folder.load_latest(CPU)
    assert latest is not None and latest["step"] == 1
    assert "is damaged" in capsys.readouterr().err
    (tmp_path / "step-00000001.pt").write_bytes(b"")
    with pytest.raises(CorruptError, match="no checkpoint reads"):
        folder.load_latest(CPU)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first, second = CheckpointFolder(tmp_path, keep=1), CheckpointFolder(tmp_path, keep=1)
    with first.lock(), pytest.raises(LockedError, match="another process trains this run"), second.lock():
        pass
    with second.lock():
        pass


def test_the_key_follows_values_and_code(tmp_path: Path) -> None:
    code = tmp_path / "loop.py"
    code.write_text("a = 1")
    key = run_key({"x": 1, "y": 2}, [code])
    assert run_key({"y": 2, "x": 1}, [code]) == key
    assert run_key({"x": 2, "y": 2}, [code]) != key
    code.write_text("a = 2")
    assert run_key({"x": 1, "y": 2}, [code]) != key
