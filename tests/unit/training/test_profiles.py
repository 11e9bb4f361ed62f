"""The published recipes train: a step of each without a byte of weights, and real steps of the smallest."""

from pathlib import Path

import pytest
import torch

from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.model import ModelConfig
from align.config.params import profile_overrides
from align.config.recipe import PretrainConfig
from align.model.dual_encoder import DualEncoder
from align.training.lamb import Lamb, parameter_groups
from align.training.run import run
from tests.support import training_data
from tests.support.params import load_params
from tests.support.training_data import plan

#: Parameters in millions.
PUBLISHED = {"cc3m": 39.3, "ablation": 224.5, "coyo": 224.5, "paper": 873.4}


@pytest.mark.costs(3, "the towers of the paper, operation by operation")
@pytest.mark.parametrize("profile", PUBLISHED)
def test_a_step_of_a_published_recipe(profile: str) -> None:
    """On the meta device: forward, backward and the update of a group of pairs."""
    params = load_params(overrides=profile_overrides(profile))
    config, recipe = params.section(ModelConfig), params.section(PretrainConfig)
    assert recipe.against(config, 1, 8) is None
    pairs = config.batch_norm_group
    with torch.device("meta"):
        model = DualEncoder(
            recipe.trained(config), params.section(FitTokenizerConfig).vocab_size,
            text_init_std=recipe.text_init_std, position_init_scale=recipe.position_init_scale,
        ).train()  # fmt: skip
        model.gradient_checkpointing = recipe.gradient_checkpointing
        pixels = torch.zeros(pairs, 3, config.image_px, config.image_px)
        images = model.vision_projection(model.vision_model(pixels, torch.zeros(pairs, model.vision_model.num_blocks)))
        ids = torch.zeros(pairs, config.max_tokens, dtype=torch.int64)
        texts = model.text_projection(model.text_model(ids)[:, 0])
        assert images.shape == texts.shape == (pairs, config.embed_width)
        ((images * texts).sum() / model.temperature).backward()  # type: ignore[no-untyped-call]  # untyped in torch
    missing = [name for name, param in model.named_parameters() if param.grad is None]
    assert not missing
    betas = (recipe.beta1, recipe.beta2)
    optimiser = Lamb(parameter_groups(model, recipe), weight_decay=recipe.weight_decay, betas=betas, eps=recipe.eps)
    optimiser.set_learning_rate(recipe.learning_rate)
    optimiser.step()
    assert len(optimiser.state) == len(list(model.parameters()))
    millions = sum(param.numel() for param in model.parameters()) / 1e6
    assert millions == pytest.approx(PUBLISHED[profile], abs=0.1)


@pytest.mark.full
def test_real_steps_of_cc3m(tmp_path: Path) -> None:
    """B3 + Mini at 289 px on a batch of 16: half a minute."""
    shards, tokenizer = training_data.write(tmp_path, num_train=32, num_val=0, px=346)
    params = load_params(overrides=profile_overrides("cc3m"))
    changes = {
        "num_steps": 2, "warmup_steps": 1, "batch_size": 16, "micro_batch": None, "log_every_steps": 1,
        "validate_every_steps": 2, "checkpoint_every_steps": 2, "best_metric": None, "num_processes": 1,
    }  # fmt: skip
    recipe = params.section(PretrainConfig).model_copy(update=changes)
    trained = run(plan((shards, tokenizer), tmp_path / "ck", recipe, model=params.section(ModelConfig)))
    assert trained is not None
    assert [row["step"] for row in trained.rows] == [1, 2] and all(0 < row["train/loss"] < 20 for row in trained.rows)
