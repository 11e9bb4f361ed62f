"""LAMB against a line-by-line NumPy reference, and AdamW against torch's."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from align.config.recipe import PretrainConfig
from align.training import lamb as module
from align.training.lamb import Lamb, parameter_groups
from tests.support import lamb_reference
from tests.support.params import load_params

RECIPE = load_params(overrides=["pretrain.optimiser=lamb"]).section(PretrainConfig)


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("beta2", [0.999, 0.9])
def test_equals_the_reference(adapt, zero, beta2, device):
    generator = np.random.default_rng(0)
    starts = [generator.normal(size=(3, 4)), generator.normal(size=(5,)) * (0.0 if zero else 1.0)]
    grads = [[generator.normal(size=start.shape) for start in starts] for _ in range(6)]
    params = [nn.Parameter(torch.from_numpy(start.copy()).to(device)) for start in starts]
    groups = [{"params": params, "adapt": adapt, "lr_scale": 0.5, "weight_decay": 0.02 if adapt else 0.0}]
    optimiser = Lamb(groups, weight_decay=0.02, betas=(0.9, beta2))
    optimiser.set_learning_rate(0.2)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = torch.from_numpy(grad).to(device)
        optimiser.step()
    for index, (param, start) in enumerate(zip(params, starts, strict=True)):
        expected = lamb_reference.lamb(
            start, [step[index] for step in grads], rate=0.1, decay=0.02, beta2=beta2, adapt=adapt
        )
        np.testing.assert_allclose(param.detach().cpu().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_matrix_without_gradient_and_decay_stays_as_it_is(device):
    param = nn.Parameter(torch.ones(3, 4, device=device))
    param.grad = torch.zeros_like(param)
    optimiser = Lamb([{"params": [param]}], weight_decay=0.0, betas=(0.9, 0.999))
    optimiser.set_learning_rate(0.2)
    optimiser.step()
    assert torch.equal(param, torch.ones_like(param))


def test_without_trust_ratio_it_is_adamw(device):
    recipe = RECIPE.model_copy(update={"optimiser": "adamw", "weight_decay": 0.3, "vector_learning_rate_scale": 1.0})
    torch.manual_seed(0)
    ours, theirs = (nn.Linear(5, 3).to(device, torch.float64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimiser = Lamb(parameter_groups(ours, recipe), weight_decay=0.3, betas=(0.8, 0.9), eps=1e-7)
    optimiser.set_learning_rate(0.05)
    decayed = [{"params": [theirs.weight]}, {"params": [theirs.bias], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(decayed, lr=0.05, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.3)
    for _ in range(5):
        inputs = torch.randn(7, 5, dtype=torch.float64).to(device)
        for model, of in ((ours, optimiser), (theirs, reference)):
            of.zero_grad()
            model(inputs).square().sum().backward()
            of.step()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-14)


class _Kernels(TorchDispatchMode):
    """Counts operations that compute; a view computes nothing."""

    def __init__(self):
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += not func.is_view
        return func(*args, **(kwargs or {}))


def _kernels(num_params):
    """Of the second update of matrices and vectors in four groups."""
    groups = [
        {"params": [nn.Parameter(torch.ones(4, 3) if adapt else torch.ones(4)) for _ in range(num_params)],
         "adapt": adapt, "lr_scale": scale}
        for adapt in (True, False) for scale in (0.25, 1.0)
    ]  # fmt: skip
    optimiser = Lamb(groups, weight_decay=0.02, betas=(0.9, 0.99))
    for _ in range(2):  # the first one also allocates the moments, one by one
        for group in groups:
            for param in group["params"]:
                param.grad = torch.full_like(param, 0.1)
        with _Kernels() as kernels:
            optimiser.step()
    return kernels.num


def test_the_number_of_kernels_does_not_grow_with_the_parameters(monkeypatch):
    few = _kernels(2)
    assert few == _kernels(50) < 100
    monkeypatch.setattr(module, "PIECE_BYTES", 10 * 4 * 3 * 4)  # ten matrices a piece
    assert few < _kernels(50) < 10 * few


@pytest.mark.parametrize("piece_bytes", [1, 200, 1 << 20])
def test_pieces_and_strides_change_no_bit(monkeypatch, piece_bytes):
    """Against one piece; weights that are channels-last have updates that are."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3, 2, 2), (5, 2), (6, 3, 3, 3), (1, 7)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    grads = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]

    def trained(layout):
        laid_out = [start.contiguous(memory_format=layout) if start.ndim == 4 else start for start in starts]
        params = [nn.Parameter(start.clone()) for start in laid_out]
        optimiser = Lamb([{"params": params}], weight_decay=0.02, betas=(0.9, 0.99))
        optimiser.set_learning_rate(0.1)
        for step in grads:
            for param, grad in zip(params, step, strict=True):
                param.grad = grad.clone()
            optimiser.step()
        return [param.detach() for param in params]

    whole = trained(torch.contiguous_format)
    monkeypatch.setattr(module, "PIECE_BYTES", piece_bytes)
    for mine, one in zip(trained(torch.contiguous_format), whole, strict=True):
        assert torch.equal(mine, one)
    for mine, one in zip(trained(torch.channels_last), whole, strict=True):
        torch.testing.assert_close(mine, one)  # a norm adds in another order


def test_groups_spare_vectors_and_scale_the_text_tower():
    model = nn.Module()
    model.text_model = nn.Module()
    model.text_model.embeddings = nn.Module()
    model.text_model.embeddings.words = nn.Embedding(7, 2)
    model.text_model.embeddings.norm = nn.LayerNorm(7)
    model.text_model.dense = nn.Linear(2, 3)
    model.vision_model = nn.Linear(2, 4)
    model.log_temperature = nn.Parameter(torch.tensor(0.0))
    recipe = RECIPE.model_copy(update={"text_learning_rate_scale": 0.25, "vector_learning_rate_scale": 0.5})
    groups = {
        (group["adapt"], group["lr_scale"]): sorted(tuple(param.shape) for param in group["params"])
        for group in parameter_groups(model, recipe)
    }
    assert groups == {
        (True, 0.25): [(3, 2)], (False, 0.125): [(3,), (7,), (7,)], (True, 1.0): [(4, 2), (7, 2)],
        (False, 0.5): [(), (4,)],
    }  # fmt: skip
