"""What is done to training texts: some lose some of their phrases, some are put into a sentence. The paper has neither.

Lists of tags are learned by heart, and hold no articles; people search by a word or two, or by "a cat".
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

#: Phrase dropout chooses among at most this many phrases; the paper's text tower reads 64 tokens.
MAX_PHRASES = 32

#: Separators of phrases: Latin and CJK punctuation and brackets.
PHRASE_ENDS = re.compile(r"[:,;.|/()\[\]\u2013\u2014\u3001\u3002\uff0c\uff1a\uff1b\uff08\uff09\u30fb]+")


#: Sentences around a text, as zero-shot prompts have them: articles alone, and with what a picture is called.
SENTENCES = (
    "a {}", "an {}", "the {}", "this is a {}", "a photo of a {}", "a picture of a {}", "a picture of the {}",
    "an image of {}", "a drawing of a {}", "an icon of a {}",
)  # fmt: skip


def in_sentence(text: str, share: float, draws: NDArray[np.float64]) -> str:
    """With probability `share`, a text within one of `SENTENCES`.

    Args:
        text: any.
        share: 0 keeps every text as it is.
        draws: (2,) uniform numbers in [0, 1), unused if `share` is 0.
    """
    if not share or draws[0] >= share:
        return text
    return SENTENCES[int(draws[1] * len(SENTENCES))].format(text)


def some_phrases(text: str, share: float, draws: NDArray[np.float64]) -> str:
    """With probability `share`, some of a text's phrases in random order; their number is uniform from 1 to all.

    Args:
        text: any; punctuation separates phrases, so "dog face: animal, dog" has three.
        share: 0 keeps every text whole.
        draws: (2 + MAX_PHRASES,) uniform numbers in [0, 1), unused if `share` is 0. Phrases beyond MAX_PHRASES are
            dropped.
    """
    if not share or draws[0] >= share:
        return text
    phrases = [phrase for part in PHRASE_ENDS.split(text) if (phrase := part.strip())][:MAX_PHRASES]
    if not phrases:
        return text
    size = 1 + int(draws[1] * len(phrases))
    return ", ".join(phrases[index] for index in np.argsort(draws[2 : 2 + len(phrases)])[:size])
