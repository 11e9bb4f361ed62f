"""Task `fine_tuning` of a suite."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from align.config.suite import FineTuningSettings
from align.evaluate.embed import ModelTowers
from align.evaluate.fine_tuning.pictures import Pictures
from align.evaluate.fine_tuning.tune import Classifier
from align.evaluate.tuned import recipe_of
from align.formats.query_ranks import RANKS, read_ranks
from align.model.dual_encoder import load_model
from align.model.preprocess import to_pixels
from tests.support.tiny_model import TINY
from tests.support.tuning import evaluate, write_suite


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Measured once, into `out`."""
    made = tmp_path_factory.mktemp("tuned")
    write_suite(made, epochs=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        assert evaluate(made, "out") == 0
    return made


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read_json(path):
    return json.loads(path.read_text())


def test_the_report_has_accuracy_with_interval_classes_and_difference(root):
    metrics, tuned = (read_json(root / "out" / name) for name in ("metrics.json", "report.json"))
    tuned = tuned["fine_tuning"]["colours"]
    value, low, high = (metrics[f"colours/fine_tuning/accuracy{part}"] for part in ("", "/low", "/high"))
    assert low <= value <= high and metrics["colours/fine_tuning/accuracy/chance"] == 0.25
    assert set(tuned["classes"]) == {"red", "green", "blue", "yellow"}
    assert sum(tuned["classes"].values()) / 4 == pytest.approx(value, abs=1e-5)
    minus = tuned["minus_knn"]
    assert minus["value"] == pytest.approx(value - metrics["colours/knn/accuracy"], abs=1e-5)
    assert minus["low"] <= minus["value"] <= minus["high"]
    assert (tuned["recipe"]["test_px"], tuned["recipe"]["crop"]) == (32, pytest.approx(32 / 36))
    answers = read_ranks(root / "out" / RANKS).ranked["colours", "fine_tuning"]  # so that two models are compared by it
    assert (answers.ranks == 1).mean() == pytest.approx(value, abs=1e-5)
    page = (root / "out/report.html").read_text()
    assert "accuracy after fine-tuning" in page


def test_a_second_evaluation_gives_the_same_bytes(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    assert evaluate(root, "again") == 0
    said = capsys.readouterr().err
    assert "evaluate: colours: then fine-tuning, 1 run(s)" in said
    assert "colours/fine_tuning minus knn: " in said
    assert (root / "again/report.json").read_bytes() == (root / "out/report.json").read_bytes()


@pytest.mark.parametrize(("settings", "sizes", "lengths"), [
    ({"preset": "small"}, (32, 32, 32), [40, 40]),
    ({"preset": "small", "train_px": 48, "epochs": 1}, (48, 48, 48), [10, 10]),
    ({"preset": "fine_grained"}, (289, 289, 360), [10_000, 10_000]),
    ({"preset": "imagenet"}, (289, 475, 600), [1000, 1000]),
    ({"preset": "imagenet", "train_px": 64, "test_px": 72, "epochs": 2}, (64, 64, 72), [20, 20]),
])  # fmt: skip
def test_settings_change_a_preset(settings, sizes, lengths):
    recipe = recipe_of(FineTuningSettings(**settings), TINY)
    assert (*(phase.train_px for phase in recipe.phases), recipe.test_px) == sizes
    assert [phase.length(10.0) for phase in recipe.phases] == lengths
    assert recipe.view(32).square_px == 36  # as the model's own crops


def test_at_the_models_size_fine_tuning_sees_what_the_model_sees(root):
    """Equal crops and equal features, up to the length of 1 of an embedding."""
    rows = np.random.default_rng(0).integers(0, 256, size=(3, 50, 70, 3), dtype=np.uint8)
    images = [encoded(row) for row in rows]
    towers = ModelTowers(root / "model")
    view = recipe_of(FineTuningSettings(preset="small"), TINY).view(TINY.image_px)
    with ThreadPoolExecutor(1) as pool:
        crops = Pictures("test", images, np.zeros(3, dtype=np.int64)).centre(np.arange(3), view, pool)
    shown = np.stack([towers.crop(image) for image in images])
    assert crops.tobytes() == shown.tobytes()
    model = load_model(root / "model")
    classifier = Classifier(model.vision_model, 2, seed=0).eval()
    with torch.inference_mode():
        features = model.vision_projection(classifier.tower(to_pixels(crops))).numpy()
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    assert features == pytest.approx(towers.embed_crops(shown), abs=1e-5)


def test_runs_are_a_setting():
    assert recipe_of(FineTuningSettings(preset="fine_grained"), TINY).num_runs == 3
    assert recipe_of(FineTuningSettings(preset="fine_grained", runs=1), TINY).num_runs == 1
