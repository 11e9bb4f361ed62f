"""Histograms by a real engine, and their distance."""

import duckdb
import pytest
from ruamel.yaml import YAML

from align.config.validate import ValidateConfig
from align.formats.drift_reference import DriftReference
from align.validate.drift import distance, distributions, drift
from align.validate.figures import drift_figure
from align.validate.page import as_yaml
from align.validate.statistics import suggested_bands
from tests.support.params import load_params

REFERENCE = DriftReference(
    data="d", keep_rate=0.5, distributions={"language": {"en": 0.5, "de": 0.5}}, by="Ada", on="2026-01-31"
)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 1.0}, {"a": 1.0}, 0.0),
        ({"a": 1.0}, {"b": 1.0}, 1.0),  # nothing in common
        ({"a": 0.5, "b": 0.5}, {"a": 0.4, "b": 0.6}, 0.1),
        ({"a": 0.5, "b": 0.5}, {"a": 0.5, "c": 0.5}, 0.5),  # a bucket that one lacks counts as empty
        ({}, {}, 0.0),
    ],
)
def test_distance_is_the_share_that_would_have_to_move(one, other, expected):
    assert distance(one, other) == expected
    assert distance(other, one) == expected


def rows_of(pairs):
    """Runs SQL over pairs of (keep, text, shorter side in px, language)."""
    connection = duckdb.connect()
    connection.execute("CREATE TABLE decisions (key TEXT, keep BOOLEAN, text TEXT, image_id INT, language TEXT)")
    connection.execute("CREATE TABLE images (image_id INT, width_px INT, height_px INT)")
    for index, (keep, text, side, language) in enumerate(pairs):
        connection.execute("INSERT INTO decisions VALUES (?, ?, ?, ?, ?)", [str(index), keep, text, index, language])
        connection.execute("INSERT INTO images VALUES (?, ?, ?)", [index, side, side + 50])
    return lambda query: connection.execute(query).fetchall()


def test_only_kept_pairs_count_and_buckets_begin_at_their_lower_end():
    pairs = [
        (True, "x" * 9, 199, "en"),
        (True, "x" * 10, 200, "en"),
        (True, "é" * 14, 4000, None),
        (False, "y", 1, "de"),
    ]
    histograms = distributions(rows_of(pairs))
    assert {name: share for name, share in histograms["text_length"].items() if share} == {
        "0-9": 0.333333,
        "10-14": 0.666667,
    }
    assert {name: share for name, share in histograms["image_size"].items() if share} == {
        "100-199": 0.333333, "200-224": 0.333333, "4000+": 0.333333,
    }  # fmt: skip
    assert histograms["language"] == {"en": 0.666667, "unknown": 0.333333}


def test_rare_languages_count_as_one():
    codes = [f"{first}{second}" for first in "abcdef" for second in "abcdef"]
    shares = distributions(rows_of([(True, "a text", 300, code) for code in codes]))["language"]
    assert len(shares) == 31
    assert shares["others"] == round(6 / 36, 6)
    assert abs(sum(shares.values()) - 1) < 1e-4


def test_nothing_kept_gives_empty_histograms_rather_than_an_error():
    histograms = distributions(rows_of([(False, "a", 300, "en")]))
    assert sum(histograms["text_length"].values()) == 0
    assert histograms["language"] == {}


def test_drift_measures_what_both_have():
    now = {"language": {"en": 0.8, "de": 0.2}, "text_length": {"0-9": 1.0}}
    assert drift(0.45, now, REFERENCE) == {"keep_rate": 0.05, "language": 0.3}


def test_the_picture_has_a_panel_each_and_an_outline_of_the_reference():
    now = {"text_length": {"0-9": 0.2, "10-14": 0.8}, "language": {"en": 1.0}}
    alone, compared = drift_figure(now, {}), drift_figure(now, {"language": {"de": 0.5, "en": 0.5}})
    assert [len(axes.patches) for axes in alone.axes] == [2, 1]
    assert [len(axes.patches) for axes in compared.axes] == [2, 4]  # now and before, of en and de
    empty = drift_figure(now | {"image_size": {"0-99": 0.0}}, {})
    assert len(empty.axes) == 2  # a distribution without pairs has no panel


CONFIG = load_params().section(ValidateConfig)
GOOD = {"raw_pairs": 5000, "raw_success_share": 0.95, "keep_rate": 0.5, "dropped_text_too_short": 0.2}


def test_a_gate_that_passed_suggests_nothing():
    assert suggested_bands(CONFIG, GOOD) == {}
    assert suggested_bands(CONFIG, dict.fromkeys(GOOD)) == {}  # a column is missing: nothing was measured


@pytest.mark.parametrize(
    ("measured", "bands"),
    [
        ({"raw_pairs": 20}, {"min_pairs": 20}),
        ({"raw_pairs": 0}, {}),  # no band helps
        ({"raw_success_share": 0.634}, {"min_success_share": 0.53}),
        ({"raw_success_share": 0.05}, {"min_success_share": 0.0}),
        ({"keep_rate": 0.074}, {"keep_rate": [0.0, 0.8]}),
        ({"keep_rate": 0.931}, {"keep_rate": [0.3, 1.0]}),
        ({"dropped_text_too_short": 0.3}, {"dropped_share": {"text_too_short": [0.0, 0.4]}}),
        ({"kept_evaluation_hashes": 0.5}, {}),  # leakage is no band
    ],
)
def test_what_failed_gets_ten_points_of_room(measured, bands):
    assert suggested_bands(CONFIG, GOOD | measured) == bands


def test_data_passes_with_the_suggested_lines():
    measured = {"raw_pairs": 7, "raw_success_share": 0.41, "keep_rate": 0.02, "dropped_text_too_short": 0.77}
    lines = as_yaml(suggested_bands(CONFIG, measured))
    bands = YAML(typ="safe", pure=True).load(lines)["validate"]
    changed = CONFIG.model_dump() | bands | {"dropped_share": CONFIG.dropped_share | bands["dropped_share"]}
    assert suggested_bands(ValidateConfig.model_validate(changed), measured) == {}
