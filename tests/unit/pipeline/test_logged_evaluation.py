"""`align evaluate --log`: which model and which suite a person names, and what becomes of the report."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from align.cli import main
from align.durable.files import sha256_folder
from align.errors import AlignError, ConfigError, DataError, RefusedError, ServiceError
from align.pipeline import logged_evaluation
from align.pipeline.logged_evaluation import asked_model, suite_file
from align.services.tracking.registry import MODEL_DIGEST, Version
from tests.support import tiny_model
from tests.support.params import PARAMS_FILE, load_params

SUITE = "sets: [{name: photos, path: photos, format: folder, tasks: [zero_shot]}]\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout with two suites and a wrong one; the working directory."""
    for name in ("checkout/infra/suites/demo.yaml", "checkout/mine/own.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SUITE)
    (tmp_path / "checkout/mine/wrong.yaml").write_text("sets: [{name: photos, tasks: [zero_shot]}]\n")
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    return tmp_path / "checkout"


def found(asked, root):
    return suite_file(asked, load_params(), root.parent / "scratch")


@pytest.mark.parametrize(
    ("asked", "file"),
    [("demo", "infra/suites/demo.yaml"), ("infra/suites/demo.yaml", "infra/suites/demo.yaml"),
     ("mine/own.yml", "mine/own.yml")],
)  # fmt: skip
def test_a_suite_is_a_name_or_a_path(root, asked, file):
    assert found(asked, root) == Path(file)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ("nope", DataError, "suite nope: no such name in infra/suites (there: demo); give one"),
        ("de*", DataError, "suite de*: no such name"),
        ("--set", DataError, "suite --set: no such name"),
        ("mine/own", DataError, "suite mine/own: not the name of a YAML file"),
        ("mine/none.yaml", ConfigError, "mine/none.yaml: no such file"),
        ("mine/wrong.yaml", ConfigError, "mine/wrong.yaml: sets.0.path: Field required"),
        ("s3://", DataError, "suite s3://: not the name of a YAML file"),
        ("s3://bucket/folder", DataError, "not the name of a YAML file"),
    ],
)
def test_what_is_no_suite_is_one_line(root, asked, error, said):
    with pytest.raises(error) as raised:
        found(asked, root)
    assert said in str(raised.value) and str(root) not in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_a_suite_in_s3_is_read_as_a_copy(root, monkeypatch):
    texts = {"s3://b/own.yaml": SUITE, "s3://b/wrong.yaml": "sets: 1\n"}

    class Bucket:
        def open(self, uri):
            if uri not in texts:
                raise DataError("no such object")
            return io.BytesIO(texts[uri].encode())

    monkeypatch.setattr(logged_evaluation, "StoreFiles", lambda config: Bucket())
    assert found("s3://b/own.yaml", root).read_text() == SUITE
    with pytest.raises(ConfigError, match=r"^s3://b/wrong\.yaml: sets: "):
        found("s3://b/wrong.yaml", root)
    with pytest.raises(DataError, match=r"^s3://b/none\.yaml: the suite cannot be read: no such object$"):
        found("s3://b/none.yaml", root)


