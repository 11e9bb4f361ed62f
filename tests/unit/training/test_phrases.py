"""Phrase dropout of one text, with draws given by hand."""

import numpy as np

from align.training.phrases import some_phrases


def test_some_phrases() -> None:
    draws = np.array([0.4, 0.5, 0.9, 0.1, 0.3, 0.7, *[0.5] * 28])
    assert some_phrases("red heart (love, rot), 心、愛", 0.5, draws) == "love, rot, 愛"
    assert some_phrases("red heart (love, rot), 心、愛", 0.4, draws) == "red heart (love, rot), 心、愛"
    assert some_phrases("a red heart", 1.0, draws) == "a red heart"
    assert some_phrases("...", 1.0, draws) == "..."
    assert some_phrases("", 1.0, draws) == ""
    assert len(some_phrases(",".join("abcd" * 20), 1.0, draws).split(", ")) == 17
