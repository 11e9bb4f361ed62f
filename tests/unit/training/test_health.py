"""What is said when a run's signs leave their bounds, and what the signs are."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from align.config.infrastructure import HealthConfig
from align.training.health import Health, effective_rank
from tests.support.params import load_params

CONFIG = load_params().section(HealthConfig).model_copy(update={"stuck_steps": 5})


def watched(capsys: pytest.CaptureFixture[str], steps: list[dict[str, float]], **changes: Any) -> list[str]:
    """What is said over some steps; a step without a value has a good one, and the temperature moves."""
    health = Health(CONFIG.model_copy(update=changes), "pretrain")
    for number, values in enumerate(steps, start=1):
        health.step(number, **({"temperature": 0.1 + 0.001 * number, "gradient_norm": 1.0} | values))
    return capsys.readouterr().err.splitlines()


def test_a_run_that_is_well_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert watched(capsys, [{}] * 60) == []


def test_the_temperature(capsys: pytest.CaptureFixture[str]) -> None:
    said = watched(capsys, [{}, {"temperature": 0.001}, {"temperature": 0.0009}, {}])
    assert said == [
        "pretrain: warning: step 2: temperature 0.001, not in [0.005, 2]",
        "pretrain: step 4: temperature 0.104 is within its bounds again",
    ]
    said = watched(capsys, [{"temperature": 0.07}] * 9)
    assert said == ["pretrain: warning: step 6: change of the temperature 0, in 5 steps: it is stuck"]
    assert watched(capsys, [{"temperature": 0.07}] * 9, temperature_moves=None) == []


def test_a_jump_of_the_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    assert watched(capsys, [{}] * 10 + [{"gradient_norm": 50.0}]) == []  # a median of ten says little
    said = watched(capsys, [{}] * 30 + [{"gradient_norm": 50.0}, {}])
    assert said[0] == "pretrain: warning: step 31: gradient norm 50, above 20"
    assert len(said) == 2


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    health = Health(CONFIG, "finetune")
    good = {"val/effective_rank": 40.0, "val/batch_norm_gap": 0.01, "train/loader_wait_share": 0.01}
    health.row(1, good, 64)
    assert capsys.readouterr().err == "" and health.alarms == {}
    health.row(2, {"val/effective_rank": 1.5, "val/batch_norm_gap": 0.5, "train/loader_wait_share": 0.4}, 64)
    said = capsys.readouterr().err
    assert "embeddings collapse" in said and "running statistics do not fit" in said and "loader wait share" in said
    assert said.count("warning: ") == 3
    assert set(health.alarms) == {
        "effective rank",
        "batch-norm gap",
        "loader wait share",
    }
    assert health.of_the_model() == 2  # a slow loader says nothing about the model
    health.row(3, {"train/loss": 1.0}, 64)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_directions(rank: int) -> None:
    """Two opposite points along each of some axes: the spectrum is flat over them."""
    axes = torch.eye(8)[:rank]
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(torch.cat([axes, -axes])[:, :8].repeat(3, 1)) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_of_collapsed_and_of_random_embeddings() -> None:
    assert effective_rank(torch.ones(10, 4)) == 1.0
    torch.manual_seed(0)
    random = F.normalize(torch.randn(2000, 16), dim=-1)
    assert 15.5 < effective_rank(random) <= 16
    cone = F.normalize(torch.ones(16) + 0.01 * torch.randn(50, 16), dim=-1)  # fewer rows than a rank needs
    assert 1 < effective_rank(cone[:5]) <= 4 + 1e-6
    assert math.isfinite(effective_rank(cone))
