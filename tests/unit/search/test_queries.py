from pathlib import Path

import numpy as np
import pytest

from align.errors import DataError, FormatError
from align.formats.labelled_queries import names, read_queries
from align.search.queries import MinusOutcome, compose, minus_share_ratio, share_named


@pytest.mark.parametrize(
    ("texts", "expected", "named"),
    [
        (["A red Heart"], ["heart"], True),
        (["broken hearts"], ["heart"], False),  # whole words only
        (["sweetheart"], ["heart"], False),
        (["heart-shaped box"], ["heart"], True),
        (["a dog", "fire  engine, truck"], ["fire engine"], True),
        (["fire, engine"], ["fire engine"], False),
        (["Ärger (c++)"], ["ärger"], True),
        ([], ["heart"], False),
    ],
)
def test_names_whole_words_of_any_text(texts: list[str], expected: list[str], named: bool) -> None:
    assert names(texts, expected) is named


def test_share_named() -> None:
    assert share_named([["a heart"], ["a star"], ["love", "heart"], ["rose"]], ["heart"]) == 0.5
    assert share_named([], ["heart"]) == 0.0


def test_the_text_weighs_twice_as_much_as_the_image() -> None:
    image, text = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    assert compose(image, plus=text, text_weight=2.0) == pytest.approx(np.array([1, 2]) / 5**0.5)
    assert compose(image, minus=text, text_weight=2.0) == pytest.approx(np.array([1, -2]) / 5**0.5)
    assert compose(image, plus=text, minus=text, text_weight=2.0) == pytest.approx(image)
    assert compose(image, text_weight=2.0) == pytest.approx(image)
    with pytest.raises(ValueError, match="cancel"):
        compose(image, minus=image, text_weight=1.0)


def test_minus_share_ratio() -> None:
    assert minus_share_ratio([MinusOutcome(0.8, 0.2), MinusOutcome(0.2, 0.2)]) == pytest.approx(0.4)
    assert minus_share_ratio([MinusOutcome(0.0, 0.0)]) == 1.0  # nothing to take away is no success
    assert minus_share_ratio([]) == 1.0


def test_a_query_file_is_read_or_explained(tmp_path: Path) -> None:
    path = tmp_path / "queries.json"
    with pytest.raises(DataError, match="no such file"):
        read_queries(path)
    path.write_text('{"schema_version": 1, "queries": [{"query": "a heart", "expected": []}], "composed": []}')
    with pytest.raises(FormatError, match=r"queries\.0\.expected"):
        read_queries(path)
    path.write_text('{"schema_version": 1, "queries": [{"query": "a heart", "expected": ["heart"]}], "composed": []}')
    assert read_queries(path).queries[0].expected == ["heart"]
