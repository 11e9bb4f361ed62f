import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols import composed_queries
from align.evaluate.protocols.composed_queries import precision_scores
from align.search import queries

DRAWS = {"num_resamples": 200, "seed": 0}


def unit(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_composed_as_search_composes() -> None:
    images, texts = unit(10, 50), unit(80, 20)
    found = composed_queries.compose(images, texts, np.array([2.0, -2.0]))
    assert found[0] == pytest.approx(queries.compose(images[0], plus=texts[0], text_weight=2))
    assert found[1] == pytest.approx(queries.compose(images[1], minus=texts[1], text_weight=2))


def test_precision_by_hand() -> None:
    items = unit(0, 10, 20, 30, 80)
    labels = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=bool)
    found = precision_scores(unit(1, 79), items, {"heart": labels}, k=3, **DRAWS)["heart/precision@3"]
    assert found.value == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found.chance == pytest.approx((2 / 5 + 1 / 5) / 2)
    own = precision_scores(unit(1, 79), items, {"heart": labels}, np.array([0, -1]), k=3, **DRAWS)["heart/precision@3"]
    assert own.value == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert own.chance == pytest.approx((1 / 4 + 1 / 5) / 2)


def test_a_tie_counts_against() -> None:
    items = np.ones((4, 2), dtype=np.float32)
    labels = np.array([[True, False, False, True]])
    assert precision_scores(items[:1], items, {"a": labels}, k=2, **DRAWS)["a/precision@2"].value == 0.0
    assert precision_scores(items[:1], items, {"a": labels}, k=9, **DRAWS)["a/precision@9"].value == 0.5


def test_bad_input() -> None:
    items, labels = unit(0, 10, 20), np.zeros((1, 3), dtype=bool)
    with pytest.raises(DataError, match="one width"):
        precision_scores(np.eye(3), items, {"a": labels}, **DRAWS)
    with pytest.raises(DataError, match=r"labels a: \(1, 3\), but there are \(2, 3\)"):
        precision_scores(unit(0, 1), items, {"a": labels}, **DRAWS)
    with pytest.raises(DataError, match="own images"):
        precision_scores(unit(0), items, {"a": labels}, np.array([3]), **DRAWS)
    with pytest.raises(DataError, match="not finite"):
        precision_scores(unit(0) * np.nan, items, {"a": labels}, **DRAWS)
    with pytest.raises(DataError, match="nothing was asked"):
        precision_scores(items[:0], items, {"a": labels[:0]}, **DRAWS)
    for image, text, weight in ((unit(0), unit(180), 1.0), (unit(0) * np.nan, unit(0), 1.0)):
        with pytest.raises(DataError, match="query 0: image and text cancel"):
            composed_queries.compose(image, text, np.array([weight]))
    with pytest.raises(DataError, match=r"\(2,\) weights"):
        composed_queries.compose(unit(0), unit(0), np.ones(2))
