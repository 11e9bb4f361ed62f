"""The line of an answer: exact where a person can count, and kept on average whatever the fit does."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from align.formats.image_index import Hit, Promise
from align.search.search import _table
from align.search.service.answers import SearchHit
from align.search.surely import (
    Asked,
    ask,
    concepts_of,
    fitted,
    held_levels,
    is_right,
    line,
    line_for,
    margins,
    meaning,
    promised,
)
from align.search.surely_report import nauc, surely_figure, surely_metrics


def asked(scores, right, *, splits=None, concepts=None):
    number = len(scores)
    return Asked(
        np.arange(number) if concepts is None else np.array(concepts), np.array(scores, float),
        np.zeros(number) if splits is None else np.array(splits, float), np.array(right, bool),
    )  # fmt: skip


def drawn(seed, num_concepts):
    """Questions as an index has them: each concept with its right picture and without, scores that tell a little."""
    rng = np.random.default_rng(seed)
    right = np.stack([rng.random(num_concepts) < 0.6, np.zeros(num_concepts, bool)], axis=1).ravel()
    splits = np.repeat(rng.exponential(0.5, num_concepts), 2)
    scores = rng.normal(0.5 + 0.1 * right + 0.1 * splits, 0.1)
    return Asked(np.repeat(np.arange(num_concepts), 2), scores, splits, right)


def loss(asked, slope, least):
    """The mean over concepts of the share of its questions whose first picture is wrong and above a line."""
    lost = ~asked.right & (margins(asked, slope) >= least)
    return np.mean([lost[asked.concepts == one].mean() for one in range(asked.num_concepts)])


@pytest.mark.parametrize(("num_concepts", "level", "num_wrong_shown"), [
    (11, 0.75, 2),  # (2 + 1) / (11 + 1) is a quarter
    (10, 0.75, 1),  # (2 + 1) / (10 + 1) is more
    (19, 0.9, 1),
    (18, 0.9, 0),
    (9, 0.9, 0),
])  # fmt: skip
def test_a_new_concept_counts_as_lost(num_concepts, level, num_wrong_shown):
    scores = np.linspace(0.9, 0.1, num_concepts)
    least = line(asked(scores, [False] * num_concepts), 0.0, level)
    assert np.count_nonzero(scores >= least) == num_wrong_shown
    assert least == pytest.approx(scores[num_wrong_shown], abs=2e-6)  # the lowest such line


def test_so_few_concepts_that_none_may_be_lost_show_nothing_and_without_a_loss_all_is_shown():
    assert line(asked([0.9] * 8, [True] * 8), 0.0, 0.9) > 1
    assert line(asked([0.9] * 9, [True] * 9), 0.0, 0.9) < -1


def test_wrong_pictures_of_one_score_are_shown_together_or_not_at_all():
    least = line(asked([0.9, 0.5, 0.5, 0.5, *[0.1] * 7], [False] * 11), 0.0, 0.75)
    assert 0.5 < least < 0.9


def test_questions_of_one_concept_share_its_loss():
    # of two questions for each concept one is wrong, so twice as many wrong ones may be shown
    of_two = asked(np.repeat(np.linspace(0.9, 0.1, 11), 2), [False, True] * 11, concepts=np.repeat(np.arange(11), 2))
    assert line(of_two, 0.0, 0.75) == pytest.approx(0.9 - 4 * 0.08, abs=2e-6)
    assert loss(of_two, 0.0, 0.5) == pytest.approx(6 / 2 / 11)


def test_a_higher_score_is_surer_and_split_words_are_less_sure():
    some = drawn(0, 400)
    slope = fitted(some)
    assert slope == pytest.approx(0.1, abs=0.05)
    assert fitted(asked(some.scores, ~some.right, splits=some.splits)) == 0.0
    assert fitted(asked(some.scores, some.right, splits=-some.splits)) == 0.0
    assert fitted(asked(some.scores, [False] * 800, splits=some.splits)) >= 0.0  # nothing is right: no weight is huge
    promise = promised(some)
    assert promise.num_concepts == 200 and promise.lines[0.75] < promise.lines[0.9]
    assert line_for(promise, 0.75, 1.0) == pytest.approx(promise.lines[0.75] + promise.slope)
    assert held_levels(promise, promise.lines[0.75], 0.0) == [0.75]
    assert held_levels(promise, promise.lines[0.9], 0.0) == [0.75, 0.9]


@pytest.mark.parametrize("slope", [0.0, 0.1, 9.0, -9.0])
@pytest.mark.parametrize("level", [0.75, 0.9])
def test_the_promise_holds_on_average_whatever_the_fit_says(slope, level):
    losses = []
    for seed in range(300):
        seen, new = drawn(seed, 40), drawn(1000 + seed, 40)
        losses.append(loss(new, slope, line(seen, slope, level)))
    deviation = np.std(losses) / len(losses) ** 0.5
    assert 1 - level - 0.05 < np.mean(losses) < 1 - level + 2 * deviation


def test_a_line_without_the_correction_would_break_it():
    """The same with a line that takes the share of those seen for that of the new: it loses more than one in ten."""
    losses = []
    for seed in range(1000):
        seen, new = drawn(seed, 12), drawn(1000 + seed, 40)
        wrong = np.sort(seen.scores[~seen.right])[::-1]
        losses.append(loss(new, 0.0, np.nextafter(wrong[int(0.1 * len(seen.scores))], 2)))
    assert np.mean(losses) > 0.11


@pytest.mark.parametrize(("question", "text", "right"), [
    ("red fox", "A red fox in the snow", True),  # all its words
    ("A young red fox", "red fox, young", True),  # three of four
    ("red fox", "red dog", False),  # one of three
    ("fox", "foxes", False),
    ("red", "", False),
])  # fmt: skip
def test_a_right_picture_has_all_words_or_half_of_both(question, text, right):
    assert is_right(question, ["something else", text]) is right


def test_texts_that_share_half_of_their_words_are_one_concept():
    texts = ["a red fox", "blue dog", "red fox, snow", "Snow: red", "dog"]
    assert concepts_of(texts) == [0, 1, 0, 0, 1]  # the fourth is tied to the first by the third
    assert concepts_of([]) == []


class Words:
    """An encoder of nothing, whose index answers by the words of a question."""

    def __init__(self, answers):
        self._answers, self._asked = answers, iter(())

    def splits(self, texts):
        self._asked = iter(texts)
        return np.zeros(len(texts))

    def embed_texts(self, texts):
        return np.zeros((len(texts), 2), np.float32)

    def search(self, vector, number):
        return [Hit(SimpleNamespace(texts=[text]), score) for text, score in self._answers[next(self._asked)][:number]]


def test_one_search_answers_with_the_right_pictures_and_without_them():
    index = Words({
        "a red fox": [("a red fox", 0.9), ("red fox, red", 0.8), ("a blue dog", 0.3)],
        "blue dog": [("a green cat", 0.7), ("blue dog", 0.6)],
        "all the same": [("all the same", 0.9)],  # nobody knows what comes after these
    })  # fmt: skip
    found = ask(index, index, ["a red fox", "all the same", "blue dog"])
    rows = sorted(zip(found.concepts.tolist(), found.scores.tolist(), found.right.tolist(), strict=True))
    assert rows == [(0, 0.3, False)] * 2 + [(0, 0.9, True)] * 2 + [(1, 0.7, False)] * 4
    assert ask(index, index, []).num_concepts == 0


def test_nauc_is_that_of_mteb():
    right = np.array([True] * 5 + [False] * 5)
    assert nauc(right.astype(float), right) == pytest.approx(1.0)
    assert nauc(-right.astype(float), right) < 0
    assert nauc(np.zeros(10), np.ones(10, bool)) == 0.0
    # left out in order of confidence: kept are 1/2, 5/9, 4/8, 4/7, 4/6, 4/5, 3/4, 2/3, 2/2, 1/1 right
    sure = np.array([9, 8, 7, 6, 1, 5, 4, 3, 2, 0], float)[[0, 1, 3, 4, 9, 2, 5, 6, 7, 8]]
    order = right[np.argsort(sure)]
    kept = [order[number:].mean() for number in range(10)]
    best = [5 / max(5, 10 - number) for number in range(10)]
    area = [sum((a + b) / 2 for a, b in pairwise(one)) / 10 for one in (kept, best)]
    assert nauc(sure, right) == pytest.approx((area[0] - 0.45) / (area[1] - 0.45))


@pytest.mark.parametrize("seed", range(3))
def test_answers_that_are_as_sure_count_as_their_mean_in_any_order(seed):
    """As in mteb/_evaluators/retrieval_metrics.py, nauc, of mteb 2.26.24."""
    order = np.random.default_rng(seed).permutation(10)
    right = np.array([True] + [False] * 4 + [True] * 4 + [False])[order]  # one of the first five, four of the others
    sure = np.repeat([0.0, 1.0], 5)[order]
    kept = [0.5, 4.8 / 9, 4.6 / 8, 4.4 / 7, 4.2 / 6, *[0.8] * 5]
    best = [5 / max(5, 10 - number) for number in range(10)]
    area = [sum((a + b) / 2 for a, b in pairwise(one)) / 10 for one in (kept, best)]
    assert nauc(sure, right) == pytest.approx((area[0] - 0.45) / (area[1] - 0.45))
    assert nauc(np.zeros(10), right) == pytest.approx(0.0)


def test_the_report_of_a_promise():
    some = drawn(0, 200)
    metrics = surely_metrics(some, num_splits=20)
    assert metrics["index/surely/num_concepts"] == 200
    assert 0.05 < metrics["index/surely/0.9/loss"] < 0.12 and 0.2 < metrics["index/surely/0.75/loss"] < 0.28
    assert metrics["index/surely/nauc_gain/low"] < metrics["index/surely/nauc_gain"]
    assert metrics["index/surely/nauc_gain"] < metrics["index/surely/nauc_gain/high"]
    assert len(surely_figure(some).axes) == 1


def test_a_table_has_the_line_after_the_last_picture_that_holds_it():
    def hits(*sure):
        return [
            SearchHit(
                key=str(rank), image_id="", split="", texts=[f"t{rank}"], image="", columns={}, rank=rank, score=0.5,
                sure=one,
            )
            for rank, one in enumerate(sure, 1)
        ]  # fmt: skip

    def rows(*sure):
        return [row.split()[-1] if row[0] != "-" else "---" for row in _table(hits(*sure), "Promised.")[1:]]

    assert rows(True, True, False, False) == ["t1", "t2", "---", "Promised.", "t3", "t4"]
    assert rows(False, False) == ["---", "Promised.", "t1", "t2"]
    assert rows(True, True) == rows(None, None) == ["t1", "t2"]


def test_what_a_line_means_is_said_in_words():
    promise = Promise(lines={0.75: 0.5, 0.9: 0.6}, slope=0.0, num_concepts=60)
    assert meaning(promise, 0.9, has_sure=True).startswith("Of 10 questions like the held-out texts of this index")
    assert meaning(promise, 0.75, has_sure=False).startswith(
        "No picture here surely shows this (as sure as 3 in 4). Of 4"
    )
