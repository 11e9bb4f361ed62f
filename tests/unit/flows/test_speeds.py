"""How long stages take, by what earlier runs of the checkout have measured."""

import json

import pytest

from flows.run.context import RunContext
from flows.speeds import expected_s, expected_time, keep_speed
from tests.support.params import PARAMS_FILE


@pytest.fixture(name="run")
def _run(tmp_path):
    """A checkout whose last run has measured two stages."""
    (tmp_path / "params.yaml").write_bytes(PARAMS_FILE.read_bytes())
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime/filter.json").write_text(json.dumps({"wall_s": 7190.0}))
    (tmp_path / "runtime/ingest.json").write_text("{")
    return RunContext(root=tmp_path, checkout=tmp_path)


def test_what_a_run_has_completed_is_kept_for_the_next_plan(run):
    assert expected_time(run, []) == "none: no stage is stale"
    assert expected_time(run, ["filter"]) == "unknown: none of these stages has been measured here"
    for stage in ("filter", "ingest", "never"):
        keep_speed(run, stage, 7200.0)  # with the start of DVC
    assert [file.name for file in run.root.glob(".align/speeds/*")] == ["filter.json"]
    (run.root / ".align/speeds/index.json").write_text("cut o")
    assert expected_time(run, ["index", "filter"]) == (
        "about 2 h 0 min with the starts of stages, by the last measured speeds and unknown for index"
    )


def test_training_takes_its_start_and_its_steps(run):
    recipe = run.params.values["pretrain"]
    pairs = recipe["num_steps"] * recipe["batch_size"]
    (run.root / "runtime/pretrain.json").write_text(json.dumps({"pairs_per_s": pairs / 100}))
    keep_speed(run, "pretrain", 130.0)
    assert expected_s(run, ["pretrain", "finetune"]) == {"pretrain": pytest.approx(130.0), "finetune": None}
    recipe["num_steps"] *= 2  # twice the steps, one start
    assert expected_s(run, ["pretrain"]) == {"pretrain": pytest.approx(230.0)}
    run.params.values["model"]["embed_width"] = 1  # another model has another speed
    assert expected_s(run, ["pretrain"]) == {"pretrain": None}
