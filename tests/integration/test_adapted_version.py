"""A version of a real registry, as mteb's and CLIP_benchmark's adapters open it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from align.adapters.models import open_model
from align.errors import DataError
from align.formats.model_folder import model_digest
from align.release.packaging.packaged_model import save
from align.services.tracking.tracker import Tracker
from tests.support import ROOT, tiny_model


def test_a_version_by_alias_and_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow: Callable[[Path], str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_mlflow(tmp_path))
    tracker = Tracker()
    models = [tiny_model.write(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    for model in models:
        packaged = model.parent / "packaged"
        save(packaged, model=model, code=ROOT / "align" / "model", metadata={})
        run = tracker.start_run("align", model.parent.name)
        tracker.log_folder(run, packaged, "model")
        version = tracker.registry.create_version("align", run, "model", {})
    tracker.registry.set_alias(version, "champion")
    champion = open_model("models:/align@champion")
    assert (champion.name, champion.digest) == ("align-champion", model_digest(models[1]))
    assert open_model("models:/align/1").digest == model_digest(models[0])
    for source in ("models:/align@previous", "models:/align/3", "models:/other@champion"):
        with pytest.raises(DataError, match=f"{source}: no such version in MLflow"):
            open_model(source)
