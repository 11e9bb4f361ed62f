"""What a suite asks of classes beside zero-shot: classifiers that learn, on embeddings made up here."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from align.config.suite import SuiteSet
from align.errors import DataError
from align.evaluate.learned import learned_scores
from align.evaluate.measure import measure_classification
from align.evaluate.protocols.labelled import Labelled
from align.evaluate.protocols.recall import Direction
from align.formats.query_ranks import QueryRanks, Ranked
from align.statistics.paired import difference, of_metrics, set_of
from tests.support.colours import ColourEncoder
from tests.unit.evaluate.test_evaluate import colour_set

HOW: dict[str, Any] = {"num_resamples": 200, "seed": 0}


def asked(*tasks: str, **more: Any) -> SuiteSet:
    entry = {"name": "c", "path": "c", "format": "folder", "tasks": ["zero_shot", *tasks], **more}
    return SuiteSet.model_validate(entry)


def split(name: str, seed: int, each: int, classes: int = 3) -> Labelled:
    """Pictures of each class around its own corner, on the unit sphere; hard enough for one in ten to be wrong."""
    labels = np.repeat(np.arange(classes), each)
    rows = np.random.default_rng(seed).normal(size=(len(labels), 16))
    rows[np.arange(len(labels)), labels] += 3
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Labelled(name, rows.astype(np.float32), labels)


TRAIN, TEST = split("train", 0, 60), split("test", 1, 40)


def test_each_task_has_its_metrics_and_all_of_them_learn() -> None:
    entry = asked(
        "knn", "linear_probe", "frozen", knn={"neighbours": [9, 20]}, frozen={"preset": "small"}
    )  # fmt: skip
    found = learned_scores(entry, TRAIN, TEST, 3, **HOW)
    assert list(found) == ["knn_9/accuracy", "knn_20/accuracy", "linear_probe/accuracy", "frozen/accuracy"]
    for name, score in found.items():
        assert score.chance == 1 / 3 and score.low < score.value < score.high
        assert score.low > 0.6, name
    assert found == learned_scores(entry, TRAIN, TEST, 3, **HOW)


def test_nothing_is_fitted_that_is_not_asked() -> None:
    assert learned_scores(asked("knn"), TRAIN, TEST, 3, **HOW) == {}


def test_single_answers_are_kept_for_comparisons() -> None:
    """From them follows each metric, as `align evaluate --compare` needs it."""
    entry = asked("knn", "linear_probe", knn={"neighbours": [9]})
    kept: dict[str, Direction] = {}
    found = learned_scores(entry, TRAIN, TEST, 3, answered=kept, **HOW)
    assert list(kept) == ["knn_9", "linear_probe"]
    ids = tuple(map(str, range(len(TEST))))
    ranked = {
        ("c", name): Ranked(ids, ids, None, of.ranks, np.asarray(of.num_correct), of.num_items)
        for name, of in kept.items()
    }
    ranks = QueryRanks({"c": "digest"}, ranked)
    for name, score in found.items():
        parts = ranks.scored(f"c/{name}")
        assert np.mean([part.values.mean() for part in parts]) == pytest.approx(score.value)
        assert ranks.chance(f"c/{name}") == score.chance == 1 / 3
        assert set_of(f"c/{name}") == "c"
        assert difference(of_metrics([f"c/{name}"], ranks, ranks), confidence=0.95).value == 0


def test_settings_are_obeyed() -> None:
    """A probe of one step in a far too small rate knows no more than chance."""
    weak = {"epochs": 1, "learning_rate": 1e-9, "validation_share": None}
    found = learned_scores(asked("linear_probe", linear_probe=weak), TRAIN, TEST, 3, **HOW)
    strong = learned_scores(asked("linear_probe", linear_probe={"validation_share": None}), TRAIN, TEST, 3, **HOW)
    assert found["linear_probe/accuracy"].value < 0.7 < strong["linear_probe/accuracy"].value
    one = split("few", 2, 1)
    with pytest.raises(DataError, match="c: linear_probe: 3 pictures leave none to choose"):
        learned_scores(asked("linear_probe", linear_probe={"validation_share": 0.1}), one, TEST, 3, **HOW)


def test_vtab_takes_a_thousand_pictures_in_their_order() -> None:
    few = {"trials": 2, "runs": [0], "epochs": [2]}
    large = split("train", 3, 400)
    with pytest.raises(DataError, match=r"c: vtab: .*class after class: set `vtab: \{shuffle: true\}`"):
        learned_scores(asked("vtab", vtab=few), large, TEST, 3, **HOW)
    with pytest.raises(DataError, match="evaluation set c: vtab: train: 180 images; VTAB takes the first 1,000"):
        learned_scores(asked("vtab", vtab=few | {"shuffle": True}), TRAIN, TEST, 3, **HOW)
    found = learned_scores(asked("vtab", vtab=few | {"shuffle": True}), large, TEST, 3, **HOW)
    mixed = large.subset(np.random.default_rng(0).permutation(len(large)))
    assert found == learned_scores(asked("vtab", vtab=few), mixed, TEST, 3, **HOW)
    assert found["vtab/accuracy"].low > 0.5


def test_a_set_learns_from_its_split_of_references_and_scores_stand_beside_zero_shot() -> None:
    probe = {"linear_probe": {"epochs": 200, "validation_share": None}}
    one = replace(colour_set("classification"), asked=asked("linear_probe", **probe))
    measured = measure_classification(one, ColourEncoder(), num_resamples=100, seed=0)
    scores = measured.scores
    assert list(measured.ranked()) == ["zero_shot", "linear_probe"]
    assert scores["linear_probe/accuracy"].value == scores["zero_shot/accuracy"].value == 1
    assert "knn/accuracy" not in scores  # not asked
    queries = [position for position, image in enumerate(one.images) if image.split == "query"]
    with pytest.raises(DataError, match="classes: no picture of split train can be shown"):
        measure_classification(one.select(queries), ColourEncoder(), num_resamples=100, seed=0)
