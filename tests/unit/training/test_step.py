"""Gradients of a step: equal for any micro-batch and any number of ranks; little memory; interruptible."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from align.config.recipe import Recipe
from align.errors import ConfigError, TrainingError
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.training import step as module
from align.training.batch import Batch
from align.training.plan import TrainingPlan
from align.training.process_group import Ranks, launch
from align.training.run import run
from align.training.step import Gradients, Interrupted, compute_gradients
from tests.support import training_data
from tests.support.training_data import MODEL, pretrain_config

ALONE = Ranks(0, 1, torch.device("cpu"))
BATCH = 32


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training_data.write(tmp_path_factory.mktemp("data"))[1]


def whole_batch() -> Batch:
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(0, 255, (BATCH, 32, 32, 3), dtype=np.uint8))
    words = ["red", "green", "a bar at the top", "left side in blue", "yellow"]
    texts = [" ".join(words[: 1 + index % 5]) for index in range(BATCH)]
    return Batch(images, texts, torch.from_numpy(generator.random((BATCH, 16), dtype=np.float32)))


def gradients(tokenizer: Path, recipe: Recipe, ranks: Ranks = ALONE, stop: Callable[[], bool] = lambda: False):  # type: ignore[no-untyped-def]  # (loss and norm, gradients by name)
    torch.manual_seed(0)
    words = TextTokenizer.load(tokenizer, MODEL.max_tokens)
    model = DualEncoder(MODEL, words.vocab_size).train()
    batch, share = whole_batch(), BATCH // ranks.world_size
    rows = slice(ranks.rank * share, (ranks.rank + 1) * share)
    batch = Batch(batch.images[rows], batch.texts[rows], batch.draws[rows, : model.vision_model.num_blocks])
    step = compute_gradients(model, recipe, ranks, words, batch, stop)
    return step, {name: param.grad for name, param in model.named_parameters()}


def assert_equal(ours: tuple[Gradients, dict[str, Tensor]], theirs: tuple[Gradients, dict[str, Tensor]]) -> None:
    assert ours[0].loss == pytest.approx(theirs[0].loss, rel=1e-6)
    assert ours[0].norm == pytest.approx(theirs[0].norm, rel=1e-3)
    largest = max(float(gradient.norm()) for gradient in theirs[1].values())
    for name, gradient in theirs[1].items():  # weights that batch-norm cancels have gradients of rounding errors
        apart = float((ours[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-3 * largest))
        assert apart < 2e-3, f"{name}: {apart}"  # float32, through batch-norm over four samples


@pytest.mark.parametrize("micro_batch", [4, 8, 12, 32])
def test_a_micro_batch_changes_no_gradient(tokenizer: Path, micro_batch: int) -> None:
    """Nor that of the temperature: adding it once per part would be wrong by the number of parts."""
    whole = gradients(tokenizer, pretrain_config(batch_size=BATCH))
    assert float(whole[1]["log_temperature"].abs()) > 1e-3
    assert_equal(gradients(tokenizer, pretrain_config(batch_size=BATCH, micro_batch=micro_batch)), whole)


def test_clipping_scales_all_gradients_together(tokenizer: Path) -> None:
    (loss, norm), free = gradients(tokenizer, pretrain_config(batch_size=BATCH))
    assert norm == pytest.approx(float(sum((grad.square().sum() for grad in free.values()), torch.tensor(0.0)).sqrt()))
    (same_loss, same_norm), clipped = gradients(tokenizer, pretrain_config(batch_size=BATCH, clip_norm=norm / 4))
    assert (same_loss, same_norm) == (loss, norm)
    for name, gradient in free.items():
        torch.testing.assert_close(clipped[name], gradient / 4)
    assert all(
        torch.equal(grad, free[name])
        for name, grad in gradients(tokenizer, pretrain_config(batch_size=BATCH, clip_norm=2 * norm))[1].items()
    )


def _save(tokenizer: Path, micro_batch: int | None, out: Path, ranks: Ranks) -> None:
    step, grads = gradients(tokenizer, pretrain_config(batch_size=BATCH, micro_batch=micro_batch), ranks)
    torch.save((tuple(step), grads), out)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(2, None), (2, 4), pytest.param(4, 8, marks=pytest.mark.full)])
def test_ranks_and_micro_batches_change_no_gradient(
    tokenizer: Path, tmp_path: Path, world_size: int, micro_batch: int | None, forked_ranks: None
) -> None:
    launch(functools.partial(_save, tokenizer, micro_batch, tmp_path / "out.pt"), world_size, 1)
    step, grads = torch.load(tmp_path / "out.pt")
    assert_equal((Gradients(*step), grads), gradients(tokenizer, pretrain_config(batch_size=BATCH)))


def test_activations_are_those_of_a_micro_batch(tokenizer: Path) -> None:
    def most_saved(micro_batch: int | None) -> int:
        held = most = 0

        class Saved:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal held, most
                self.tensor, self.size = tensor, tensor.nbytes
                held += self.size
                most = max(most, held)

            def __del__(self) -> None:
                nonlocal held
                held -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            gradients(tokenizer, pretrain_config(batch_size=BATCH, micro_batch=micro_batch))
        return most

    assert most_saved(4) < most_saved(None) / 4


def test_a_stop_between_two_parts_interrupts_the_step(tokenizer: Path) -> None:
    asked: list[int] = []
    recipe = pretrain_config(batch_size=BATCH, micro_batch=8)

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 10  # four parts of images, four of texts, then the backward pass

    with pytest.raises(Interrupted):
        gradients(tokenizer, recipe, stop=stop)
    assert len(asked) == 10


def test_a_run_stopped_within_a_step_resumes_from_the_last_whole_one(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, recipe = (tokenizer.parent / "shards", tokenizer), pretrain_config(micro_batch=4)

    def plan(name: str) -> TrainingPlan:
        return training_data.plan(data, tmp_path / name, recipe)

    whole = run(plan("whole"))
    asked: list[int] = []

    def check(stop: Callable[[], bool]) -> None:
        asked.append(1)
        if len(asked) == 8 * 5 + 6:  # a step has eight parts: within the sixth
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(module, "_check", check)
        with pytest.raises(TrainingError, match="stopped by SIGTERM after step 5 of 8"):
            run(plan("parts"))
    resumed = run(plan("parts"))
    assert resumed.rows == whole.rows
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_micro_batch_that_does_not_fit_batch_norm_is_refused(tokenizer: Path, tmp_path: Path) -> None:
    data = (tokenizer.parent / "shards", tokenizer)
    for changes, micro_batch, message in (
        ({"batch_norm": "batch"}, 4, "micro_batch needs model.batch_norm: group"),
        ({}, 6, "micro_batch 6 must be a multiple of model.batch_norm_group 4"),
    ):
        recipe = pretrain_config(micro_batch=micro_batch)
        plan = training_data.plan(data, tmp_path, recipe, model=MODEL.model_copy(update=changes))
        with pytest.raises(ConfigError, match=message):
            run(plan)
