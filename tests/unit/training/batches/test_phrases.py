"""Phrase dropout and sentences of one text, with draws given by hand."""

import numpy as np

from align.training.batches.rows import SENTENCES, in_sentence, some_phrases


def test_some_phrases() -> None:
    draws = np.array([0.4, 0.5, 0.9, 0.1, 0.3, 0.7, *[0.5] * 28])
    assert some_phrases("red heart (love, rot), 心、愛", 0.5, draws) == "love, rot, 愛"
    assert some_phrases("red heart (love, rot), 心、愛", 0.4, draws) == "red heart (love, rot), 心、愛"
    assert some_phrases("a red heart", 1.0, draws) == "a red heart"
    assert some_phrases("...", 1.0, draws) == "..."
    assert some_phrases("", 1.0, draws) == ""
    assert len(some_phrases(",".join("abcd" * 20), 1.0, draws).split(", ")) == 17


def test_in_sentence() -> None:
    assert in_sentence("red heart", 0.5, np.array([0.49, 0.0])) == "a red heart"
    assert in_sentence("red heart", 0.5, np.array([0.5, 0.0])) == "red heart"
    assert in_sentence("{0} {heart}", 1.0, np.array([0.0, 0.999])) == "an icon of a {0} {heart}"
    assert in_sentence("red heart", 0.0, np.empty(0)) == "red heart"
    shown = {in_sentence("heart", 1.0, np.array([0.0, draw])) for draw in np.arange(0, 1, 0.01)}
    assert shown == {sentence.replace("{}", "heart") for sentence in SENTENCES}
