"""Checkpoints: which are kept, damaged ones, locks, keys."""

import io
import resource
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from align.durable.checkpoint import CheckpointFolder
from align.errors import ConfigError, CorruptError, LockedError, TrainingError

CPU = torch.device("cpu")


def test_keeps_the_last_ones_and_loads_the_newest(tmp_path):
    folder = CheckpointFolder(tmp_path / "run", keep=2)
    assert folder.steps() == [] and folder.load_latest(CPU) is None
    for step in (9, 10, 11):
        folder.save(step, {"value": torch.tensor(step)})
    folder.wait()
    assert folder.steps() == [10, 11]
    latest = folder.load_latest(CPU)
    assert latest is not None and latest["step"] == 11 and int(latest["value"]) == 11


def archive(members, compression=zipfile.ZIP_STORED):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return data.getvalue()


def saved(value):
    torch.save(value, data := io.BytesIO())
    return data.getvalue()


FOREIGN = {
    "torn": b"torn",
    "a zip": archive({"readme.txt": b"hello"}),
    "pickled code": archive({"archive/data.pkl": b"cos\nsystem\n(S'true'\ntR.", "archive/version": b"3\n"}),
    "no pickle": archive({"archive/data.pkl": b"\x00" * 64, "archive/version": b"3\n"}),
    "a class": saved(Path("x")),
    "another value": saved([1, 2]),
    "compressed": archive({"archive/data.pkl": bytes(1 << 24)}, zipfile.ZIP_DEFLATED),
    "a name that is no text": archive({"archive/data.pkl": b"."}).replace(b"archive/", b"\xff\xfe\xfd\xfcxyz/"),
    "empty": archive({}),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_archive_is_one_line_and_the_next_checkpoint_is_tried(tmp_path, foreign, capsys):
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(1, {})
    folder.wait()
    (tmp_path / "step-00000002.pt").write_bytes(foreign)
    latest = folder.load_latest(CPU)
    assert latest is not None and latest["step"] == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"{tmp_path}/step-00000002.pt: ") and said.endswith("trying the previous one")
    (tmp_path / "step-00000001.pt").write_bytes(b"")
    with pytest.raises(CorruptError, match="no checkpoint can be read"):
        folder.load_latest(CPU)


def test_one_process_at_a_time(tmp_path):
    first, second = CheckpointFolder(tmp_path, keep=1), CheckpointFolder(tmp_path, keep=1)
    with first.lock(), pytest.raises(LockedError, match="another process trains this run"), second.lock():
        pass
    with second.lock():
        pass


def test_values_may_change_once_save_has_returned(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=3)
    rows = [{"loss": 1.0}]
    weights = {"layer": torch.zeros(500_000), "rows": rows}
    for step in (1, 2, 3):
        folder.save(step, weights)
        weights["layer"] += 1
        rows.append({"loss": 2.0})
    folder.wait()
    for step in (1, 2, 3):
        saved = torch.load(tmp_path / f"step-{step:08d}.pt", weights_only=True)
        assert torch.equal(saved["layer"], torch.full((500_000,), step - 1.0)) and len(saved["rows"]) == step


def test_the_best_one_is_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    for step, best in ((1, True), (2, True), (3, False), (4, False)):
        folder.save(step, {}, best=best)
    folder.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "step-00000004.pt"]
    assert torch.load(tmp_path / "best.pt", weights_only=True)["step"] == 2


class _Shelf:
    """A mirror that is a folder."""

    def __init__(self, root):
        self._root = root

    def put(self, path, name):
        (self._root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, self._root / name)

    def get(self, name, path):
        shutil.copyfile(self._root / name, path)

    def names(self, run):
        return sorted(path.name for path in (self._root / run).glob("*"))

    def delete(self, name):
        (self._root / name).unlink()


def test_the_mirror_also_has_the_best_one(tmp_path):
    shelf = _Shelf(tmp_path / "shelf")
    here = CheckpointFolder(tmp_path / "here/run", keep=1, mirror=shelf)
    for step, best in ((1, True), (2, False), (3, False)):
        here.save(step, {}, best=best)
    here.wait()
    assert shelf.names("run") == ["best.pt", "step-00000003.pt"]
    there = CheckpointFolder(tmp_path / "there/run", keep=1, mirror=shelf)
    there.fetch()
    assert [path.name for path in sorted(there.directory.glob("*.pt"))] == ["best.pt", "step-00000003.pt"]
    assert torch.load(there.directory / "best.pt", weights_only=True)["step"] == 1
    (there.directory / "best.pt").write_bytes(b"its own, of a later step")
    (there.directory / "step-00000004.pt").touch()
    there.fetch()  # nothing is newer
    assert (there.directory / "best.pt").read_bytes() == b"its own, of a later step" and there.steps() == [3, 4]


def test_a_full_disk_is_reported_and_older_checkpoints_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(1, {})
    folder.wait()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))  # acts like a full disk
    try:
        folder.save(2, {"layer": torch.zeros(500_000)})
        assert folder.has_failed(wait=True) and folder.has_failed()
        folder.save(3, {})  # nothing is written before somebody has learnt of it
        with pytest.raises(TrainingError, match="cannot be written: File too large; older ones are kept"):
            folder.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    folder.save(3, {})
    assert not folder.has_failed(wait=True)
    folder.wait()
    assert folder.steps() == [1, 3]


def test_what_a_killed_process_had_half_written_is_removed(tmp_path):
    """Its step may never come again: that of a SIGTERM, whose process was killed while it saved."""
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(1, {})
    folder.wait()
    (tmp_path / ".step-00000037.pt.part").write_bytes(b"half of a checkpoint")
    with folder.lock():
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "step-00000001.pt"]


def test_resuming_a_run_of_other_code(tmp_path):
    old, older, new, other = (
        CheckpointFolder(tmp_path / name, keep=2)
        for name in ("pretrain-aa-11", "pretrain-aa-22", "pretrain-aa-33", "pretrain-bb-11")
    )
    with pytest.raises(ConfigError, match="no run of these parameters and data under other code"):
        new.adopt("renamed a variable")
    for folder, step in ((old, 7), (older, 3), (other, 9)):
        folder.save(step, {})
        folder.wait()
    with pytest.raises(ConfigError, match="say why"):
        new.adopt(" ")
    new.adopt("renamed a variable")
    assert new.steps() == [7] and new.accepted() == ["renamed a variable"] and old.steps() == [7]
    last = CheckpointFolder(tmp_path / "pretrain-aa-44", keep=2)
    new.save(8, {})
    new.wait()
    last.adopt("and another one")
    assert last.steps() == [8] and last.accepted() == ["renamed a variable", "and another one"]
    last.adopt("a second time")  # it has its own checkpoints now
    assert last.accepted() == ["renamed a variable", "and another one"]


def test_a_run_of_other_code_is_named_until_this_one_has_a_step(tmp_path):
    ours, theirs = (CheckpointFolder(tmp_path / name, keep=2) for name in ("pretrain-aa-1", "pretrain-aa-2"))
    other = CheckpointFolder(tmp_path / "pretrain-bb-2", keep=2)
    other.save(9, {})
    other.wait()
    assert ours.other_code_step() is None
    theirs.save(7, {})
    theirs.wait()
    assert ours.other_code_step() == 7
    ours.save(1, {})
    ours.wait()
    assert ours.other_code_step() is None
