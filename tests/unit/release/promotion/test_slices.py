"""Slices by language: a candidate that is better overall and worse in one language is refused by name."""

from dataclasses import replace

import numpy as np
import pytest

from align.config.release import PromoteConfig
from align.formats.query_ranks import IMAGE_TO_TEXT, TEXT_TO_IMAGE, QueryRanks, Ranked
from align.release.promotion import gates
from align.release.promotion.decision import Compared
from align.release.promotion.slices import MIN_UNITS, compared_slices
from align.statistics.paired import difference, of_metrics
from tests.support.params import load_params

METRIC = "shop/mean_recall"
#: Language -> concepts asked in it.
ASKED = {"en": 200, "de": 40, "fr": 8, None: 12}
NUM_ITEMS = 100


def ranks(recalls, asked=ASKED):
    """A model that answers this share of the queries of each language."""
    told = [language for language, number in asked.items() for _ in range(number)]
    values = [
        1 if index < round(recalls[language] * number) else NUM_ITEMS
        for language, number in asked.items()
        for index in range(number)
    ]
    ids, ones = tuple(map(str, range(len(told)))), np.ones(len(told), np.int64)
    part = Ranked(ids, ids, None, np.array(values, np.int64), ones, NUM_ITEMS, tuple(told))
    return QueryRanks({"shop": "d" * 64}, {("shop", name): part for name in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)})


def without_languages(whole):
    """As a file of schema_version 1 is read."""
    return replace(whole, ranked={key: replace(part, languages=()) for key, part in whole.ranked.items()})


@pytest.fixture
def config():
    return load_params().section(PromoteConfig)


def compared(config, mine, theirs):
    one = difference(of_metrics([METRIC], mine, theirs), confidence=config.confidence)
    return Compared(one, {METRIC: one}, tuple(compared_slices(config, mine, theirs)))


CHAMPION = ranks({"en": 0.5, "de": 0.8, "fr": 0.5, None: 0.5})
WORSE_IN_GERMAN = ranks({"en": 0.9, "de": 0.4, "fr": 0.0, None: 0.5})


def test_better_overall_and_worse_in_one_language_is_refused(config):
    found = compared(config, WORSE_IN_GERMAN, CHAMPION)
    assert gates.better(config, found, 1).passed
    gate = gates.no_slice_worse(config, found)
    assert gate.passed is False
    assert gate.figure == "shop: language de −40.0 points"
    by_name = {one.name: one for one in found.slices}
    assert list(by_name) == ["shop", "shop: language de", "shop: language en", "shop: language fr"]
    assert by_name["shop: language de"].num_queries == 80  # both ways of asking
    assert by_name["shop: language de"].num_units == 40


@pytest.mark.parametrize(("beyond", "worse"), [(0.001, False), (-0.001, True)])
def test_a_slice_is_worse_where_its_upper_bound_is_below_the_margin(config, beyond, worse):
    def german(config):
        return {one.name: one for one in compared_slices(config, WORSE_IN_GERMAN, CHAMPION)}["shop: language de"]

    measured = german(config).difference
    assert measured is not None and measured.value < measured.high < -0.01
    assert german(config.model_copy(update={"slice_margin": beyond - measured.high})).worse is worse


def test_of_more_slices_each_is_judged_with_more_confidence(config):
    alone = compared_slices(config, without_languages(WORSE_IN_GERMAN), without_languages(CHAMPION))[0].difference
    one_of_three = compared_slices(config, WORSE_IN_GERMAN, CHAMPION)[0].difference
    assert alone is not None and one_of_three is not None and alone.value == one_of_three.value
    assert one_of_three.low < alone.low < alone.high < one_of_three.high


def test_a_set_of_other_items_is_no_slice(config):
    assert compared_slices(config, replace(WORSE_IN_GERMAN, sets={"shop": "e" * 64}), CHAMPION) == []


def test_a_language_of_few_concepts_refuses_nothing_and_the_row_says_so(config):
    found = compared(config, ranks({"en": 0.9, "de": 0.8, "fr": 0.0, None: 0.5}), CHAMPION)
    (french,) = (one for one in found.slices if one.name == "shop: language fr")
    assert french.num_units == 8 < MIN_UNITS and french.difference is None and not french.worse
    gate = gates.no_slice_worse(config, found)
    assert (gate.passed, gate.figure) == (True, "none of 3; 1 with too few concepts to tell")


def test_where_no_language_is_known_or_all_is_in_one_the_set_alone_is_judged(config):
    pairs = [
        (without_languages(WORSE_IN_GERMAN), without_languages(CHAMPION)),
        (ranks({"en": 0.9}, {"en": 60}), ranks({"en": 0.5}, {"en": 60})),
        (ranks({None: 0.9}, {None: 60}), ranks({None: 0.5}, {None: 60})),
    ]
    for mine, theirs in pairs:
        assert [one.name for one in compared_slices(config, mine, theirs)] == ["shop"]


def test_a_language_that_only_texts_have_is_judged_by_them(config):
    """Each image may have texts in several languages: then no image has one."""

    def split(whole):
        images = replace(whole.ranked["shop", IMAGE_TO_TEXT], languages=())
        return replace(whole, ranked={**whole.ranked, ("shop", IMAGE_TO_TEXT): images})

    found = {one.name: one for one in compared_slices(config, split(WORSE_IN_GERMAN), split(CHAMPION))}
    german = found["shop: language de"]
    assert german.num_queries == 40 and german.worse
    assert german.difference is not None and german.difference.value == pytest.approx(-0.4)
