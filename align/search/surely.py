"""surely: how sure an answer in words can be, measured on the index itself.

`align index` asks its index the held-out texts, whose right pictures are known, and a phrase of each, as people search
by a word or two. Each question counts twice: with its right pictures, and with them left out, so that it has no answer.
A question whose first picture is wrong, though it is above the line, is a loss. The lines are the lowest for which the
mean loss stays below one minus a level, by conformal risk control (Angelopoulos and others, 2022): for a new question
like these, whatever the model. Texts of one concept count as one.

A line is a least score. It rises for words that the tokenizer has to split, which the model hardly knows. How much is
fitted, on one half of the concepts; the lines are drawn on the other half, so that a bad fit shows less, and not more
that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from align.display.console import say
from align.formats.image_index import ImageIndex, Promise

if TYPE_CHECKING:  # imports torch, which a server without a champion does not need
    from align.model.embedder import SearchEncoder

#: What may be promised; the first is promised if nobody asks for another.
LEVELS = (0.75, 0.9)
#: Why an answer has no line: the index has no promise, the query has not words alone, or not the whole index.
NO_LINE = {
    "promise": "This index has too few held-out texts to say how sure an answer is.",
    "words": "How sure an answer is, is known of words alone, not of a picture.",
    "all": "How sure an answer is, is known of the whole index, not of a part of it.",
}
#: Fewer concepts promise nothing; no more texts are asked, evenly over all.
FEW, _MOST_TEXTS = 100, 1000
#: Pictures that are looked at for a text. If all are right, it is not asked: nobody can say what comes after them.
_DEPTH = 25
#: Lines above and below every score, and digits of a score.
_NEVER, _ALWAYS, _DIGITS = 2.0, -2.0, 6
_RIDGE, _STEPS = 1.0, 30
_WORD, _BETWEEN_PHRASES = re.compile(r"[^\W_]+"), re.compile(r"[:,()|;]+")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """Questions whose right answer is known.

    Attributes:
        concepts: (num_questions,) the number of the concept that a question is of: texts that share half of their words
            are of one, and are right or wrong together.
        scores: (num_questions,) of the first picture.
        splits: (num_questions,) how much the question's words are split.
        right: (num_questions,) whether the first picture is right.
    """

    concepts: NDArray[np.int64]
    scores: Floats
    splits: Floats
    right: NDArray[np.bool_]

    def of(self, concepts: NDArray[np.bool_]) -> Asked:
        """The questions of some concepts, which get new numbers from 0."""
        mine = concepts[self.concepts]
        numbers = (np.cumsum(concepts) - 1)[self.concepts[mine]]
        return Asked(numbers, self.scores[mine], self.splits[mine], self.right[mine])

    @property
    def num_concepts(self) -> int:
        """Concepts that were asked for."""
        return int(self.concepts.max(initial=-1)) + 1

    @property
    def weights(self) -> Floats:
        """(num_questions,): of the questions of a concept 1 together."""
        weights: Floats = 1 / np.bincount(self.concepts)[self.concepts]
        return weights


def is_right(question: str, texts: Sequence[str]) -> bool:
    """Whether a picture's text has all the words of the question, or they share half of the words of both."""
    asked = _words(question)
    return any(asked <= found or _are_one(asked, found) for found in map(_words, texts))


def _are_one(some: frozenset[str], others: frozenset[str]) -> bool:
    return 2 * len(some & others) >= len(some | others)


def concepts_of(texts: Sequence[str]) -> list[int]:
    """The concept of each text: the first text that it is tied to by texts that share half of their words."""
    words, concepts = [_words(text) for text in texts], list(range(len(texts)))
    for late, early in combinations(reversed(range(len(texts))), 2):
        if concepts[late] != concepts[early] and _are_one(words[late], words[early]):
            pair = concepts[late], concepts[early]
            concepts = [min(pair) if concept in pair else concept for concept in concepts]
    return concepts


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.casefold()))


