"""Texts of the paper's length, and a tokenizer that knows their words."""

from __future__ import annotations

import functools
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from align.model.tokenizer import TextTokenizer, fit_wordpiece, pad, save_tokenizer
from benchmarks.gpu.scale import Scale

_SENTENCE = "a red fox in the snow two grey owls on an old branch picture of green hills under heavy clouds"
_WORDS = _SENTENCE.split()


@dataclass(frozen=True)
class Words:
    """A tokenizer, and texts for it."""

    tokenizer: TextTokenizer

    def texts(self, count: int, num_words: int | None = None) -> list[str]:
        """Texts of the given length, or of lengths from 1 word on; the same each time."""
        draw = random.Random(0)
        return [" ".join(draw.choices(_WORDS, k=num_words or draw.randint(1, 12))) for _ in range(count)]

    def padded(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask, (B, T)."""
        return pad(self.tokenizer.ids(texts), self.tokenizer.pad_id)


def write(folder: Path, max_tokens: int) -> Path:
    """A tokenizer's folder, as `align fit_tokenizer` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(fit_wordpiece([_SENTENCE], vocab_size=200, min_count=1), folder, max_tokens=max_tokens)
    return folder


@functools.cache
def _tokenizer(max_tokens: int) -> TextTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return TextTokenizer.load(write(Path(folder), max_tokens), max_tokens)


def words(scale: Scale, max_tokens: int | None = None) -> Words:
    """For texts of at most `max_tokens` tokens; None: as the checks have them."""
    return Words(_tokenizer(max_tokens or (16 if scale.stand_in else 32)))
