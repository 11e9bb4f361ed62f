"""The words' loss and labels against plain references, the two phases of a run, its rates, and resuming it."""

import functools
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from align.errors import ConfigError, StoppedError
from align.model.dual_encoder import DualEncoder
from align.training.batches.batch import Batch, Tokens
from align.training.lamb import parameter_groups
from align.training.ranks.process_group import launch
from align.training.state import learning_rate_at
from align.training.step import compute_word_gradients
from align.training.train import run
from align.training.words import Words, shares_of, words_in
from tests.support.training_data import MODEL, TermAt, assert_same, finetune_config, plan, pretrain_config

TEXTS = ["a red bar at the top", "Left side in blue", "blue 42", "nothing known", "red red blue", "the top", "a", "red"]
SHARES = {"a": 0.25, "blue": 0.5, "red": 0.375, "top": 0.25}
CPU = torch.device("cpu")
#: Four steps on words, two of warm-up in either phase.
PHASES = {"words_steps": 4, "warmup_steps": 2, "optimiser": "muon", "learning_rate": 0.01}


def test_labels_are_words_with_a_letter_of_enough_samples():
    assert words_in("A red BAR, 42 1920x1080 don't 1,000 — bar") == {"a", "red", "bar", "1920x1080", "don't"}
    shares = shares_of([["a red bar", "red"], ["Red 7", "blue"], ["a blue 7"], ["green"]], 2)
    assert shares == {"a": pytest.approx(1.5 / 4), "blue": pytest.approx(1.5 / 4), "red": pytest.approx(1.5 / 4)}
    assert list(shares) == ["a", "blue", "red"]


