"""`align register` as a command: of a model that began with another one than `align pretrain` wrote here; its tag."""

import json
import queue
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from align.cli import main
from align.durable.locks import tried
from align.release.registration.register import LOCK
from align.release.registration.shown import all_metrics
from align.services.git import git
from align.services.tracking.tracker import Tracker
from tests.support import registered, small_git
from tests.support.params import PARAMS_FILE, sets


@pytest.fixture
def project(tmp_path, monkeypatch, empty_mlflow):
    """A packaged model, with the reports of a pre-training that made another one before."""
    address = empty_mlflow(tmp_path)
    registered.write(tmp_path, address)
    for stage in ("fit_tokenizer", "pretrain", "finetune"):
        (tmp_path / "reports" / stage).mkdir(exist_ok=True)
        (tmp_path / "reports" / stage / "metrics.json").write_text(json.dumps({f"{stage}/number": 1}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return tmp_path


def shown(*overrides):
    """The one run of MLflow's file here, all its metrics, and the names of its reports."""
    values = sets("paths.shards=shards", "paths.packaged=packaged", *overrides)
    assert main(["register", "--params", str(PARAMS_FILE), *values]) == 0
    tracker = Tracker()
    version = tracker.registry.version_at("align", "candidate")
    client = tracker._client
    names = {Path(item.path).name for item in client.list_artifacts(version.run_id, "reports")}
    return client.get_run(version.run_id).data, all_metrics(tracker, version.run_id), names


def test_a_run_shows_nothing_of_a_model_that_it_did_not_begin_with(project):
    run, metrics, names = shown("finetune.from=imported", "model.embed_width=320", "pretrain.batch_size=48")
    assert names == {"quality", "quality_shards", "shard", "finetune", "evaluation", "package"}
    assert metrics["finetune/number"] == 1
    for key in (*metrics, *run.params):
        assert not key.startswith(("pretrain", "fit_tokenizer")), key
    assert run.params["model.embed_width"] == "24"  # of the packaged model
    assert run.params["finetune.batch_size"] == "48"  # inherited, and used
    version = Tracker().registry.version_at("align", "candidate")
    page = Tracker().artifact(version.run_id, "lineage/lineage.html", project)
    assert page is not None and "align version 1" in page.read_text()


def test_two_at_once_take_turns(project, monkeypatch):
    """Both would find no version of their model."""
    said = queue.Queue()
    monkeypatch.setattr("align.release.registration.register.say", said.put)
    lock = project / LOCK
    lock.parent.mkdir(parents=True)
    with ThreadPoolExecutor() as threads:
        with tried(lock) as other:
            assert other
            done = threads.submit(shown)
            assert said.get(timeout=100).startswith("waiting for ")
            assert not done.done()
        assert done.result()


def test_git_keeps_what_a_version_was_made_from(project, capsys):
    """A second call tags what a first one, killed before its end, did not."""
    small_git.write(project, {"code": "one"})
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    shown()
    for _ in range(2):
        assert git(project, "tag").splitlines() == ["align/align/v1"]
        assert git(project, "show", "align/align/v1:dvc.lock") == "schema: '2.0'"
        git(project, "tag", "--delete", "align/align/v1")
        shown()
    (project / ".git/refs/tags/align").rename(project / "elsewhere")
    (project / ".git/refs/tags/align").touch()
    shown()
    assert "note: no tag in git keeps what version 1 was made from: git update-ref" in capsys.readouterr().err
