"""What is said when a run's signs leave their bounds, and what the signs are."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from align.config.recipe import PretrainConfig
from align.model import mbconv
from align.model.dual_encoder import DualEncoder
from align.training import health as health_module
from align.training.health import Health
from align.training.progress import count_operations
from align.training.state import learning_rate_at
from align.training.validation import effective_rank, possible_rank
from tests.support.params import load_params
from tests.support.training_data import MODEL


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """A temperature is stuck after five steps."""
    monkeypatch.setattr(health_module, "STUCK_STEPS", 5)


def watched(capsys, steps, *, learns_temperature=True):
    """What is said over some steps; a step without a value has a good one, and the temperature moves."""
    health = Health("pretrain", learns_temperature=learns_temperature)
    for number, values in enumerate(steps, start=1):
        health.step(number, **({"temperature": 0.1 + 0.001 * number, "gradient_norm": 1.0} | values))
    return capsys.readouterr().err.splitlines()


def test_a_run_that_is_well_says_nothing(capsys):
    assert watched(capsys, [{}] * 60) == []


def test_the_temperature(capsys):
    said = watched(capsys, [{}, {"temperature": 0.001}, {"temperature": 0.0009}, {}])
    assert said == [
        "pretrain: warning: step 2: temperature 0.001, not in [0.005, 2]",
        "pretrain: step 4: temperature 0.104 is within its bounds again",
    ]
    said = watched(capsys, [{"temperature": 0.07}] * 9)
    assert said == ["pretrain: warning: step 6: change of the temperature 0, in 5 steps: it is stuck"]
    assert watched(capsys, [{"temperature": 0.07}] * 9, learns_temperature=False) == []


def test_a_jump_of_the_gradients(capsys):
    assert watched(capsys, [{}] * 10 + [{"gradient_norm": 50.0}]) == []  # a median of ten says little
    said = watched(capsys, [{}] * 30 + [{"gradient_norm": 50.0}, {}])
    assert said[0] == "pretrain: warning: step 31: gradient norm 50, above 20"
    assert len(said) == 2


def test_rows(capsys):
    health = Health("finetune")
    good = {"val/effective_rank": 40.0, "val/batch_norm_gap": 0.01, "train/loader_wait_share": 0.01}
    health.row(1, good, 64)
    assert capsys.readouterr().err == "" and health.alarms == {}
    health.row(2, {"val/effective_rank": 1.5, "val/batch_norm_gap": 0.5, "train/loader_wait_share": 0.4}, 64)
    said = capsys.readouterr().err
    assert "embeddings collapse" in said and "running statistics do not fit" in said and "loader wait share" in said
    assert said.count("warning: ") == 3
    assert set(health.alarms) == {"effective rank", "batch-norm gap", "loader wait share"}
    bad = {"train/alarms": 2.0, "train/alarm/effective rank": 1.0, "train/alarm/batch-norm gap": 1.0}
    assert health.of_the_model() == bad  # a slow loader says nothing about the model
    health.row(3, {"train/loss": 1.0}, 64)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("num_images", "possible"), [(4, 3), (10, 9), (500, 160), (10_000, 160)])
def test_few_validation_images_are_no_collapse(num_images, possible, capsys):
    """N images span N - 1 directions, so a share of the width alone would alarm at every row of a small split."""
    model = SimpleNamespace(config=SimpleNamespace(embed_width=160))
    assert possible_rank(model, num_images) == possible
    health = Health("pretrain")
    health.row(1, {"val/effective_rank": 1 + 0.06 * (possible - 1)}, possible)
    assert health.alarms == {}
    health.row(2, {"val/effective_rank": 1.0}, possible)
    assert "effective rank" in health.alarms


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_directions(rank):
    """Two opposite points along each of some axes: the spectrum is flat over them."""
    axes = torch.eye(8)[:rank]
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(torch.cat([axes, -axes])[:, :8].repeat(3, 1)) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_of_collapsed_and_of_random_embeddings():
    assert effective_rank(torch.ones(10, 4)) == 1.0
    torch.manual_seed(0)
    random = F.normalize(torch.randn(2000, 16), dim=-1)
    assert 15.5 < effective_rank(random) <= 16
    cone = F.normalize(torch.ones(16) + 0.01 * torch.randn(50, 16), dim=-1)  # fewer rows than a rank needs
    assert 1 < effective_rank(cone[:5]) <= 4 + 1e-6
    assert math.isfinite(effective_rank(cone))


@pytest.mark.parametrize("num_tokens", [1, 5, 16])
def test_operations_are_those_of_the_towers_at_the_text_s_length(num_tokens, monkeypatch):
    """Written out for a text; counted on real tensors for an image, without the zeros in a CPU's kernels."""
    monkeypatch.setattr(mbconv, "pads_maps", lambda _: True)
    operations = count_operations(MODEL, 100)
    width, layers = MODEL.text_tower.width, MODEL.text_tower.layers
    dense = 4 * width * width + 2 * width * 4 * width  # query, key, value, output, and the two of the feed-forward part
    attention = 2 * num_tokens * width  # scores, and their sum over values
    a_text = 2 * (layers * num_tokens * (dense + attention) + width * MODEL.embed_width)
    assert operations.text(num_tokens) == a_text
    model = DualEncoder(MODEL, 100).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.encode_image(torch.zeros(1, 3, MODEL.image_px, MODEL.image_px))
    assert operations.image == counter.get_total_flops() > 0


BASE = (
    load_params().section(PretrainConfig).model_copy(update={"learning_rate": 1.0, "warmup_steps": 4, "num_steps": 12})
)


def _rates(**changes):
    recipe = BASE.model_copy(update=changes)
    return [learning_rate_at(step, recipe) for step in range(recipe.num_steps)]


def test_linear():
    assert _rates() == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert _rates(warmup_steps=0)[0] == 1.0


def test_cosine():
    rates = _rates(schedule="cosine")
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.5)  # in the middle of the decay
    assert rates[5] + rates[11] == pytest.approx(1.0)  # half a cosine is odd about its middle
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
