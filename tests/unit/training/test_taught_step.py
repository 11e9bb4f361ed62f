"""A step with a teacher: gradients equal for any micro-batch and number of ranks, and with sharded weights."""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from align.config.recipe import Recipe
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.training.batches.batch import Batch
from align.training.ranks.gathering import gathered
from align.training.ranks.process_group import Ranks, launch
from align.training.ranks.sharding import shard
from align.training.step import compute_gradients
from tests.support import training_data
from tests.support.double_precision import double_precision
from tests.support.training_data import MODEL, pretrain_config

ALONE = Ranks(0, 1, torch.device("cpu"))
BATCH, WIDTH = 32, 24
TEACHER = {"embeds": [{"path": "teacher", "digest": "d"}], "weight": 0.6, "temperature": 0.2}
#: Whole, in parts, and with weights that the ranks share.
WAYS: dict[str, dict[str, object]] = {
    "whole": {}, "micro_batch": {"micro_batch": 8}, "shard_weights": {"micro_batch": 8, "shard_weights": True},
}  # fmt: skip


class Step(NamedTuple):
    """A step's loss, and its gradients by name."""

    loss: float
    grads: dict[str, Tensor]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_data.write(tmp_path_factory.mktemp("data"))[1]


def step(tokenizer: Path, recipe: Recipe, ranks: Ranks = ALONE) -> Step:
    """In float64."""
    torch.manual_seed(0)
    words = TextTokenizer.load(tokenizer, MODEL.max_tokens)
    model = DualEncoder(MODEL, words.vocab_size).train().double()
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 255, (BATCH, 32, 32, 3), dtype=np.uint8))
    texts = [" ".join(["red", "green", "a bar at the top", "yellow"][: 1 + row % 4]) for row in range(BATCH)]
    draws = torch.from_numpy(generator.random((BATCH, model.vision_model.num_blocks), dtype=np.float32))
    teacher = torch.nn.functional.normalize(torch.from_numpy(generator.normal(size=(BATCH, 2, WIDTH))), dim=2).half()
    share = BATCH // ranks.world_size
    rows = slice(ranks.rank * share, (ranks.rank + 1) * share)
    if recipe.shard_weights and ranks.world_size > 1:
        shard(model, ranks)
    batch = Batch(images[rows], texts[rows], draws[rows], teacher=teacher[rows] if recipe.teacher else None)
    with double_precision():
        loss = float(compute_gradients(model, recipe, ranks, words, batch).loss)
    return Step(loss, gathered({name: param.grad for name, param in model.named_parameters()}))


def _save(tokenizer: Path, out: Path, ranks: Ranks) -> None:
    found = {
        name: tuple(step(tokenizer, pretrain_config(batch_size=BATCH, teacher=TEACHER, **changes), ranks))
        for name, changes in WAYS.items()
    }
    if ranks.leads:
        torch.save(found, out)


def assert_equal(ours: Step, theirs: Step, what: str) -> None:
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-10)
    largest = max(float(gradient.norm()) for gradient in theirs.grads.values())
    for name, gradient in theirs.grads.items():  # weights that batch-norm cancels have gradients of rounding errors
        apart = float((ours.grads[name] - gradient).norm() / gradient.norm().clamp(min=1e-3 * largest))
        assert apart < 1e-10, f"{what}, {name}: {apart}"


def test_ranks_micro_batches_and_shards_change_no_gradient(tokenizer: Path, tmp_path: Path) -> None:
    launch(functools.partial(_save, tokenizer, tmp_path / "out.pt"), 2, 1)
    whole = step(tokenizer, pretrain_config(batch_size=BATCH, teacher=TEACHER))
    untaught = step(tokenizer, pretrain_config(batch_size=BATCH))
    name = "text_projection.weight" if "text_projection.weight" in whole.grads else next(iter(whole.grads))
    assert float((whole.grads[name] - untaught.grads[name]).norm() / untaught.grads[name].norm()) > 0.05
    assert float(whole.grads["log_temperature"].abs()) > 1e-3
    assert_equal(step(tokenizer, pretrain_config(batch_size=BATCH, teacher=TEACHER, micro_batch=8)), whole, "alone")
    for way, found in torch.load(tmp_path / "out.pt").items():
        assert_equal(Step(*found), whole, way)