def ask_held_out(index: ImageIndex, encoder: SearchEncoder) -> Asked | None:
    """Asks an index the texts of pictures that are no training data, as far as it knows; None if they are too few."""
    texts = [text for item in index.items if item.split != "train" for text in item.texts if _words(text)]
    texts = list(dict.fromkeys(texts))
    asked = ask(index, encoder, texts[:: len(texts) // _MOST_TEXTS + 1])
    if asked.num_concepts >= FEW:
        return asked
    say(f"index: {asked.num_concepts} different held-out texts can be asked, fewer than {FEW}, so answers have no line")
    return None


def ask(index: ImageIndex, encoder: SearchEncoder, texts: Sequence[str]) -> Asked:
    """Asks texts and a phrase of each. One search tells both answers: with the right pictures, and without them."""
    draw = np.random.default_rng(0)
    phrases = [[one.strip() for one in _BETWEEN_PHRASES.split(text) if _words(one)] for text in texts]
    concepts = concepts_of(texts)
    questions = [*texts, *(some[draw.integers(len(some))] for some in phrases)]
    rows: list[tuple[int, float, float, bool]] = []
    for number, (question, split, vector) in enumerate(
        zip(questions, encoder.splits(questions), encoder.embed_texts(questions), strict=True)
    ):
        hits = index.search(vector, _DEPTH)
        right = [is_right(question, hit.item.texts) for hit in hits]
        if not all(right):
            concept, wrong = concepts[number % len(texts)], hits[right.index(False)]
            rows += [(concept, hits[0].score, split, right[0]), (concept, wrong.score, split, False)]
    numbers, scores, splits, is_first_right = zip(*rows, strict=True) if rows else ((), (), (), ())
    _, renumbered = np.unique(np.array(numbers, np.int64), return_inverse=True)
    return Asked(renumbered, np.array(scores, float), np.array(splits, float), np.array(is_first_right, bool))


def fitted(asked: Asked) -> float:
    """How much a line rises with a split, at least 0: the ratio of the weights of a logistic regression.

    It is 0 where the weights are not those that make sense: a higher score and fewer pieces are better.
    """
    values = np.stack([asked.scores, asked.splits], axis=1)
    spread = values.std(axis=0) + 1e-9
    design = np.concatenate([(values - values.mean(axis=0)) / spread, np.ones((len(values), 1))], axis=1)
    weights, ridge = np.zeros(3), np.diag([_RIDGE, _RIDGE, 1e-6])
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (asked.right - chance) - ridge @ weights
        weights += np.linalg.solve((design.T * (chance * (1 - chance))) @ design + ridge, slope)
    score, split, _ = weights / np.append(spread, 1)
    return float(max(-split / score, 0.0)) if score > 0 else 0.0


def margins(asked: Asked, slope: float) -> Floats:
    """(num_questions,): by how much the first picture's score exceeds what the splits of the words cost."""
    return asked.scores - slope * asked.splits


def line(asked: Asked, slope: float, level: float) -> float:
    """The lowest line that keeps a promise for a new concept: (losses + 1) / (concepts + 1) <= 1 - level.

    The loss of a concept is the share of its questions whose first picture is wrong, but not below the line.
    """
    wrong = ~asked.right
    highest = margins(asked, slope)[wrong]
    order = np.argsort(-highest)
    most = (1 - level) * (asked.num_concepts + 1) - 1 + 1e-9
    if most < 0:
        return _NEVER
    too_many = asked.weights[wrong][order].cumsum() > most
    if not too_many.any():
        return _ALWAYS
    return float(np.ceil(highest[order][too_many.argmax()] * 10**_DIGITS + 0.5) / 10**_DIGITS)


def promised(asked: Asked) -> Promise:
    """The promise of an index: the slope by every second concept, the lines by the others."""
    by_fit = np.arange(asked.num_concepts) % 2 == 0
    slope, rest = round(fitted(asked.of(by_fit)), _DIGITS), asked.of(~by_fit)
    return Promise(
        lines={level: line(rest, slope, level) for level in LEVELS}, slope=slope, num_concepts=rest.num_concepts
    )


def line_for(promise: Promise, level: float, splits: float) -> float:
    """The least score that a picture needs for a text."""
    return round(promise.lines[level] + promise.slope * splits, _DIGITS)


def held_levels(promise: Promise, score: float, splits: float) -> list[float]:
    """The levels whose line a score is above."""
    return [level for level in LEVELS if round(score, _DIGITS) >= line_for(promise, level, splits)]


def meaning(promise: Promise, level: float, *, has_sure: bool) -> str:
    """What an answer says of its line, where a first picture is above it and where none is."""
    number = round(1 / (1 - level))
    rule = (
        f"Of {number} questions like the held-out texts of this index, half of which have no answer here, at most one "
        "gets a wrong first picture above the line."
    )
    return rule if has_sure else f"No picture here surely shows this (as sure as {number - 1} in {number}). {rule}"
