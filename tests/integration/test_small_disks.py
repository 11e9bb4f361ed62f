"""What commands say of a disk that is read-only or full."""

import errno

import pytest
from safetensors import SafetensorError

from align import cli
from align.cli import main
from align.durable.files import replace_directory, replaced
from align.durable.work import work_directory
from tests.support import own_model, small_data
from tests.support.small_data import Pair
from tests.support.small_disks import with_disk

TABLE = "url,caption\nhttp://127.0.0.1:9/a.jpg,three words here\n"
PLACES = ("raw", "reports", "runtime")


def ingest(folder, *overrides):
    """The words of a command that makes data/raw of a table whose one picture does not exist."""
    table = folder / "table.csv"
    table.write_text(TABLE)
    values = {f"paths.{name}": folder / name for name in PLACES} | {"paths.archive": table}
    words = ["ingest", "--set", "ingest.source=url_table", "--set", "engine.num_workers=1"]
    for value in (*(f"{key}={value}" for key, value in values.items()), *overrides):
        words += ["--set", value]
    return words


@pytest.mark.parametrize("folder", ["new/folder", ""])
@pytest.mark.parametrize("key", ["paths.raw", "paths.reports", "paths.runtime", "engine.temp_directory"])
def test_a_read_only_disk_is_one_clear_line(tmp_path, key, folder):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["-m", "align.cli", *ingest(tmp_path, f"{key}={disk / folder}")]
    done = with_disk(disk, command, read_only=True)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("ingest: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"align: error: {disk}")
    assert "choose a" in errors[0]
    assert (tmp_path / "raw").exists() is (key == "paths.reports")  # else it is said before the work, not after it


def test_a_full_disk_is_one_clear_line(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["-m", "align.cli", *ingest(tmp_path, f"paths.raw={disk}/raw")]
    done = with_disk(disk, command, size="64k", before='head -c 48k /dev/zero > "$1/else"')
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("ingest: ")]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"align: error: {disk}/")
    assert "the disk is full; free some space or choose another path" in errors[0]


def test_an_import_on_a_full_disk_is_one_clear_line(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    own_model.write_align_base(tmp_path)
    words = ["import_model", "--from", tmp_path / "align-base", "--out", disk / "imported"]
    done = with_disk(disk, ["-m", "align.cli", *words], size="64k")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"align: error: {disk}/imported: the disk is full"), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_registry_on_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    small_data.write(tmp_path, [Pair("a red fox", 1)])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/mlflow.db")
    places = [f"--set=paths.{name}={tmp_path / name}" for name in ("raw", "filtered", "runtime")]
    done = with_disk(disk, ["-m", "align.cli", "promote", *places], size="200k")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"align: error: MLflow at sqlite:///{disk}/mlflow.db: database or disk is full; free")
    assert done.stderr.count("\n") == 1


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
    ("words", "said"),
    [
        (
            ["opt_out", "--urls", "{}/urls.txt", "--set", "paths.policy={}/disk"],
            "{}/disk/opted_out.csv: the disk is re",
        ),
        (["promote"], "MLflow at sqlite:///{0}/disk/mlflow.db: {0}/disk cannot be written to"),
    ],
)
def test_commands_that_write_elsewhere_say_it_in_one_line(tmp_path, monkeypatch, words, said):
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "urls.txt").write_text("http://example.org/a.jpg\n")
    small_data.write(tmp_path, [Pair("a red fox", 1)])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk}/mlflow.db")
    places = [f"--set=paths.{name}={tmp_path / name}" for name in ("raw", "filtered", "runtime")]
    done = with_disk(disk, ["-m", "align.cli", *(word.format(tmp_path) for word in words), *places], read_only=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"align: error: {said.format(tmp_path)}"), done.stderr
    assert done.stderr.count("\n") == 1


SPILL = """
import sys
from pathlib import Path
from align.config.infrastructure import EngineConfig
from align.services.engine import open_engine
config = EngineConfig(
    runner="local", spark_master="local[*]", sbatch=(), num_workers=None, memory_limit="70MB", num_threads=1,
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
