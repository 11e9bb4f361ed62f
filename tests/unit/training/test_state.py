"""Dynamic loss scaling skips the steps that overflow and changes nothing else. On a CPU the towers run in float32."""

from functools import partial

import pytest
import torch
from torch.amp import GradScaler

from align.errors import NonFiniteLossError, StoppedError
from align.training import state as module
from align.training.train import run
from tests.support import training_data
from tests.support.training_data import TermAt, pretrain_config

HUGE = 2.0**127  # the gradients exceed float32


def plan(data, checkpoints, log=None, **changes):
    recipe = pretrain_config(**({"precision": "float16", "log_every_steps": 1} | changes))
    return training_data.plan(data, checkpoints, recipe, log=log)


def assert_same(ours, theirs):
    assert ours.rows == theirs.rows
    for name, weight in theirs.model.state_dict().items():
        assert torch.equal(weight, ours.model.state_dict()[name]), name


def test_gradients_that_always_overflow_end_the_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GradScaler", partial(GradScaler, init_scale=HUGE, backoff_factor=1e-39))
    with pytest.raises(NonFiniteLossError, match=r"overflow with a loss scale of 1.7.*e\+38 at step 1 "):
        run(plan(data, tmp_path))


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_scaling_alone_changes_no_bit(data, tmp_path, micro_batch):
    short = {"num_steps": 3, "validate_every_steps": 3, "clip_norm": 0.1, "micro_batch": micro_batch}
    plain = run(plan(data, tmp_path, precision="float32", **short))
    scaled = run(plan(data, tmp_path, **short))
    assert plain is not None and scaled is not None
    for row in scaled.rows:
        assert (row.pop("train/loss_scale"), row.pop("train/skipped_steps")) == (2.0**16, 0)
    assert_same(scaled, plain)


def test_steps_that_overflow_are_skipped_and_resumed_bit_for_bit(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GradScaler", partial(GradScaler, init_scale=HUGE, growth_interval=2))
    some = {"num_steps": 10, "validate_every_steps": 10}
    whole = run(plan(data, tmp_path / "whole", checkpoint_every_steps=1, keep_checkpoints=10, **some))
    scale, grown = HUGE, 0
    for row in whole.rows:
        before, scale = scale, row["train/loss_scale"]
        assert row["train/skipped_steps"] == (scale == before / 2)
        assert ("train/gradient_norm" in row) == (row["train/skipped_steps"] == 0)
        assert scale in (before / 2, before, 2 * before)
        grown += scale == 2 * before
    skipped = [row["train/skipped_steps"] for row in whole.rows]
    assert skipped[0] == 1 and grown > 0
    first = skipped.index(0)  # until then the schedule moved on, and the weights did not change
    folder = plan(data, tmp_path / "whole", **some).folder().directory
    states = [torch.load(folder / f"step-{step:08d}.pt", weights_only=True) for step in range(1, first + 2)]
    weights = [state["model"]["text_projection.weight"] for state in states]
    assert all(torch.equal(weight, weights[0]) for weight in weights[:first])
    assert not torch.equal(weights[first], weights[0])
    assert states[first]["optimiser"]["state"][0]["step"] == 1
    assert first > 1 and whole.rows[1]["train/learning_rate"] != whole.rows[0]["train/learning_rate"]
    with pytest.raises(StoppedError, match=f"after step {first + 3} "):
        run(plan(data, tmp_path / "parts", log=TermAt(first + 2), **some))
    resumed = run(plan(data, tmp_path / "parts", **some))
    assert resumed is not None
    assert_same(resumed, whole)
