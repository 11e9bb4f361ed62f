"""The ranks of a version on today's sets: from its run, or by measuring its registered model."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from align.errors import DataError
from align.formats.query_ranks import RANKS, write_ranks
from align.release.promotion import evidence as module
from align.release.promotion.evidence import model_folder
from align.release.registration.shown import pictures
from tests.support.empty_versions import version
from tests.support.memory_mlflow import MemoryTracker
from tests.support.registered import SETS, ranks


def test_pictures_of_each_set_have_keys_that_mlflow_takes(tmp_path):
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"classes": {"pets-37": {}, "tiere_ü": {}, "no picture": {}}}))
    for name in ("pets-37_confusion.png", "tiere_ü_confusion.png", "recall.png"):
        (folder / name).touch()
    assert sorted(pictures([folder])) == ["pets-37/confusion", "retrieval/recall"]


OTHERS = {"concepts": "e" * 64}


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return MemoryTracker(tmp_path / "mlflow")


@pytest.fixture
def made(tracker):
    """A version with a model folder, measured on other sets than today's."""
    made = version(tracker, Path(), ranks(0.5, OTHERS))
    config = tracker.root / made.run_id / "model/artifacts/finetuned/config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    return made


def judged(tracker, made):
    recorded = module.from_run(made, tracker)
    return module.evidence(made, recorded, SETS, tracker=tracker, today=SETS, command=["--set=x=1"])


@pytest.mark.parametrize(("found", "is_used"), [(SETS, True), (OTHERS, False)])
def test_what_was_measured_now_counts_if_it_is_of_the_wanted_sets(tracker, made, monkeypatch, found, is_used):
    measured = []

    def measure(model, out, options):
        measured.append((model.name, options))
        out.mkdir(parents=True, exist_ok=True)
        write_ranks(ranks(0.7, found), out / RANKS)

    monkeypatch.setattr(module, "_measure", measure)
    for _ in range(2):
        if is_used:
            done = judged(tracker, made)
            assert done.ranks.sets == SETS and done.origin.endswith("its registered model was measured on today's sets")
        else:
            with pytest.raises(DataError, match="the sets changed while they were measured; repeat the command"):
                judged(tracker, made)
    assert measured == [("finetuned", ["--set=x=1"])] * (1 if is_used else 2)  # what fits is kept


def test_a_model_that_cannot_be_measured_says_so_in_its_last_words(tracker, made, monkeypatch):
    program = Path("python").absolute()
    program.write_text("#!/bin/sh\necho loading >&2\necho 'align: error: no such tower' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(DataError, match=r"^the model could not be measured: no such tower$"):
        judged(tracker, made)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_version_has_one_model_folder(tracker, made, number):
    packaged = tracker.root / made.run_id / "model"
    if number == 2:
        shutil.copytree(packaged / "artifacts/finetuned", packaged / "artifacts/other")
    if number == 0:
        shutil.rmtree(packaged / "artifacts")
    if number == 1:
        assert model_folder(packaged, made) == packaged / "artifacts/finetuned"
        return
    with pytest.raises(DataError, match="version 1: its registered files hold no model folder that this code reads"):
        model_folder(packaged, made)
