"""A version gets the index that was made with its model, and no other one."""

import json
import shutil
from pathlib import Path

import pytest

from align.durable.files import sha256_folder
from align.errors import CorruptError
from align.formats.model_folder import model_digest
from align.release.registration.indexed import log_index
from align.services.tracking.registry import INDEX_DIGEST, Version
from tests.support import tiny_model
from tests.support.memory_mlflow import MemoryTracker


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """models/finetuned, beside models/packaged, data/index and a registry."""
    made = tiny_model.write(tmp_path / "made").rename(tmp_path / "finetuned")
    shutil.copytree(made, tmp_path / "packaged/artifacts/finetuned")
    (tmp_path / "index").mkdir()
    (tmp_path / "index/index.json").write_text(json.dumps({"model_digest": model_digest(made)}))
    return made


def logged(tracker: MemoryTracker, model: Path, version: Version | None = None) -> dict[str, str]:
    root = model.parent
    if version is None:
        version = tracker.registry.create_version("align", tracker.start_run("align", "x"), "model", {})
    return dict(log_index(tracker, version, root / "index", model, root / "packaged"))


def test_the_index_of_its_model_and_no_other(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker, index = MemoryTracker(model.parent / "mlflow"), model.parent / "index"
    digest = sha256_folder(index)
    assert logged(tracker, model) == {INDEX_DIGEST: digest}
    (version,) = tracker.registry.versions("align")
    assert version.tags == {INDEX_DIGEST: digest}
    assert (tracker.root / version.run_id / "index" / digest[:16] / "index.json").is_file()
    assert logged(tracker, model, version) == {}  # it has it already

    (index / "index.json").write_text(json.dumps({"model_digest": "another"}))
    assert logged(tracker, model) == {} and "is of another model, so version 2 gets no index" in capsys.readouterr().err
    (index / "index.json").write_text(json.dumps({"model_digest": model_digest(model)}))
    weights = model.parent / "packaged/artifacts/finetuned/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")  # another model was packaged
    assert logged(tracker, model) == {}
    shutil.rmtree(index)
    assert logged(tracker, model) == {}
    assert [INDEX_DIGEST in one.tags for one in tracker.registry.versions("align")] == [True, False, False, False]


def test_an_index_that_changes_while_it_is_sent_names_no_version(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, index = MemoryTracker(model.parent / "mlflow"), model.parent / "index"
    send = tracker.log_folder

    def slow(run_id: str, folder: Path, name: str) -> None:
        send(run_id, folder, name)
        (index / "items").touch()

    monkeypatch.setattr(tracker, "log_folder", slow)
    with pytest.raises(CorruptError, match="changed while it was sent to MLflow"):
        logged(tracker, model)
    assert [dict(one.tags) for one in tracker.registry.versions("align")] == [{}]
