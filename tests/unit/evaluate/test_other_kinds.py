"""Sets that are neither captions nor one class a picture, in one report with them, and alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import webdataset

from align.config.evaluate import EvaluateConfig
from align.evaluate.announce import announce
from align.evaluate.evaluate import SuiteNeeds, evaluate
from align.evaluate.many_labels import measure_many_labels
from align.evaluate.tuned import Tuner
from align.formats.evaluation_set import EvaluationSet
from align.formats.query_ranks import RANKS, read_ranks
from tests.support.colours import COLOURS, ColourEncoder, square
from tests.support.suites import local_files, read
from tests.unit.evaluate.test_captioned import captioned

CONFIG = EvaluateConfig(num_resamples=100, seed=0, image_px=None, num_examples=1, max_test_images=0)


def many_labels(root: Path) -> EvaluationSet:
    """The red picture has two classes, and is nearer to one of them."""
    (root / "test").mkdir(parents=True)
    (root / "test/nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\n".join(COLOURS))
    with webdataset.TarWriter(str(root / "test/0.tar")) as writer:
        for number, name in enumerate(COLOURS):
            has = np.eye(4, dtype=np.uint8)[number] | np.array([0, int(name == "red"), 0, 0], np.uint8)
            writer.write({"__key__": name, "jpg": square(name), "npy": has})
    return read(root, root, "webdataset", "zero_shot", templates=["a {} thing"])


def test_mean_average_precision(tmp_path: Path) -> None:
    found = measure_many_labels(many_labels(tmp_path), ColourEncoder(), num_resamples=100, seed=0)
    # To green are near, in this order, green, yellow, and then red or blue: red is right at rank 3 or 4.
    green = found.groups["green"]
    assert green["num_rows"] == 2 and green["average_precision"] in (round((1 + 2 / 3) / 2, 6), (1 + 2 / 4) / 2)
    assert {name: found.groups[name]["average_precision"] for name in ("red", "blue", "yellow")} == {
        "red": 1.0, "blue": 1.0, "yellow": 1.0
    }  # fmt: skip
    score = found.scores["zero_shot/mean_average_precision"]
    assert score.value == pytest.approx((3 + green["average_precision"]) / 4, abs=1e-6) and 0 < score.chance < 1


def test_one_report_of_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [captioned(tasks=["retrieval", "multi30k"]), many_labels(tmp_path / "many")]
    announce(sets, ColourEncoder(), Tuner(tmp_path / "no_model", tmp_path / "checkpoints"))
    assert "one: 4 pictures with any of 4" in capsys.readouterr().err
    report = evaluate(
        CONFIG, encoder=ColourEncoder(), sets=sets, reports=tmp_path / "r", suite=SuiteNeeds(local_files())
    )
    metrics = json.loads((tmp_path / "r/metrics.json").read_text())
    assert {"c/multi30k/mean_recall", "one/zero_shot/mean_average_precision/low"} <= metrics.keys()
    assert report.groups["one"]["red"] == {"num_rows": 1, "average_precision": 1.0}
    page = (tmp_path / "r/report.html").read_text()
    for words in ("Multi30K", "Groups of one"):
        assert words in page, words
    assert set(read_ranks(tmp_path / "r" / RANKS).sets) == {one.name for one in sets}


def test_a_set_of_many_labels_alone(tmp_path: Path) -> None:
    one = many_labels(tmp_path / "many")
    report = evaluate(CONFIG, encoder=ColourEncoder(), sets=[one], reports=tmp_path / "r")
    assert report.metrics["one/zero_shot/mean_average_precision"] > 0.9
    assert "one: mean average precision 95.8%" in (tmp_path / "r/report.html").read_text()
