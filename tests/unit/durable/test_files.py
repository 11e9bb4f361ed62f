import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from align.durable import files
from align.durable.work import work_directory
from align.errors import DataError
from tests.support import ROOT
from tests.support.small_process import in_child, killed_at, small_process


def make(path, name):
    with files.replace_directory(path, "stage") as part:
        (part / name).write_text(name)


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def test_json_refuses_nan():
    with pytest.raises(ValueError, match="JSON compliant"):
        files.to_json({"loss": float("nan")})


def test_a_directory_is_replaced_whole(tmp_path):
    target = tmp_path / "out"
    make(target, "stale")
    with files.replace_directory(target, "stage") as part:
        (part / "fresh").write_text("new")
        assert (target / "stale").exists()
    assert names(target) == [files.MARK, "fresh"]
    assert (target / files.MARK).read_text() == '{\n  "made_by": "stage",\n  "schema_version": 1\n}\n'
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_nobodys(tmp_path):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out", "fresh")
    assert names(tmp_path / "out") == [files.MARK, "fresh"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    target = tmp_path / "out"
    make(target, "kept")

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with files.replace_directory(target, "stage") as part:
            files.write_bytes(part / "large", bytes(1_000_000))

    assert in_child(fill) == 1
    assert names(target) == [files.MARK, "kept"] and names(tmp_path) == ["out"]


@contextmanager
def person(tmp_path):
    """A folder of somebody's, which is as it was when the block ends."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "wedding.jpg").write_bytes(b"the only copy")
    yield folder
    assert names(folder) == ["wedding.jpg"] and (folder / "wedding.jpg").read_bytes() == b"the only copy"


def ways(path):
    yield files.replace_directory(path, "stage").__enter__
    yield work_directory(path, "stage", "key").__enter__


def test_a_folder_without_our_mark_is_refused(tmp_path):
    with person(tmp_path) as folder:
        for way in ways(folder):
            with pytest.raises(DataError, match=r"photos: has content, and no \.align\.json .* move or remove it"):
                way()
        assert names(tmp_path) == ["photos"]
        (tmp_path / "link").symlink_to(folder)
        for way in ways(tmp_path / "link"):
            with pytest.raises(DataError, match=r"a symbolic link to .*photos is not replaced"):
                way()
        for way in ways(folder / "wedding.jpg"):
            with pytest.raises(DataError, match="is a file"):
                way()
        (tmp_path / ".out.part").symlink_to(folder)  # the name of a work folder
        with pytest.raises(DataError, match="is not a work folder"):
            work_directory(tmp_path / "out", "stage", "key").__enter__()


def test_a_folder_of_another_stage_is_refused(tmp_path):
    with files.replace_directory(tmp_path / "raw", "ingest"):
        pass
    for way in ways(tmp_path / "raw"):
        with pytest.raises(DataError, match=r"raw: `align ingest` made it, so stage does not replace it"):
            way()
    for way in ways(tmp_path / "raw" / "shards"):
        with pytest.raises(DataError, match=r"lies in .*raw, which `align ingest` replaces whole"):
            way()
    (tmp_path / "raw" / files.MARK).write_text("{}")
    for way in ways(tmp_path / "raw"):
        with pytest.raises(DataError, match="has content"):
            way()


def test_places_that_are_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "inner")
    for path in (".", "..", "/", str(tmp_path)):
        for way in ways(Path(path)):
            with pytest.raises(DataError, match="the working directory, or a folder around it"):
                way()
    for way in ways(Path("/proc")):
        with pytest.raises(DataError, match="a mount point"):
            way()
    for way in ways(Path("/proc/align/out")):
        with pytest.raises(DataError):
            way()


def test_a_parent_without_write_permission():
    """Not in `tmp_path`: others may not enter that, since each start of pytest closes the folder of all its runs."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        theirs = Path(folder) / "theirs"
        theirs.mkdir(mode=0o755)

        def as_nobody():
            os.setresuid(65534, 65534, 65534) if os.geteuid() == 0 else theirs.chmod(0o555)
            with pytest.raises(DataError, match="theirs cannot be written to"):
                files.replace_directory(theirs / "out", "stage").__enter__()

        assert in_child(as_nobody) == 0


def test_out_and_inputs_apart(tmp_path):
    for out, given in (("a", "a"), ("a/b", "a"), ("a", "a/b")):
        with pytest.raises(DataError, match="the input"):
            files.require_apart(tmp_path / out, tmp_path / given)
    files.require_apart(tmp_path / "a", tmp_path / "ab")


def test_the_mark_is_no_content(tmp_path):
    (tmp_path / "file").write_text("x")
    before = files.sha256_folder(tmp_path)
    files.mark(tmp_path, "stage")
    assert files.sha256_folder(tmp_path) == before and files.marked(tmp_path) == "stage"


def remake(path, how):
    context = files.replace_directory(path, "stage") if how == "replace" else work_directory(path, "stage", "key")
    with context as part:
        for name in "xyz":
            files.write_bytes(part / name, b"new")


def kill_at_each_step(root, how, can_exchange):
    with pytest.MonkeyPatch.context() as patch:
        if not can_exchange:
            patch.setattr(files, "_exchange", lambda one, other: False)
        _kill_at_each_step(root, how, can_exchange)


def _kill_at_each_step(root, how, can_exchange):
    num_kills = num_new = 0
    for step in count():
        folder = root / str(step)
        target = folder / "out"
        with files.replace_directory(target, "stage") as part:
            for name in "abc":
                (part / name).write_text("old")
        code = killed_at(step / 2, partial(remake, target, how))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        num_kills += 1
        if not can_exchange:
            files.clear_leftovers(target)  # as the next run does
        found = {
            path.name: path.read_text() for path in target.iterdir() if path.name not in (files.MARK, ".work.json")
        }
        assert found in (dict.fromkeys("abc", "old"), dict.fromkeys("xyz", "new")), f"step {step}: {found}"
        assert files.marked(target) == "stage"
        num_new += "x" in found
        remake(target, how)
        assert [name for name in names(folder) if not name.endswith(".lock")] == ["out"], f"step {step}"
        assert names(target) == [files.MARK, "x", "y", "z"]
    assert num_kills >= 20 and 0 < num_new < num_kills, (num_kills, num_new)


@pytest.fixture(scope="module")
def small():
    with small_process() as process:
        yield process


@pytest.mark.parametrize("how", ["replace", "work"])
@pytest.mark.parametrize("can_exchange", [True, False])
def test_killed_at_any_step_the_old_or_the_new_is_complete(tmp_path, small, how, can_exchange):
    small.submit(kill_at_each_step, tmp_path, how, can_exchange).result()


def test_what_others_leave_is_removed_when_they_are_dead(tmp_path, monkeypatch):
    target = tmp_path / "out"
    mine = files.temporary_name(target)
    mine.mkdir()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        theirs = tmp_path / mine.name.replace(f".{os.getpid()}.", f".{living.pid}.")
        theirs.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(files, "_HOST", "another-machine")
            elsewhere = files.temporary_name(target)
        elsewhere.mkdir()
        (tmp_path / ".out.part").mkdir()  # a person's
        files.clear_leftovers(target)
        assert mine.is_dir() and theirs.is_dir() and elsewhere.is_dir()
        living.kill()
    files.clear_leftovers(target)
    assert mine.is_dir() and not theirs.exists() and elsewhere.is_dir()
    later = time.time() + 2 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    files.clear_leftovers(target)
    assert not elsewhere.exists() and (tmp_path / ".out.part").is_dir()
    monkeypatch.setattr(files, "_PROCESS", "0" * 8)  # a process that got the number of an earlier one
    files.clear_leftovers(target)
    assert not mine.exists()


def test_temporary_names_are_of_one_machine_one_process_and_one_use(tmp_path):
    some = {files.temporary_name(tmp_path / "file").name for _ in range(3)}
    assert len(some) == 3 and all(files.is_temporary(Path(name)) for name in some)
    assert not files.is_temporary(Path(".raw.part")) and not files.is_temporary(Path("file"))
    code = "import align.durable.files, pathlib; print(align.durable.files.temporary_name(pathlib.Path('file')))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.split("-")[-2].rpartition(".")[2] != next(iter(some)).split("-")[-2].rpartition(".")[2]


def test_write_bytes_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "deep" / "file"
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_write_bytes_flushes_the_file_and_then_its_folder(tmp_path, monkeypatch):
    flushed = []
    fsync = os.fsync

    def note(descriptor):
        flushed.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    files.write_bytes(tmp_path / "file", b"one")
    assert [files.is_temporary(Path(flushed[0])), *flushed[1:]] == [True, str(tmp_path)]


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def killed_in_writing(path):
    os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
    files.write_bytes(path, b"half")


def test_what_a_killed_writer_left_goes_with_the_next_writer_of_its_folder(tmp_path):
    assert in_child(partial(killed_in_writing, tmp_path / "one")) == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    others = [".mine.part", ".a.part", files.temporary_name(tmp_path / "live").name, "b.part"]
    for name in others:
        (tmp_path / name).write_text("of a person, or of a writer that lives")
    files.write_bytes(tmp_path / "third", b"whole")
    assert names(tmp_path) == sorted([*others, "third"])