class Registered:
    """Version 7, the champion, whose run is r7; nothing else. As a Tracker and its registry."""

    def __init__(self, packaged, runs=("r7",)):
        self.version = Version("align", 7, "r7", {MODEL_DIGEST: sha256_folder(packaged)})
        self.registry, self.packaged, self.runs = self, packaged, runs

    def version_at(self, model, alias):
        return self.version if alias == "champion" else None

    def versions(self, model):
        return [self.version]

    def aliases(self, model):
        return {"champion": 7}

    def find_version(self, model, key, value):
        return self.version if self.version.tags[key] == value else None

    def run(self, run_id):
        if run_id not in self.runs:
            raise RefusedError("no such run")
        return SimpleNamespace(run_id=run_id)

    def model_files(self, version, folder):
        return Path(shutil.copytree(self.packaged, folder / "model"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkout with models/finetuned, models/packaged, which is the same model, and models/other."""
    root = tmp_path_factory.mktemp("measured") / "checkout"
    (root / "models").mkdir(parents=True)
    for name, seed in (("finetuned", 0), ("other", 1)):
        tiny_model.write(root.parent / name, seed=seed).rename(root / "models" / name)
    shutil.copytree(root / "models/finetuned", root / "models/packaged/artifacts/abc")
    (root / "models/packaged/MLmodel").touch()
    (root / "models/empty").mkdir()
    return root


def ask(asked, root, scratch, tracker=None):
    packaged = root / "models/packaged"
    tracker = Registered(packaged) if tracker is None else tracker
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return asked_model(asked, tracker, registered="align", packaged=packaged, scratch=scratch)


@pytest.mark.parametrize(
    ("asked", "name", "parent"),
    [
        ("champion", "align version 7", "r7"),
        ("7", "align version 7", "r7"),
        ("models/finetuned", "models/finetuned", "r7"),  # what was packaged, and registered
        ("./models/packaged/", "./models/packaged/", "r7"),
        ("models/other", "models/other", None),
    ],
)
def test_a_version_or_a_folder(trained, tmp_path, asked, name, parent):
    found = ask(asked, trained, tmp_path)
    assert (found.name, found.parent) == (name, parent)
    assert (trained / found.folder / "model.safetensors").is_file()
    assert found.folder.is_relative_to(tmp_path) == ("version" in name)


def test_a_run_that_mlflow_no_longer_has_is_no_parent(trained, tmp_path):
    tracker = Registered(trained / "models/packaged", runs=())
    assert ask("champion", trained, tmp_path, tracker).parent is None
    assert ask("models/finetuned", trained, tmp_path, tracker).parent is None


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("chapion", "model chapion: 'align' has champion, and no such one; give an alias, a number, or a folder"),
        ("8", "model 'align' has no version 8; it has 7"),
        ("9" * 500, "has no version 999999999999999999; it has 7"),
        ("²", "model ²: 'align' has champion"),
        ("models/none", "model models/none: no such folder; give one"),
        ("models/empty", "no model here (config.json is missing)"),
    ],
)
def test_what_is_no_model_is_one_line(trained, tmp_path, asked, said):
    with pytest.raises(AlignError) as raised:
        ask(asked, trained, tmp_path)
    assert said in str(raised.value) and "\n" not in str(raised.value) and len(str(raised.value)) < 500


class Silent:
    """As a Tracker that takes the parameters of a run, and then does not answer."""

    def __init__(self):
        self.params = {}
        self.states = []

    def start_run(self, experiment, name, tags):
        self.states.append(f"{name} started")
        return "r"

    def log_params(self, run_id, params):
        self.params |= params

    def log_metrics(self, run_id, metrics):
        raise ServiceError("MLflow at http://h: no answer")

    def end_run(self, run_id, status):
        self.states.append(status)


def test_a_report_that_mlflow_does_not_take_is_kept(trained, root, monkeypatch, capsys):
    tracker = Silent()
    monkeypatch.setattr(logged_evaluation, "Tracker", lambda: tracker)

    def measure(params, args):
        args.reports.mkdir(parents=True)
        (args.reports / "metrics.json").write_text('{"photos/knn/accuracy": 0.5}')
        (args.reports / "report.json").write_text('{"sets": {"photos": {"digest": "d"}}, "evaluation_digest": "e"}')

    monkeypatch.setattr(logged_evaluation.evaluate, "main", measure)
    shutil.copy(PARAMS_FILE, root / "params.yaml")
    model = str(trained / "models/other")
    assert main(["evaluate", "--model", model, "--suite", "demo", "--log", "mine", "--reports", "r"]) == 1
    assert "leave --reports out" in capsys.readouterr().err
    assert main(["evaluate", "--suite", "demo", "--log"]) == 1
    assert "--log: name the model by --model" in capsys.readouterr().err
    assert main(["evaluate", "--model", model, "--suite", "demo"]) == 1
    assert "--suite goes with --log" in capsys.readouterr().err
    assert main(["evaluate", "--model", model, "--suite", "demo", "--log", "mine"]) == 1
    [kept] = root.glob(".align/evaluations/*")
    said = "MLflow at http://h: no answer; the report was made, and is kept in"
    assert f"{said} {kept.relative_to(root)}" in capsys.readouterr().err
    assert (kept / "evaluation/metrics.json").is_file() and tracker.states == ["mine started", "FAILED"]
    assert (tracker.params["suite"], tracker.params["set.photos"], tracker.params["sets"]) == ("demo", "d", "e")
    assert tracker.params["model"] == model and "evaluate.seed" in tracker.params
