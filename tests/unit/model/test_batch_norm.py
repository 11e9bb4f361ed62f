"""Batch-norm in groups, and its running statistics."""

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.nn import functional as F

from align.model.batch_norm import BatchNorm2d, all_groups, group_by_group
from align.model.image_tower import ImageTower, estimate_statistics
from tests.support.training_data import MODEL

EPS = 1e-3


def maps(count, seed=0):
    """Far from 0 in relation to their spread, where E[x^2] - mean^2 would cancel."""
    return torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) + 100.0


def pictures(count):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_groups_of_a_batch_are_normalised_apart():
    norm = BatchNorm2d(3, EPS, group=4).train()
    x = maps(12)
    together = norm(x)
    torch.testing.assert_close(together, torch.cat([norm(x[:8]), norm(x[8:])]))
    torch.testing.assert_close(together[:4].mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="multiple of the batch-norm group"):
        norm(x[:6])


def test_a_group_of_a_whole_batch_is_plain_batch_norm():
    norm, plain = BatchNorm2d(3, EPS, group=6).train(), nn.BatchNorm2d(3, EPS).train()
    torch.testing.assert_close(norm(maps(6)), plain(maps(6)))


@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
@pytest.mark.parametrize("function", [group_by_group, all_groups])
def test_values_and_gradients_are_those_of_plain_batch_norm(function, size, device):
    draw = torch.Generator().manual_seed(0)
    x, factors = (torch.randn(12, 6, *size, generator=draw, dtype=torch.float64).to(device) for _ in range(2))
    x = (x + 100.0).to(memory_format=torch.channels_last)
    plain = nn.BatchNorm2d(6, EPS).double().train().to(device)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2.0), plain.bias.normal_()
    found = []
    for normalise in (
        lambda x: function(x, plain.weight, plain.bias, EPS, 4),
        lambda x: torch.cat([plain(part) for part in x.split(4)]),
    ):
        own = x.clone().requires_grad_()
        out = normalise(own)
        found.append([out, *torch.autograd.grad((out * factors).sum(), (own, plain.weight, plain.bias))])
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=1e-9)
    assert found[0][0].stride() == x.stride() or min(size) == 1  # of one position no order can be seen


def test_statistics_of_half_precision_are_not_rounded_to_it(device):
    """The mean of bfloat16 numbers around 10 would be off by up to 0.03, a tenth of what they spread over."""
    x = (torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 0.3 + 10.0).bfloat16().to(device)
    weight, bias = torch.ones(3, device=device), torch.zeros(3, device=device)
    out = all_groups(x, weight, bias, EPS, 4)
    assert out.dtype == torch.bfloat16
    expected = all_groups(x.double(), weight.double(), bias.double(), EPS, 4)
    torch.testing.assert_close(out, expected.bfloat16(), atol=0, rtol=2**-7)


def test_running_statistics_move_only_when_they_are_estimated():
    torch.manual_seed(0)
    tower = ImageTower(MODEL)
    norm = tower.embeddings.batchnorm
    assert isinstance(norm, BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    x = pictures(8)
    tower.train()(x)
    assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    estimate_statistics(tower.eval(), [x[:4], x[4:]])
    with torch.no_grad():
        stem = tower.embeddings.convolution(F.pad(x, (0, 1, 0, 1)))
    torch.testing.assert_close(norm.running_mean, stem.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    halves = torch.stack([stem[:4].var((0, 2, 3)), stem[4:].var((0, 2, 3))])
    torch.testing.assert_close(norm.running_var, halves.mean(0), atol=1e-5, rtol=1e-4)
    assert not tower.training
