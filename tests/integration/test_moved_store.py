"""A checkout that was moved or copied: MLflow writes and reads there, and the first place stays as it was."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from align.pipeline import run
from align.services.tracking.database import settle
from align.services.tracking.registry import CHAMPION
from align.services.tracking.tracker import Tracker
from tests.support import ROOT, answers, wait_until, warm
from tests.support.dvc_projects import file_bytes
from tests.support.mlflow_server import free_port, serve

LOADER = """\
import sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
print(mlflow.pyfunc.load_model("models:/birds@champion").predict("owl"))
"""
MODEL = {
    "MLmodel": "flavors: {python_function: {loader_module: birds_loader, code: code}}\n",
    "code/birds_loader.py": (
        "class Birds:\n    def predict(self, data):\n        return f'a bird: {data}'\n\n\n"
        "def _load_pyfunc(path):\n    return Birds()\n"
    ),
}


def fill(uri: str, root: Path) -> str:
    """A finished run with a report, and a version of model `birds` that is the champion; returns the run.

    In another process: MLflow's client remembers the addresses of runs.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_fill, uri, root).result()


def _fill(uri: str, root: Path) -> str:
    tracker = Tracker(uri)
    model = root / "model"
    for name, text in MODEL.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text(text)
    run_id = tracker.start_run("an experiment", "first")
    tracker.set_tags(run_id, {"digest": "1"})
    tracker.log_metrics(run_id, {"recall@1": 0.5})
    tracker.log_folder(run_id, model, "model")
    tracker.registry.set_alias(tracker.registry.create_version("birds", run_id, "model", {"digest": "1"}), CHAMPION)
    tracker.end_run(run_id)
    return run_id


def use(tracker: Tracker, root: Path, first: str) -> None:
    """Searches, logs, registers and loads."""
    assert tracker.find_runs("an experiment", "digest", "1") == [first]
    assert tracker.metrics(first) == {"recall_at_1": 0.5}
    loader = subprocess.run(
        [warm.commands() / "python", "-c", LOADER, tracker.uri], capture_output=True, text=True, cwd=root, check=False
    )
    assert loader.stdout.strip() == "a bird: owl", loader.stderr[-2000:]
    tracker.log_folder(first, root / "model", "later")
    second = tracker.start_run("an experiment", "second")
    tracker.log_folder(second, root / "model", "model")
    assert tracker.registry.create_version("birds", second, "model", {}).number == 2
    tracker.end_run(second)
    third = tracker.start_run("another experiment", "third")
    tracker.log_folder(third, root / "model", "model")
    files = [path.relative_to(root) for path in root.rglob("MLmodel") if path.parent != root / "model"]
    assert len(files) == 4  # of the first run two, of the others one each


@pytest.fixture
def move(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The first place, with a name that an address must escape, and the second, which the test makes of it."""
    first, second = tmp_path / "first place é", tmp_path / "second place"
    first.mkdir()
    yield first, second
    if request.param == "copied":
        assert first.exists()


#: A copy is the harder case, since the first place must stay as it was.
COPIED = pytest.mark.parametrize("move", ["copied", pytest.param("moved", marks=pytest.mark.full)], indirect=True)


def bring(request: pytest.FixtureRequest, first: Path, second: Path) -> dict[str, bytes]:
    """Moves or copies; returns what must still be in the first place at the end."""
    if request.node.callspec.params["move"] == "moved":
        first.rename(second)
        return {}
    shutil.copytree(first, second)
    return file_bytes(first)


@pytest.mark.costs(4, "MLflow makes its database, and three versions of a model")
@COPIED
def test_the_file_without_a_server(
    move: tuple[Path, Path], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = move
    run_id = fill(f"sqlite:///{first}/mlflow.db", first)
    before = bring(request, first, second)
    use(Tracker(f"sqlite:///{second}/mlflow.db"), second, run_id)
    assert capsys.readouterr().err.count("this folder was moved or copied") == 1
    assert (file_bytes(first) if first.exists() else {}) == before
    Tracker(f"sqlite:///{second}/mlflow.db")  # nothing to correct any more
    assert not capsys.readouterr().err


@contextmanager
def local_server(root: Path) -> Iterator[str]:
    """MLflow as `make up` serves it; its URL."""
    claim, port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with (root / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [warm.commands() / "python", "-m", "infra.server", "mlflow", str(port)],
            cwd=root, env=env | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        log_file = root / "server.log"
        wait_until(lambda: answers(f"{url}/health"), 180, alive=lambda: server.poll() is None, says=log_file.read_text)
        yield url
    finally:
        server.terminate()
        server.wait(60)
        claim.close()


@pytest.mark.costs(5, "a server before the move, and one after it")
@COPIED
def test_the_server_of_make_up(
    move: tuple[Path, Path], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = move
    for name, value in zip(("USERNAME", "PASSWORD"), run.login(first).split(":"), strict=True):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    with local_server(first) as url:
        run_id = fill(url, first)
    before = bring(request, first, second)
    with local_server(second) as url:
        use(Tracker(url), second, run_id)
    assert (file_bytes(first) if first.exists() else {}) == before


@pytest.mark.costs(5, "a server before the move, and one after it")
@COPIED
def test_a_server_that_stores_artifacts_itself(move: tuple[Path, Path], request: pytest.FixtureRequest) -> None:
    """Its addresses are `mlflow-artifacts:/`, which name no folder: nothing is to be corrected."""
    first, second = move
    with serve(first) as server:
        run_id = fill(server.uri, first)
    before = bring(request, first, second)
    database = (second / "mlflow.db").read_bytes()
    settle(second / "mlflow.db")
    assert (second / "mlflow.db").read_bytes() == database
    with serve(second) as server:
        use(Tracker(server.uri), second, run_id)
    assert (file_bytes(first) if first.exists() else {}) == before


def test_a_copied_checkout_leaves_the_first_one_s_servers_alone(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / ".align").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=first) as process:
        service = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
        (first / run.SERVICES_FILE).write_text(json.dumps({"mlflow": service}))
        shutil.copytree(first, second)
        assert run.running_services(first) == {"mlflow": service}
        assert run.running_services(second) == {}
        first.rename(tmp_path / "moved")
        assert run.running_services(tmp_path / "moved") == {"mlflow": service}
        process.kill()
    assert run.running_services(tmp_path / "moved") == {}
