"""Batch-norm in groups, and its running statistics."""

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.nn import functional as F

from align.model.batch_norm import BatchNorm2d
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
