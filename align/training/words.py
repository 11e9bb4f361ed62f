"""The first phase of pre-training, if the recipe has one: the image tower predicts the words of its picture's text.

After CatLIP (Mehta et al. 2024, arXiv:2404.15653), whose labels are the nouns of captions; here they are all words. A
step has no text tower in it, so it costs less. The labels of a sample are the words of the text drawn for it, before
any of its phrases are dropped. A linear layer on the image tower's pooled features predicts them. It has an optimiser
of its own, LAMB, and is no part of the model: it is dropped when the phase ends.

Shapes, as suffixes: B samples of a rank's share, P of one part of it, F width of the image tower, V labels.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from align.config.recipe import Recipe
from align.errors import ConfigError, CorruptError
from align.pairs.text import words
from align.statistics.randomness import Purpose, uniforms
from align.training.batches.samples import SampleSources
from align.training.lamb import Lamb


class Words:
    """The labels, and what predicts them.

    Args:
        shares: label -> the share of the samples whose drawn text has it (`shares_of`). The first biases predict it.
        width: of the image tower's features.

    Attributes:
        head: (F) features -> (V) logits.
        optimiser: of the head.
    """

    def __init__(self, shares: dict[str, float], width: int, recipe: Recipe, device: torch.device) -> None:
        if not shares:
            raise ConfigError(f"{recipe.section}.words_min_count {recipe.words_min_count}: no word has so many samples")
        self._loss, self._numbers = recipe.words_loss, {word: number for number, word in enumerate(shares)}
        self.head = nn.Linear(width, len(shares), device="meta").to_empty(device="cpu")  # draws nothing
        drawn_VF = uniforms(recipe.seed, 0, Purpose.WORDS, np.arange(len(shares), dtype=np.int64), width)
        shares_V = torch.tensor([*shares.values()], dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy((2 * drawn_VF - 1) * width**-0.5))
            self.head.bias.copy_(shares_V.logit() if self._loss == "binary" else shares_V.log())
        self.head.to(device)
        adapt, scale = recipe.optimiser != "adamw", recipe.vector_learning_rate_scale
        self.optimiser = Lamb(
            [
                {"params": [self.head.weight], "adapt": adapt},
                {"params": [self.head.bias], "adapt": False, "lr_scale": scale, "weight_decay": 0.0},
            ],
            weight_decay=recipe.weight_decay, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps,
        )  # fmt: skip

    def targets(self, texts: Sequence[str]) -> Tensor:
        """(B, V): 1 for each label that a text has."""
        targets_BV = torch.zeros(len(texts), len(self._numbers))
        for row, text in enumerate(texts):
            targets_BV[row, [self._numbers[word] for word in words_in(text) if word in self._numbers]] = 1.0
        return targets_BV

    def loss(self, features_PF: Tensor, targets_PV: Tensor) -> Tensor:
        """The sum over P samples of the sum over labels of the binary cross-entropy.

        With `words_loss` softmax: of the cross-entropy against the uniform distribution over a sample's labels, 0
        without any.
        """
        logits_PV: Tensor = self.head(features_PF.to(self.head.weight.dtype))
        targets_PV = targets_PV.to(logits_PV.dtype)
        if self._loss == "binary":
            return F.binary_cross_entropy_with_logits(logits_PV, targets_PV, reduction="sum")
        return -(targets_PV / targets_PV.sum(1, keepdim=True).clamp(min=1) * logits_PV.log_softmax(1)).sum()

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"head": dict(self.head.state_dict()), "optimiser": self.optimiser.state_dict()}

    def load(self, saved: dict[str, Any]) -> None:
        """Restores what `saved` returned."""
        self.head.load_state_dict(saved["head"])
        self.optimiser.load_state_dict(saved["optimiser"])


@lru_cache(1 << 16)
def words_in(text: str) -> frozenset[str]:
    """The words of a text that have a letter, lower-cased."""
    return frozenset(word for word in words(text) if any(map(str.isalpha, word)))


def shares_of(samples: Iterable[Sequence[str]], min_count: int) -> dict[str, float]:
    """The words that at least `min_count` samples have in any of their texts, in alphabetical order.

    With each the share of the samples whose text has it, if one of a sample's texts is drawn.
    """
    counts, drawn, num_samples = Counter[str](), defaultdict[str, float](float), 0
    for texts in samples:
        num_samples += 1
        found = [words_in(text) for text in texts]
        counts.update(frozenset().union(*found))
        for word in (word for some in found for word in some):
            drawn[word] += 1 / len(texts)
    return {word: drawn[word] / num_samples for word in sorted(counts) if counts[word] >= min_count}


def training_texts(sources: SampleSources) -> Iterator[list[str]]:
    """The texts of each sample to train on, without those in quarantine."""
    for samples, _ in sources.mixed:
        for number in range(samples.num_images):
            try:
                yield samples.texts(number)
            except CorruptError:
                if samples.on_corrupt == "stop":
                    raise
