"""What is drawn at random for each sample: its crop, its text, and the numbers for stochastic depth.

The paper leaves texts whole. Lists of tags are learned by heart, and hold no articles; people search by a word or two,
or by "a cat": so some texts lose some of their phrases, and some are put into a sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.model.preprocess import random_crop
from align.model.tokenizer import TextTokenizer
from align.statistics.randomness import Purpose, uniforms

#: Phrase dropout chooses among at most this many phrases; the paper's text tower reads 64 tokens.
MAX_PHRASES = 32
#: Separators of phrases: Latin and CJK punctuation and brackets.
PHRASE_ENDS = re.compile(r"[:,;.|/()\[\]\u2013\u2014\u3001\u3002\uff0c\uff1a\uff1b\uff08\uff09\u30fb]+")
#: Sentences around a text, as zero-shot prompts have them: articles alone, and with what a picture is called.
SENTENCES = (
    "a {}", "an {}", "the {}", "this is a {}", "a photo of a {}", "a picture of a {}", "a picture of the {}",
    "an image of {}", "a drawing of a {}", "an icon of a {}",
)  # fmt: skip


#: Uniform numbers in [0, 1) by purpose, (R, count) for R samples: what `Augmentation.draw` draws.
Draws = dict[Purpose, NDArray[np.float64]]


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each sample, and what becomes of its text.

    Attributes:
        image_px: side of the random crop.
        num_draws: numbers per sample for stochastic depth.
        crop_scale: smallest and largest side of the crop, relative to `image_px`, to which it is resized.
        phrase_dropout: share of the texts that lose some of their phrases.
        sentence_share: share of the texts that are shown in a sentence.
    """

    tokenizer: TextTokenizer
    image_px: int
    num_draws: int
    flip: bool
    crop_scale: tuple[float, float] = (1.0, 1.0)
    phrase_dropout: float = 0.0
    sentence_share: float = 0.0

    def draw(self, seed: int, epoch: int, positions: NDArray[np.int64]) -> Draws:
        """Draws for the samples at (R,) positions of an epoch, keyed by these three."""
        counts = {
            Purpose.CROP: 3,
            Purpose.CROP_SCALE: 0 if self.crop_scale == (1, 1) else 1,
            Purpose.TEXT: 1,
            Purpose.DEPTH: self.num_draws,
            Purpose.PHRASES: 2 + MAX_PHRASES if self.phrase_dropout else 0,
            Purpose.SENTENCE: 2 if self.sentence_share else 0,
        }
        return {purpose: uniforms(seed, epoch, purpose, positions, count) for purpose, count in counts.items()}

    def crop(self, image: NDArray[np.uint8], out: NDArray[np.uint8], draws: Draws, row: int) -> None:
        """Writes a crop of the image into `out`, (image_px, image_px, 3); `row` is that of the sample in `draws`."""
        side_px, (low, high) = self.image_px, self.crop_scale
        if (sides := draws[Purpose.CROP_SCALE]).size:
            side_px = round(self.image_px * (low + (high - low) * sides[row, 0]))
        random_crop(image, out, draws[Purpose.CROP][row].tolist(), flip=self.flip, side_px=side_px)

    def drawn(self, texts: list[str], draws: Draws, row: int) -> str:
        """Chooses one of a sample's texts; `row` is that of the sample in `draws`."""
        return texts[int(draws[Purpose.TEXT][row, 0] * len(texts))]

    def text(self, texts: list[str], draws: Draws, row: int) -> str:
        """Chooses one of a sample's texts, and changes it; `row` is that of the sample in `draws`."""
        text = self.drawn(texts, draws, row)
        text = some_phrases(text, self.phrase_dropout, draws[Purpose.PHRASES][row])
        return in_sentence(text, self.sentence_share, draws[Purpose.SENTENCE][row])


def in_sentence(text: str, share: float, draws: NDArray[np.float64]) -> str:
    """Puts a text into one of `SENTENCES` with probability `share`, by two uniform numbers in [0, 1)."""
    if not share or draws[0] >= share:
        return text
    return SENTENCES[int(draws[1] * len(SENTENCES))].format(text)


def some_phrases(text: str, share: float, draws: NDArray[np.float64]) -> str:
    """Keeps, with probability `share`, only some phrases, in random order; their number is uniform from 1 to all.

    Punctuation separates phrases, so "dog face: animal, dog" has three; those beyond MAX_PHRASES are dropped. `draws`
    are (2 + MAX_PHRASES,) uniform numbers in [0, 1), unused if `share` is 0.
    """
    if not share or draws[0] >= share:
        return text
    phrases = [phrase for part in PHRASE_ENDS.split(text) if (phrase := part.strip())][:MAX_PHRASES]
    if not phrases:
        return text
    size = 1 + int(draws[1] * len(phrases))
    return ", ".join(phrases[index] for index in np.argsort(draws[2 : 2 + len(phrases)])[:size])
