"""Phases of a run: most steps at small pictures and short texts, the end at full size (after CLIPA, Li et al., 2023).

A step's size depends on its number only, so a stopped run has the sizes of one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from align.config.model import ModelConfig
from align.config.recipe import Recipe
from align.model.tokenizer import TextTokenizer
from align.training.batches.samples import SampleSources


class Size(NamedTuple):
    """What the steps up to `end` are trained at: pictures cropped from `resize_px`, texts of at most `max_tokens`."""

    end: int
    image_px: int
    resize_px: int
    max_tokens: int


@dataclass(frozen=True)
class Stretch:
    """Steps of one size.

    Attributes:
        end: the number of the run's steps that are done after it.
        image_px: side of the pictures that the model is shown.
        samples: decoded at the size that they are cropped from.
        tokenizer: cuts texts.
    """

    end: int
    image_px: int
    samples: SampleSources
    tokenizer: TextTokenizer


def sizes(recipe: Recipe, model: ModelConfig) -> Iterator[Size]:
    """The sizes of a run, in order; those of phases of no steps are left out. The last one, at least of the last step,
    is the model's own.

    Args:
        recipe: its `phases` come before the steps at full size.
        model: as the recipe trains it, see `Recipe.trained`.
    """
    share, end = 0.0, 0
    for phase in recipe.phases:
        share += phase.share
        before, end = end, min(round(share * recipe.num_steps), recipe.num_steps - 1)
        image_px = phase.image_px or model.image_px
        resize_px = round(model.resize_px * image_px / model.image_px)
        if end > before:
            yield Size(end, image_px, resize_px, min(phase.max_tokens or model.max_tokens, model.max_tokens))
    yield Size(recipe.num_steps, model.image_px, model.resize_px, model.max_tokens)
