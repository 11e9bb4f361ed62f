"""Muon's updates against a decomposition in float64 and against torch's, and whose they are."""

import numpy as np
import pytest
import torch
from torch import nn

from align.config.model import TextTowerShape
from align.config.recipe import PretrainConfig
from align.model.dual_encoder import DualEncoder
from align.training.lamb import Lamb, parameter_groups
from align.training.muon import layer_matrices, muon_updates, orthogonalised
from tests.support.params import load_params
from tests.support.training_data import MODEL

RECIPE = load_params().section(PretrainConfig).model_copy(update={"optimiser": "muon"})
SHAPES = [(6, 4), (4, 6), (5, 5), (8, 3, 3, 3), (1, 7)]


def reference(update):
    """The polynomial on each singular value."""
    left, values, right = np.linalg.svd(update.reshape(len(update), -1), full_matrices=False)
    values /= np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values @ right).reshape(update.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_their_vectors_stay(shape):
    update = np.random.default_rng(0).normal(size=shape)
    expected = reference(update)
    found = orthogonalised(torch.from_numpy(update.astype(np.float32)))
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
    assert torch.equal(orthogonalised(torch.zeros(shape)), torch.zeros(shape))


def test_updates_are_those_of_torchs_muon():
    """Up to the size, which the trust ratio sets, and to its products in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.zeros(24, 40)
    theirs = nn.Parameter(torch.zeros(24, 40))
    optimiser = torch.optim.Muon([theirs], lr=1.0, weight_decay=0.0, momentum=0.9, adjust_lr_fn="original")
    for _ in range(4):
        theirs.grad = torch.randn(24, 40, generator=generator)
        before = theirs.detach().clone()
        (ours,) = muon_updates([theirs.grad.clone()], [mean], 0.9)
        optimiser.step()
        assert torch.cosine_similarity(ours.flatten(), (before - theirs.detach()).flatten(), dim=0) > 0.9995


def test_a_step_is_relative_to_the_weights_and_decays_them():
    start, grad = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    weight, update = nn.Parameter(start.clone()), orthogonalised(grad) + 0.1 * start
    optimiser = Lamb([{"params": [weight], "muon": True, "lr_scale": 0.5}], weight_decay=0.1, betas=(0.0, 0.9))
    optimiser.set_learning_rate(0.2)
    weight.grad = grad
    optimiser.step()
    torch.testing.assert_close(weight.detach(), start - 0.1 * update * start.norm() / update.norm())
    assert set(optimiser.state[weight]) == {"step", "exp_avg"}


def test_layers_take_its_updates_and_everything_else_lambs():
    model = DualEncoder(MODEL.model_copy(update={"text_tower": TextTowerShape(width=32, layers=1, heads=2)}), 50)
    chosen = layer_matrices(model)
    names = {name for name, param in model.named_parameters() if param in chosen}
    assert {name.rpartition(".")[2] for name in names} == {"weight"}
    of_a_block = {name.split(".", 3)[-1] for name in names if name.startswith("vision_model.encoder.blocks.1.")}
    assert any("squeeze" in name or "excite" in name for name in of_a_block), of_a_block
    others = [name for name, param in model.named_parameters() if param not in chosen and param.ndim > 1]
    assert others and all(".embeddings." in name or "depthwise" in name for name in others), others
    groups = parameter_groups(model, RECIPE)
    assert {id(param) for group in groups if group["muon"] for param in group["params"]} == set(map(id, chosen))
    assert all(group["adapt"] for group in groups if group["muon"])


def test_a_matrix_across_ranks_is_refused():
    recipe = RECIPE.model_copy(update={"shard_weights": True})
    assert str(recipe.against(MODEL, 1, 2)).startswith("pretrain.optimiser: muon needs whole matrices")
    assert RECIPE.against(MODEL, 1, 2) is None
