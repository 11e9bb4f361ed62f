"""Histograms by a real engine, and their distance."""

from typing import Any

import duckdb
import pytest

from align.formats.drift_reference import DriftReference
from align.validate.drift import distance, distributions, drift
from align.validate.figures import drift_figure

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
def test_distance_is_the_share_that_would_have_to_move(
    one: dict[str, float], other: dict[str, float], expected: float
) -> None:
    assert distance(one, other) == expected
    assert distance(other, one) == expected


def rows_of(pairs: list[tuple[Any, ...]]) -> Any:
    """Runs SQL over pairs of (keep, text, shorter side in px, language)."""
    connection = duckdb.connect()
    connection.execute(
        "CREATE TABLE decisions (key VARCHAR, keep BOOLEAN, text VARCHAR, image_id INT, language VARCHAR)"
    )
    connection.execute("CREATE TABLE images (image_id INT, width_px INT, height_px INT)")
    for index, (keep, text, side, language) in enumerate(pairs):
        connection.execute("INSERT INTO decisions VALUES (?, ?, ?, ?, ?)", [str(index), keep, text, index, language])
        connection.execute("INSERT INTO images VALUES (?, ?, ?)", [index, side, side + 50])
    return lambda query: connection.execute(query).fetchall()


def test_only_kept_pairs_count_and_buckets_begin_at_their_lower_end() -> None:
    pairs = [
        (True, "x" * 9, 199, "en"),
        (True, "x" * 10, 200, "en"),
        (True, "é" * 14, 4000, None),
        (False, "y", 1, "de"),
    ]
    histograms = distributions(rows_of(pairs), languages=True)
    assert {name: share for name, share in histograms["text_length"].items() if share} == {
        "0-9": 0.333333,
        "10-14": 0.666667,
    }
    assert {name: share for name, share in histograms["image_size"].items() if share} == {
        "100-199": 0.333333,
        "200-224": 0.333333,
        "4000+": 0.333333,
    }
    assert histograms["language"] == {"en": 0.666667, "unknown": 0.333333}
    assert "language" not in distributions(rows_of(pairs), languages=False)


def test_rare_languages_count_as_one() -> None:
    codes = [f"{first}{second}" for first in "abcdef" for second in "abcdef"]
    shares = distributions(rows_of([(True, "a text", 300, code) for code in codes]), languages=True)["language"]
    assert len(shares) == 31
    assert shares["others"] == round(6 / 36, 6)
    assert abs(sum(shares.values()) - 1) < 1e-4


def test_nothing_kept_gives_empty_histograms_rather_than_an_error() -> None:
    histograms = distributions(rows_of([(False, "a", 300, "en")]), languages=True)
    assert sum(histograms["text_length"].values()) == 0
    assert histograms["language"] == {}


def test_drift_measures_what_both_have() -> None:
    now = {"language": {"en": 0.8, "de": 0.2}, "text_length": {"0-9": 1.0}}
    assert drift(0.45, now, REFERENCE) == {"keep_rate": 0.05, "language": 0.3}


def test_the_picture_has_a_panel_each_and_an_outline_of_the_reference() -> None:
    now = {"text_length": {"0-9": 0.2, "10-14": 0.8}, "language": {"en": 1.0}}
    alone, compared = drift_figure(now, {}), drift_figure(now, {"language": {"de": 0.5, "en": 0.5}})
    assert [len(axes.patches) for axes in alone.axes] == [2, 1]
    assert [len(axes.patches) for axes in compared.axes] == [2, 4]  # now and before, of en and de
