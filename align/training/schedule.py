"""The learning rate of a step: linear warm-up, then the recipe's schedule. The paper's decays linearly (section 5)."""

from __future__ import annotations

import math

from align.config.recipe import Recipe


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """The rate of the update after `step` completed ones.

    It rises to `learning_rate` over `warmup_steps`. Then it falls to 0 at `num_steps` along a line or along half a
    cosine, or stays until the last `cooldown_steps`, in which it falls along a line.
    """
    peak, num_steps = recipe.learning_rate, recipe.num_steps
    if step < recipe.warmup_steps:
        return peak * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return peak * min(1.0, (num_steps - step) / max(1, recipe.cooldown_steps))
    left = (num_steps - step) / max(1, num_steps - recipe.warmup_steps)
    return peak * (left if recipe.schedule == "linear" else (1.0 - math.cos(math.pi * left)) / 2.0)
