"""ALIGN's loss against a double loop in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from align.model.loss import align_loss


def double_loop(images: torch.Tensor, texts: torch.Tensor, temperature: float, smoothing: float) -> float:
    """The definition, written out."""
    count = len(images)
    scores = [[float(images[i] @ texts[j]) / temperature for j in range(count)] for i in range(count)]
    total = 0.0
    for table in (scores, [list(column) for column in zip(*scores, strict=True)]):
        for i in range(count):
            log_sum = math.log(sum(math.exp(score) for score in table[i]))
            for j in range(count):
                target = smoothing / count + (1 - smoothing if i == j else 0.0)
                total -= target * (table[i][j] - log_sum) / count
    return total


def embeds(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("temperature", [1.0, 1 / 64])
def test_equals_the_double_loop(count: int, smoothing: float, temperature: float) -> None:
    images, texts = embeds(count, 1), embeds(count, 2)
    loss = align_loss(images, texts, torch.tensor(temperature, dtype=torch.float64), smoothing)
    assert float(loss) == pytest.approx(double_loop(images, texts, temperature, smoothing), rel=1e-12)


def test_is_the_sum_of_both_directions() -> None:
    same = torch.ones(4, 3, dtype=torch.float64) / math.sqrt(3)
    assert float(align_loss(same, same, 1.0)) == pytest.approx(2 * math.log(4))


def test_gradients_of_embeddings_and_temperature() -> None:
    inputs = (
        embeds(5, 3).requires_grad_(),
        embeds(5, 4).requires_grad_(),
        torch.tensor(0.3, dtype=torch.float64).requires_grad_(),
    )
    assert torch.autograd.gradcheck(align_loss, inputs)