@pytest.mark.parametrize("kind", ["binary", "softmax"])
def test_the_loss_is_that_of_its_definition(kind):
    words = Words(SHARES, 5, pretrain_config(words_loss=kind), CPU)
    features, expected = torch.randn(len(TEXTS), 5, generator=torch.Generator().manual_seed(0)), 0.0
    for text, logits in zip(TEXTS, words.head(features).tolist(), strict=True):
        own = {word for word in text.lower().split() if word in SHARES}
        total = sum(map(math.exp, logits))
        for word, logit in zip(SHARES, logits, strict=True):
            if kind == "binary":
                expected += math.log1p(math.exp(-logit if word in own else logit))
            elif word in own:
                expected -= math.log(math.exp(logit) / total) / len(own)
    assert float(words.loss(features, words.targets(TEXTS)).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_first_biases_predict_how_frequent_labels_are():
    binary, softmax = (Words(SHARES, 5, pretrain_config(words_loss=kind), CPU) for kind in ("binary", "softmax"))
    shares = torch.tensor([*SHARES.values()])
    torch.testing.assert_close(binary.head.bias.sigmoid(), shares)
    torch.testing.assert_close(softmax.head.bias.softmax(0), shares / shares.sum())
    assert torch.equal(binary.head.weight, softmax.head.weight) and 0.1 < float(binary.head.weight.std().detach()) < 0.4


def _gradients(recipe, out, ranks):
    torch.manual_seed(0)
    model = DualEncoder(MODEL, 50).train()
    words = Words(SHARES, model.vision_model.width, recipe, CPU)
    generator, share = np.random.default_rng(0), 32 // ranks.world_size
    rows = slice(ranks.rank * share, (ranks.rank + 1) * share)
    images = torch.from_numpy(generator.integers(0, 255, (32, 32, 32, 3), dtype=np.uint8))
    draws = torch.from_numpy(generator.random((32, model.vision_model.num_blocks), dtype=np.float32))
    batch = Batch(images[rows], [], draws[rows], Tokens.of([[1]], 0), drawn=(TEXTS * 4)[rows])
    found = compute_word_gradients(model, words, recipe, ranks, batch)
    named = [*model.named_parameters(), *words.head.named_parameters()]
    torch.save((model, words, images, draws, found, {name: param.grad for name, param in named}), out / f"{ranks.rank}")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", ["binary", "softmax"])
def test_gradients_are_those_of_the_global_batch(tmp_path, kind, world_size):
    recipe = pretrain_config(words_loss=kind, micro_batch=8)
    launch(functools.partial(_gradients, recipe, tmp_path), world_size, 1)
    ours = [torch.load(tmp_path / f"{rank}", weights_only=False) for rank in range(world_size)]
    model, words, images, draws, *_ = ours[0]
    model.zero_grad(), words.head.zero_grad()
    logits = words.head(model.vision_model(images.permute(0, 3, 1, 2).float() / 127.5 - 1, draws))
    has = torch.tensor([[label in text.lower().split() for label in SHARES] for text in TEXTS * 4]).float()
    if kind == "binary":
        loss = F.binary_cross_entropy_with_logits(logits, has) * len(SHARES)
    else:
        loss = F.cross_entropy(logits, has / has.sum(1, keepdim=True).clamp(min=1))
    loss.backward()
    named = {**dict(model.named_parameters()), **dict(words.head.named_parameters())}
    largest = max(float(param.grad.norm()) for param in named.values() if param.grad is not None)
    for *_, found, grads in ours:
        assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, param in named.items():
            assert (grads[name] is None) == (param.grad is None) == (not name.startswith(("vision_model", "w", "b")))
            if param.grad is not None:
                apart = float((grads[name] - param.grad).norm() / param.grad.norm().clamp(min=1e-3 * largest))
                assert apart < 2e-3, f"{name}: {apart}"


def test_rates_of_the_two_phases():
    recipe = pretrain_config(num_steps=12, words_steps=4, warmup_steps=2, learning_rate=1.0)
    image, text = ([learning_rate_at(step, recipe, late=late) for step in range(12)] for late in (False, True))
    down = [(12 - step) / 6 for step in range(6, 12)]
    assert image == pytest.approx([0.5, 1, 1, 1, 1, 1, *down])
    assert text == pytest.approx([0, 0, 0, 0, 0.5, 1, *down])
    plain = pretrain_config(num_steps=12, warmup_steps=2, learning_rate=1.0)
    expected = [0.5, 1, *((12 - step) / 10 for step in range(2, 12))]
    assert [learning_rate_at(step, plain) for step in range(12)] == expected
    assert not any(group["late"] for group in parameter_groups(DualEncoder(MODEL, 50), plain))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    recipe = pretrain_config(**PHASES, checkpoint_every_steps=1, keep_checkpoints=9)
    planned = plan(data, tmp_path_factory.mktemp("whole"), recipe)
    return planned, run(planned)


def test_the_first_phase_changes_the_image_tower_alone(whole):
    planned, _ = whole
    folder = planned.folder().directory
    saved = {step: torch.load(folder / f"step-{step:08d}.pt", weights_only=True) for step in (1, 3, 4, 5)}
    image = [name for name in saved[1]["model"] if name.startswith("vision_model.") and name.endswith(".weight")]
    rest = [name for name in saved[1]["model"] if not name.startswith("vision_model.")]
    assert rest and all(torch.equal(saved[1]["model"][name], saved[4]["model"][name]) for name in rest)
    assert not any(torch.equal(saved[1]["model"][name], saved[4]["model"][name]) for name in image)
    assert not torch.equal(saved[4]["model"]["log_temperature"], saved[5]["model"]["log_temperature"])
    assert [saved[step]["words"] is None for step in saved] == [False, False, True, True]
    steps = {step: {int(of["step"]) for of in saved[step]["optimiser"]["state"].values()} for step in saved}
    assert steps == {1: {1}, 3: {3}, 4: {4}, 5: {1, 5}}


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(data, whole, tmp_path, stop):
    """Of which the first phase, or the second one, is interrupted."""
    _, uninterrupted = whole
    recipe = pretrain_config(**PHASES)
    with pytest.raises(StoppedError, match=f"after step {stop + 1} of 8"):
        run(plan(data, tmp_path, recipe, log=TermAt(stop)))
    resumed = run(plan(data, tmp_path, recipe))
    assert_same(resumed, uninterrupted)


def test_two_ranks_train_as_one_process_does(data, tmp_path):
    """At a small rate: rounding grows with it."""
    recipes = (pretrain_config(**PHASES | {"learning_rate": 0.002}, num_processes=count) for count in (1, 2))
    one, two = (run(plan(data, tmp_path / str(recipe.num_processes), recipe)).rows for recipe in recipes)
    for name in ("train/loss", "train/gradient_norm", "train/temperature"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=2e-3), name


def test_what_cannot_be_is_refused_and_fine_tuning_has_no_words(data, tmp_path):
    for wrong, why in (({"words_steps": 6}, "must be less than num_steps 8"),
                       ({"words_steps": 2, "locked": "image", "image_weights": {"path": "x", "sha256": "a" * 64}},
                        "trains the image tower")):  # fmt: skip
        with pytest.raises(ValidationError, match=why):
            pretrain_config(**wrong)
    for wrong in ({"shard_weights": True}, {"precision": "float16"}):
        assert "words_steps needs" in pretrain_config(words_steps=2, **wrong).against(MODEL, 1, 1)
    with pytest.raises(ConfigError, match="words_min_count 99: no word has so many samples"):
        run(plan(data, tmp_path, pretrain_config(**PHASES, words_min_count=99)))
    assert finetune_config(words_steps=100).num_words_steps == 0
