"""`align evaluate` of a suite: a model and a suite are enough, and what will happen is said first."""

import json

import pytest

from align.cli import main
from align.formats.model_folder import model_digest
from tests.support import library_models, tiny_model
from tests.support.caption_sets import karpathy, pictures
from tests.support.class_sets import folder, parquet, tars
from tests.support.evaluation_sets import write_coloured_set
from tests.support.suites import suite


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a project."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path


def evaluate(root, file):
    model = root / "model" if (root / "model").exists() else tiny_model.write(root)
    return main(
        ["evaluate", "--set", f"paths.evaluation={file}", "--model", str(model), "--reports", str(root / "out")]
    )


@pytest.mark.parametrize("without", [(), ("--set", "evaluate.max_test_images=0")])
def test_a_folder_of_sets_needs_no_shards_and_no_promotion_that_knows_them(elsewhere, without):
    sets = elsewhere / "sets"
    write_coloured_set(sets, "concepts")
    model = ["--model", str(tiny_model.write(elsewhere)), "--reports", str(elsewhere / "out")]
    promoted = ["--set", "promote.metrics=[test/image_to_text/recall@1]"]
    assert main(["evaluate", "--set", f"paths.evaluation={sets}", *model, *promoted, *without]) == 0
    assert not any(name.startswith("test/") for name in json.loads((elsewhere / "out/metrics.json").read_text()))


def test_a_model_and_a_suite_are_enough(elsewhere, capsys):
    pictures(elsewhere / "images")
    (elsewhere / "images/1.jpg").write_bytes(b"no picture")
    both = {"tasks": ["zero_shot", "knn"], "templates": ["a {}."]}
    fitted = {"tasks": [*both["tasks"], "frozen"], "frozen": {"preset": "small"}}
    file = suite(
        elsewhere,
        {"name": "folder", "path": str(folder(elsewhere / "folder")), "format": "folder", **both, **fitted},
        {"name": "tars", "path": str(tars(elsewhere / "tars")), "format": "webdataset", **both},
        {"name": "hub", "path": str(parquet(elsewhere / "hub")), "format": "parquet", **both},
        {"name": "mine", "path": str(karpathy(elsewhere / "d.json")), "format": "karpathy", "tasks": ["retrieval"]},
    )
    assert evaluate(elsewhere, file) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "evaluate: folder: 6 pictures in 3 classes, zero-shot; 6 more to learn from"
    assert said[3] == "evaluate: mine: 2 pictures and 4 texts, retrieval"
    assert said[4].startswith("evaluate: 38 pictures take about ") and "GB of memory" in said[4]
    metrics = json.loads((elsewhere / "out/metrics.json").read_text())
    for metric in ("zero_shot/accuracy", "knn/accuracy"):
        assert metrics[f"tars/{metric}"] == metrics[f"folder/{metric}"]
    assert metrics["hub/knn/accuracy"] == metrics["folder/knn/accuracy"]  # its classes have other names
    assert {"folder/frozen/accuracy/low", "folder/frozen/accuracy/chance"} <= metrics.keys()
    assert "tars/frozen/accuracy" not in metrics
    report = json.loads((elsewhere / "out/report.json").read_text())
    model = {"folder": str(elsewhere / "model"), "digest": model_digest(elsewhere / "model"), "stage": "finetune"}
    assert report["model"] == model
    assert f"{model['folder']} ({model['digest'][:12]})" in (elsewhere / "out/report.html").read_text()
    assert report["sets"]["mine"]["num_left_out"] == 1 and report["sets"]["mine"]["num_texts"] == 3
    assert report["sets"]["folder"]["tasks"] == ["zero_shot", "knn", "frozen"]
    assert report["sets"]["folder"]["settings"] == {"frozen": {"preset": "small", "seed": 0}}
    assert "1.jpg" in report["sets"]["mine"]["left_out"]


def test_a_model_of_another_library_is_measured_and_compared_with_ours(elsewhere, capsys):
    both = {"tasks": ["zero_shot", "frozen"], "templates": ["a {}."], "frozen": {"preset": "small"}}
    one = {"name": "one", "path": str(folder(elsewhere / "folder")), "format": "folder", **both}
    pictures(elsewhere / "images")
    mine = {"name": "mine", "path": str(karpathy(elsewhere / "d.json")), "format": "karpathy", "tasks": ["retrieval"]}
    file, theirs = suite(elsewhere, one, mine), library_models.write(elsewhere, "clip")
    models = [str(tiny_model.write(elsewhere)), str(theirs)]
    given = ["evaluate", "--set", f"paths.evaluation={file}", "--reports", str(elsewhere / "out")]
    assert main([*given, "--compare", *models]) == 0
    assert f"B: {theirs}" in capsys.readouterr().out
    report = json.loads((elsewhere / "out/b/report.json").read_text())
    assert report["model"] == {"folder": str(theirs), "digest": model_digest(theirs), "library": "clip"}
    compared = json.loads((elsewhere / "out/report.json").read_text())
    assert compared["models"]["b"]["digest"] == model_digest(theirs)
    assert {"mine/image_to_text/recall@1", "one/frozen/accuracy"} <= compared["rows"].keys()
    assert main([*given[:-1], str(elsewhere / "alone"), "--model", str(theirs)]) == 0
    alone, beside = ((elsewhere / name / "metrics.json").read_bytes() for name in ("alone", "out/b"))
    assert alone == beside
    tuned = suite(
        elsewhere, {key: one[key] for key in ("name", "path", "format")} | {"tasks": ["zero_shot", "fine_tuning"]}
    )
    capsys.readouterr()
    assert main(
        [*given[:2], f"paths.evaluation={tuned}", *given[3:-1], str(elsewhere / "tuned"), "--model", str(theirs)]
    )
    assert "clip: a model of clip; task fine_tuning trains our own" in capsys.readouterr().err.splitlines()[-1]
