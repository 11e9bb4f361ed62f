"""Whose addresses are corrected: of a store that was moved or copied, and of no other one."""

import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from align.errors import ServiceError
from align.services.tracking.database import require_whole, settle
from align.services.tracking.tracker import Tracker
from tests.support.cpu_budget import costs


def store(database: Path, artifacts: Path) -> None:
    """A database with an experiment whose files are in a folder of artifacts, with one file."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS experiments (artifact_location TEXT)")
        connection.execute("INSERT INTO experiments VALUES (?)", (f"{artifacts.as_uri()}/1",))
    (artifacts / "1").mkdir(parents=True)
    (artifacts / "1/file").touch()


def location(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        return str(connection.execute("SELECT artifact_location FROM experiments").fetchone()[0])


@pytest.mark.parametrize("beside", [False, True])
def test_artifacts_elsewhere_on_purpose_stay_there(tmp_path: Path, beside: bool) -> None:
    database, elsewhere = tmp_path / "db/mlflow.db", tmp_path / "elsewhere/mlartifacts"
    store(database, elsewhere)
    if beside:  # other experiments have theirs here
        (tmp_path / "db/mlartifacts").mkdir()
    settle(database)
    assert location(database) == f"{elsewhere.as_uri()}/1"


def test_a_copy_of_the_database_alone_still_names_the_files_of_the_first(tmp_path: Path) -> None:
    store(tmp_path / "first/mlflow.db", tmp_path / "first/mlartifacts")
    (tmp_path / "backup").mkdir()
    shutil.copy(tmp_path / "first/mlflow.db", tmp_path / "backup")
    settle(tmp_path / "backup/mlflow.db")
    assert location(tmp_path / "backup/mlflow.db") == f"{tmp_path.as_uri()}/first/mlartifacts/1"


@pytest.mark.parametrize("moved", [False, True])
def test_a_moved_or_copied_folder_names_its_own_files(tmp_path: Path, moved: bool) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    store(first / "mlflow.db", first / "mlartifacts")
    shutil.copytree(first, second)
    if moved:
        shutil.rmtree(first)
    settle(second / "mlflow.db")
    assert location(second / "mlflow.db") == f"{second.as_uri()}/mlartifacts/1"


def test_only_its_owner_reads_the_database_of_a_checkout(tmp_path: Path) -> None:
    store(tmp_path / "mlflow.db", tmp_path / "mlartifacts")
    files = [tmp_path / name for name in ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm")]
    for file in files:
        file.touch()
        file.chmod(0o644)
    settle(tmp_path / "mlflow.db")
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("own", [False, True])
def test_a_new_store_is_private_unless_others_were_given_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlflow.MlflowClient", lambda **_: None)
    database = tmp_path / ("mlflow.db" if own else "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    Tracker()
    assert database.is_file() == own and (not own or stat.S_IMODE(database.stat().st_mode) == 0o600)


@pytest.fixture(scope="module")
@costs(5, "MLflow is imported, and makes its tables")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow's, whose tables take a second to make."""
    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    Tracker(f"sqlite:///{database}").start_run("another experiment", "first")
    return database


@pytest.mark.parametrize("own", [False, True])
def test_a_store_that_the_environment_names_is_not_rewritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: Path, own: bool
) -> None:
    """It may be shared, and have another path on the machine that made it. The checkout's own is none of these."""
    database = tmp_path / "shared/mlflow.db"
    (tmp_path / "shared/mlartifacts").mkdir(parents=True)
    shutil.copy(empty, database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = 'file:///mounted/there/mlartifacts/1'")
    monkeypatch.chdir(tmp_path / ("shared" if own else "."))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    Tracker()
    Tracker(f"sqlite:///{database}")  # as the flow names it, from the environment
    there = "file:///mounted/there/mlartifacts/1"
    assert location(database) == (f"{tmp_path.as_uri()}/shared/mlartifacts/1" if own else there)


def test_one_process_logs_into_the_store_of_its_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: Path
) -> None:
    """MLflow keeps connections by address, and `mlflow.db` is another file in another folder."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(empty, tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        tracker = Tracker()
        tracker.end_run(tracker.start_run(name, "x"))
    for name in ("a", "b"):
        with closing(sqlite3.connect(tmp_path / name / "mlflow.db")) as connection:
            found = {row[0] for row in connection.execute("SELECT name FROM experiments")}
        assert found == {"Default", "another experiment", name}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("damage", ["16", "100", "half", "page", "other"])
def test_a_damaged_database_is_one_line_for_whoever_opens_it(
    tmp_path: Path, empty_mlflow: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch, damage: str, beside: bool
) -> None:
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
