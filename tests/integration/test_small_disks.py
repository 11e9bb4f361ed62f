"""What commands and stages say of a disk that is read-only or full."""

import errno

import pytest
from safetensors import SafetensorError

from align import cli
from align.cli import main
from align.durable.files import replace_directory, replaced
from align.durable.work import work_directory
from tests.support import own_model, small_data
from tests.support.dvc_projects import enter, make_repository
from tests.support.params import at, sets
from tests.support.reading import URL_TABLE, ingest_words, url_table
from tests.support.small_data import Pair
from tests.support.small_disks import with_disk


def refusal(disk, words, **how):
    """The one line of an `align` that fails on such a disk, beside what ingest tells of its work."""
    disk.mkdir()
    done = with_disk(disk, ["-m", "align.cli", *words], **how)
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("ingest: ")]
    assert line.startswith("align: error: ")
    return line.removeprefix("align: error: ")


def ingest(folder, *values):
    """The words of a command that makes data/raw of a table whose one picture does not exist."""
    table = url_table(folder, [("http://127.0.0.1:9/a.jpg", "three words here")])
    return ingest_words(folder, table, *URL_TABLE, *values)


@pytest.mark.parametrize("folder", ["new/folder", ""])
@pytest.mark.parametrize("key", ["paths.raw", "paths.reports", "paths.runtime", "engine.temp_directory"])
def test_a_read_only_disk_is_one_clear_line(tmp_path, key, folder):
    disk = tmp_path / "disk"
    said = refusal(disk, ingest(tmp_path, f"{key}={disk / folder}"), read_only=True)
    assert said.startswith(str(disk)) and "choose a" in said
    assert (tmp_path / "raw").exists() is (key == "paths.reports")  # else it is said before the work, not after it


def test_a_full_disk_is_one_clear_line(tmp_path):
    disk = tmp_path / "disk"
    words = ingest(tmp_path, f"paths.raw={disk}/raw")
    said = refusal(disk, words, size="64k", before='head -c 48k /dev/zero > "$1/else"')
    assert said.startswith(f"{disk}/") and "the disk is full; free some space or choose another path" in said


def test_an_import_on_a_full_disk_is_one_clear_line(tmp_path):
    disk = tmp_path / "disk"
    own_model.write_align_base(tmp_path)
    words = ["import_model", "--from", tmp_path / "align-base", "--out", disk / "imported"]
    assert refusal(disk, words, size="64k").startswith(f"{disk}/imported: the disk is full")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # of write()
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ValueError("database or disk is full"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "folder", "work"])
def test_what_finds_a_disk_full_names_what_it_writes(tmp_path, kind, error):
    path = tmp_path / "made"
    writing = {
        "file": lambda: replaced(path),
        "folder": lambda: replace_directory(path, "index"),
        "work": lambda: work_directory(path, "index", "key"),
    }
    with pytest.raises(OSError) as raised, writing[kind]():
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))


@pytest.mark.parametrize(
    ("words", "said", "how"),
    [
        (["promote"], "MLflow at sqlite:///{}/mlflow.db: database or disk is full; free", {"size": "200k"}),
        (["promote"], "MLflow at sqlite:///{0}/mlflow.db: {0} cannot be written to", {"read_only": True}),
        (["opt_out", "--urls", "{}/../urls.txt", "--set", "paths.policy={}"], "{}/opted_out.csv: the disk is re",
         {"read_only": True}),
    ],
)  # fmt: skip
def test_commands_that_write_elsewhere_say_it_in_one_line(tmp_path, monkeypatch, words, said, how):
    disk = tmp_path / "disk"
    (tmp_path / "urls.txt").write_text("http://example.org/a.jpg\n")
    small_data.write(tmp_path, [Pair("a red fox", 1)])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/mlflow.db")
    words = [*(word.format(disk) for word in words), *sets(*at(tmp_path, "raw", "filtered", "runtime"))]
    assert refusal(disk, words, **how).startswith(said.format(disk))


SPILL = """
import sys
from pathlib import Path
from align.config.infrastructure import EngineConfig
from align.services.engine import open_engine
config = EngineConfig(
    runner="local", spark_master="local[*]", sbatch=(), num_workers=None, memory_limit="70MB", num_threads=1,
    device="cpu",
    temp_directory=Path(sys.argv[1]),
)
with open_engine(config) as engine:
    if len(sys.argv) > 2:
        engine._execute(f"SET max_temp_directory_size = '{sys.argv[2]}'")
    try:
        engine.table("numbers", "SELECT range AS n, md5(range::VARCHAR) AS text FROM range(3000000)")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.mark.parametrize("limit", [[], ["10GB"]])  # DuckDB's own limit stops it, or the system does
def test_a_full_disk_is_not_called_too_little_memory(tmp_path, limit):
    done = with_disk(tmp_path, ["-c", SPILL, tmp_path, *limit], size="20m")
    assert done.stdout.startswith(f"DataError: the disk of engine.temp_directory is full: {tmp_path}: "), (
        done.stdout + done.stderr
    )
    assert "of 20 MiB free" in done.stdout
    assert "memory_limit is too small" not in done.stdout


DVC_YAML = "stages: {make: {cmd: head -c 3000000 /dev/urandom > out && echo made >> ../times, outs: [out]}}"
#: As a run's task starts a stage.
RUN = """
import os, sys
from pathlib import Path
from flows.run.supervised import CommandError, run_supervised
try:
    run_supervised(["dvc", "repro", "-s", "make"], cwd=Path(sys.argv[1]), env=os.environ, log=lambda line: None)
except CommandError as error:
    sys.exit(str(error))
"""


def test_a_stage_fails_with_the_reason_and_works_once_there_is_room(tmp_path, monkeypatch):
    root = make_repository(tmp_path / "project", {"dvc.yaml": DVC_YAML}, "/out\n")
    enter(root, monkeypatch)
    (root / ".dvc/cache").mkdir()
    full = with_disk(root / ".dvc/cache", ["-c", RUN, root], size="1m")
    assert full.returncode == 1 and "No space left on device" in full.stderr, full.stderr
    assert not (root / "dvc.lock").exists()
    room = with_disk(root / ".dvc/cache", ["-c", RUN, root], size="20m")
    assert room.returncode == 0, room.stderr
    assert (root / "dvc.lock").exists() and (tmp_path / "times").read_text() == "made\n" * 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "data/raw/00000.tar"), "data/raw/00000.tar: permission"),
        (OSError(errno.EROFS, "Failed to open local file 'x/y.parquet'. Detail: [errno 30]"), "x/y.parquet: the disk"),
        (OSError(errno.ENOSPC, "No space left on device"), "while writing: the disk is full"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "no folder for temporary"),
    ],
)
def test_what_the_disk_refuses_anywhere_is_one_line(error, said, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("align.filter.filter.main", fail)
    assert main(["filter"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"align: error: {said}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        PermissionError(errno.EACCES, "Permission denied"),  # of a socket
        OSError("anything else"),
    ],
)
def test_an_error_of_ours_keeps_its_traceback(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr("align.filter.filter.main", fail)
    with pytest.raises(OSError) as raised:
        main(["filter"])
    assert raised.value is error
    assert cli._refusal(error) is None
