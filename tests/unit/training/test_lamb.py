"""LAMB against a line-by-line NumPy reference, and the schedule's values by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from align.training.lamb import VECTOR_RATE, Lamb, learning_rate_at, parameter_groups
from tests.support import lamb_reference


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("beta2", [0.999, 0.9])
def test_equals_the_reference(adapt: bool, zero: bool, beta2: float) -> None:
    generator = np.random.default_rng(0)
    starts = [generator.normal(size=(3, 4)), generator.normal(size=(5,)) * (0.0 if zero else 1.0)]
    grads = [[generator.normal(size=start.shape) for start in starts] for _ in range(6)]
    params = [nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    groups = [{"params": params, "adapt": adapt, "lr_scale": 0.5}]
    optimiser = Lamb(groups, weight_decay=0.02, betas=(0.9, beta2))
    optimiser.set_learning_rate(0.2)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = torch.from_numpy(grad)
        optimiser.step()
    for index, (param, start) in enumerate(zip(params, starts, strict=True)):
        expected = lamb_reference.lamb(
            start, [step[index] for step in grads], rate=0.1, decay=0.02, beta2=beta2, adapt=adapt
        )
        np.testing.assert_allclose(param.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_groups_spare_vectors_and_scale_the_text_tower() -> None:
    model = nn.Module()
    model.text_model = nn.Module()
    model.text_model.embeddings = nn.Module()
    model.text_model.embeddings.words = nn.Embedding(7, 2)
    model.text_model.embeddings.norm = nn.LayerNorm(7)
    model.text_model.dense = nn.Linear(2, 3)
    model.vision_model = nn.Linear(2, 4)
    model.log_temperature = nn.Parameter(torch.tensor(0.0))
    groups = {
        (group["adapt"], group["lr_scale"]): sorted(tuple(param.shape) for param in group["params"])
        for group in parameter_groups(model, 0.25)
    }
    assert groups == {
        (True, 0.25): [(3, 2)],
        (False, 0.25 * VECTOR_RATE): [(3,), (7,), (7,)],
        (True, 1.0): [(4, 2), (7, 2)],
        (False, VECTOR_RATE): [(), (4,)],
    }


def test_warm_up_and_decay() -> None:
    rates = [learning_rate_at(step, peak=1.0, warmup_steps=4, num_steps=12) for step in range(12)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert learning_rate_at(0, peak=1.0, warmup_steps=0, num_steps=4) == 1.0
