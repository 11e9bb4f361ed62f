"""Histograms by a real engine, and their distance."""

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from align.errors import FormatError
from align.validate.drift import Reference, distance, distributions, drift, read_reference, write_reference
from align.validate.figures import drift_figure
from tests.support import ROOT

REFERENCE = Reference(
    data="d", keep_rate=0.5, distributions={"language": {"en": 0.5, "de": 0.5}}, by="Ada", on="2026-01-31"
)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": 1.0}, {"a": 1.0}, 0.0),
        ({"a": 1.0}, {"b": 1.0}, 1.0),  # nothing in common
        ({"a": 0.5, "b": 0.5}, {"a": 0.4, "b": 0.6}, 0.1),
        ({"a": 0.5, "b": 0.5}, {"a": 0.5, "c": 0.5}, 0.5),  # a bucket that the other lacks is empty there
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
    found = distributions(rows_of(pairs), languages=True)
    assert {name: share for name, share in found["text_length"].items() if share} == {
        "0-9": 0.333333,
        "10-14": 0.666667,
    }
    assert {name: share for name, share in found["image_size"].items() if share} == {
        "100-199": 0.333333, "200-224": 0.333333, "4000+": 0.333333,
    }  # fmt: skip
    assert found["language"] == {"en": 0.666667, "unknown": 0.333333}
    assert "language" not in distributions(rows_of(pairs), languages=False)


def test_rare_languages_count_as_one() -> None:
    codes = [f"{first}{second}" for first in "abcdef" for second in "abcdef"]
    found = distributions(rows_of([(True, "a text", 300, code) for code in codes]), languages=True)["language"]
    assert len(found) == 31
    assert found["others"] == round(6 / 36, 6)
    assert abs(sum(found.values()) - 1) < 1e-4


def test_nothing_kept_is_nothing_found_rather_than_an_error() -> None:
    found = distributions(rows_of([(False, "a", 300, "en")]), languages=True)
    assert sum(found["text_length"].values()) == 0
    assert found["language"] == {}


def test_drift_measures_what_both_have() -> None:
    now = {"language": {"en": 0.8, "de": 0.2}, "text_length": {"0-9": 1.0}}
    assert drift(0.45, now, REFERENCE) == {"keep_rate": 0.05, "language": 0.3}


def test_a_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_reference(tmp_path) is None
    write_reference(REFERENCE, tmp_path)
    first = (tmp_path / "reference.json").read_bytes()
    assert read_reference(tmp_path) == REFERENCE
    write_reference(REFERENCE, tmp_path)
    assert (tmp_path / "reference.json").read_bytes() == first


def test_a_broken_reference_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text(json.dumps({"schema_version": 2, "reference": None}))
    with pytest.raises(FormatError, match=r"reference\.json: schema_version: .*--set-reference"):
        read_reference(tmp_path)


def test_the_committed_policy_is_readable() -> None:
    read_reference(ROOT / "data" / "policy")


def test_the_picture_has_a_panel_each_and_an_outline_of_the_reference() -> None:
    now = {"text_length": {"0-9": 0.2, "10-14": 0.8}, "language": {"en": 1.0}}
    alone, compared = drift_figure(now, {}), drift_figure(now, {"language": {"de": 0.5, "en": 0.5}})
    assert [len(axes.patches) for axes in alone.axes] == [2, 1]
    assert [len(axes.patches) for axes in compared.axes] == [2, 4]  # now and before, of en and de
