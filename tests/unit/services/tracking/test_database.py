"""Which stores are refused: one that was moved or copied, and one that is damaged; and who reads them."""

import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from align.errors import ServiceError
from align.services.tracking import tracker
from align.services.tracking.database import make_private, require_here, require_whole
from align.services.tracking.tracker import Tracker


def store(database, artifacts):
    """A database with an experiment whose files are in a folder of artifacts, with one file."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS experiments (artifact_location TEXT)")
        connection.execute("INSERT INTO experiments VALUES (?)", (f"{artifacts.as_uri()}/1",))
    (artifacts / "1").mkdir(parents=True)
    (artifacts / "1/file").touch()


@pytest.mark.parametrize("moved", [False, True])
def test_a_moved_or_copied_store_is_refused_in_one_line(tmp_path, moved):
    first, second = tmp_path / "first é", tmp_path / "second"
    store(first / "mlflow.db", first / "mlartifacts")
    require_here(first / "mlflow.db")
    shutil.copytree(first, second)
    if moved:
        shutil.rmtree(first)
    with pytest.raises(ServiceError) as refused:
        require_here(second / "mlflow.db")
    place = f"{second}/mlflow.db belongs to {first}, where its files are"
    assert str(refused.value) == f"{place}: `make up` there, or move mlflow.db away"


def test_a_store_without_files_of_its_own_is_taken(tmp_path):
    """A new one, one in the making, and one whose files a server or S3 has."""
    database = tmp_path / "mlflow.db"
    require_here(database)
    database.touch()
    require_here(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE experiments (artifact_location TEXT)")
        connection.execute("INSERT INTO experiments VALUES ('mlflow-artifacts:/1'), ('s3://b/mlartifacts/1'), (NULL)")
    require_here(database)


def test_only_its_owner_reads_the_database_of_a_checkout(tmp_path):
    store(tmp_path / "mlflow.db", tmp_path / "mlartifacts")
    files = [tmp_path / name for name in ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm")]
    for file in files:
        file.touch()
        file.chmod(0o644)
    make_private(tmp_path / "mlflow.db")
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("own", [False, True])
def test_a_new_store_is_private_unless_others_were_given_it(tmp_path, monkeypatch, own):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlflow.MlflowClient", lambda **_: None)
    monkeypatch.setattr(tracker, "make_database", Path.touch)
    database = tmp_path / ("mlflow.db" if own else "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    Tracker()
    assert (stat.S_IMODE(database.stat().st_mode) == 0o600) == own


#: Asks MLflow for a first time, and dies at its 800th statement, of some 1,700 that make its tables.
DIES = """
import os, signal
from sqlalchemy import Engine, event
from align.services.tracking.tracker import Tracker

left = [800]

@event.listens_for(Engine, "after_cursor_execute")
def count(*_):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

Tracker().registry.versions("none")
"""


@pytest.mark.kill
def test_killed_while_mlflow_makes_its_tables_the_next_one_makes_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = subprocess.run([sys.executable, "-c", DIES], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Tracker().registry.versions("none") == []
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("own", [False, True])
def test_a_store_that_the_environment_names_is_taken_unless_it_is_this_checkouts(
    tmp_path, monkeypatch, empty_mlflow, own
):
    """It may be shared, and have another path on the machine that made it."""
    database = tmp_path / "shared/mlflow.db"
    database.parent.mkdir()
    empty_mlflow(database.parent)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = 'file:///mounted/there/mlartifacts/1'")
    monkeypatch.chdir(tmp_path / ("shared" if own else "."))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    for uri in (None, f"sqlite:///{database}"):  # as the flow names it, from the environment
        with pytest.raises(ServiceError, match="belongs to /mounted/there") if own else nullcontext():
            Tracker(uri)


def test_one_process_logs_into_the_store_of_its_working_directory(tmp_path, monkeypatch, empty_mlflow):
    """MLflow keeps connections by address, and `mlflow.db` is another file in another folder."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        empty_mlflow(tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        made = Tracker()
        made.end_run(made.start_run(name, "x"))
    for name in ("a", "b"):
        with closing(sqlite3.connect(tmp_path / name / "mlflow.db")) as connection:
            found = {row[0] for row in connection.execute("SELECT name FROM experiments")}
        assert found == {"Default", name}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("damage", ["16", "100", "half", "page", "other"])
def test_a_damaged_database_is_one_line_for_whoever_opens_it(tmp_path, empty_mlflow, monkeypatch, damage, beside):
    address = empty_mlflow(tmp_path)
    file = tmp_path / "mlflow.db"
    whole = file.read_bytes()
    cuts = {"16": whole[:16], "100": whole[:100], "half": whole[: len(whole) // 2 + 77], "page": whole[:-4096]}
    file.write_bytes(cuts.get(damage, b"what is no database " * 500))
    if beside:
        (tmp_path / "mlartifacts").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for use in (lambda: Tracker(address), lambda: require_whole(file)):
        with pytest.raises(ServiceError, match=rf"^{file}: damaged \(.*from a backup") as refused:
            use()
        assert "\n" not in str(refused.value)
