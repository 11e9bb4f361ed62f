"""The schedule's values by hand."""

import pytest

from align.config.recipe import PretrainConfig
from align.training.loop import learning_rate_at
from tests.support.params import load_params

BASE = (
    load_params().section(PretrainConfig).model_copy(update={"learning_rate": 1.0, "warmup_steps": 4, "num_steps": 12})
)


def _rates(**changes: object) -> list[float]:
    recipe = BASE.model_copy(update=changes)
    return [learning_rate_at(step, recipe) for step in range(recipe.num_steps)]


def test_linear() -> None:
    assert _rates() == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert _rates(warmup_steps=0)[0] == 1.0


def test_cosine() -> None:
    rates = _rates(schedule="cosine")
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[8] == pytest.approx(0.5)  # in the middle of the decay
    assert rates[5] + rates[11] == pytest.approx(1.0)  # half a cosine is odd about its middle
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)


def test_constant_with_and_without_a_cooldown() -> None:
    assert _rates(schedule="constant") == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 9)
    assert _rates(schedule="constant", cooldown_steps=4)[6:] == pytest.approx([1.0, 1.0, 1.0, 0.75, 0.5, 0.25])
