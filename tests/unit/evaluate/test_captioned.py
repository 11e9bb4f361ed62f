"""What a suite asks of captions: Multi30K and people's ratings, on pictures of one colour."""

import json
from dataclasses import replace

import numpy as np
import pytest

from align.config.evaluate import EvaluateConfig
from align.errors import ConfigError, DataError
from align.evaluate.captioned import read_ratings
from align.evaluate.evaluate import SuiteNeeds, evaluate
from align.evaluate.measure import measure_retrieval
from align.formats.evaluation_set import held
from align.formats.query_ranks import RANKS, read_ranks
from tests.support.colours import ColourEncoder
from tests.support.rated_captions import captioned, ratings
from tests.support.suites import local_files


def measured(one):
    return measure_retrieval(one, ColourEncoder(), num_resamples=200, seed=0, ratings=read_ratings(one, local_files()))


def test_multi30k_is_the_mean_of_six_recalls():
    scores = measured(captioned(tasks=["retrieval", "multi30k"])).scores
    recalls = [scores[f"multi30k/{way}/recall@{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    score = scores["multi30k/mean_recall"]
    assert score.value == pytest.approx(np.mean([one.value for one in recalls])) and 0 < score.value < 1
    assert score.chance == pytest.approx(np.mean([one.chance for one in recalls]))
    assert score.low <= score.value <= score.high
    assert not any(name.startswith("multi30k") for name in measured(captioned()).scores)


def test_crisscrossed_captions_give_four_retrievals_and_three_correlations(tmp_path):
    one = captioned(tasks=["retrieval", "cxc"], ratings=str(ratings(tmp_path, captioned())))
    scores = measured(one).scores
    for direction in ("image_to_text", "text_to_image", "text_to_text", "image_to_image"):
        assert scores[f"cxc/{direction}/recall@1"].value == 1
    for name in ("sts", "sis", "sits"):
        score = scores[f"cxc/{name}"]
        assert score.value > 0.5 and score.low <= score.value <= score.high <= 1 and score.chance == 0
    assert scores["image_to_text/recall@1"].value == 0.5  # the set's own are what they were
    assert not any(name.startswith("cxc") for name in measured(captioned()).scores)


def test_rated_pairs_of_a_picture_that_does_not_decode_are_left_out(tmp_path):
    one = captioned(tasks=["retrieval", "cxc"], ratings=str(ratings(tmp_path, captioned())))
    pictures = [data for _, data in one.read()]
    scores = measured(replace(one, pictures=held([*pictures[:3], b"no picture", *pictures[4:]]))).scores
    # Seven pictures, each but the other green one with one more of its colour; the query itself is no item.
    assert scores["cxc/image_to_image/recall@1"].chance == pytest.approx(1 / 6)
    assert scores["cxc/image_to_image/recall@1"].value == scores["cxc/text_to_image/recall@1"].value == 1


def test_files_of_ratings_that_do_not_fit_are_told(tmp_path):
    entry = {"tasks": ["retrieval", "cxc"], "ratings": str(ratings(tmp_path, captioned()))}
    (tmp_path / "sis_test.csv").write_text((tmp_path / "sts_test.csv").read_text())
    with pytest.raises(DataError, match=r"c: cxc: .*sis_test\.csv: its pairs are those of sts_test\.csv"):
        read_ratings(captioned(**entry), local_files())
    (tmp_path / "sts_test.csv").write_text("caption1,caption2,agg_score\nC:sentid:9,C:sentid:100,1\n")
    with pytest.raises(DataError, match=r"c: cxc: sts: caption: the set lacks 1, the first is id 9"):
        read_ratings(captioned(**entry), local_files())
    (tmp_path / "sts_test.csv").unlink()
    with pytest.raises(DataError, match=r"c: cxc: .*sts_test\.csv: the ratings cannot be read: .*No such file"):
        read_ratings(captioned(**entry), local_files())
    one = captioned(**entry)
    with pytest.raises(DataError, match=r"c: c\.json has pictures or captions without COCO's ids"):
        read_ratings(replace(one, images=[replace(image, number=None) for image in one.images]), local_files())


CONFIG = EvaluateConfig(num_resamples=100, seed=0, image_px=None, num_examples=1, max_test_images=0)


def test_a_report_of_captions_with_ratings(tmp_path):
    sets = [captioned(tasks=["retrieval", "multi30k", "cxc"], ratings=str(ratings(tmp_path, captioned())))]
    evaluate(CONFIG, encoder=ColourEncoder(), sets=sets, reports=tmp_path / "r", suite=SuiteNeeds(local_files()))
    metrics = json.loads((tmp_path / "r/metrics.json").read_text())
    assert {"c/multi30k/mean_recall", "c/cxc/sts/low"} <= metrics.keys()
    page = (tmp_path / "r/report.html").read_text()
    assert "Multi30K" in page and "Crisscrossed Captions" in page
    assert set(read_ranks(tmp_path / "r" / RANKS).sets) == {"c"}
    with pytest.raises(ConfigError, match="set c: its ratings are read with its suite only"):
        evaluate(CONFIG, encoder=ColourEncoder(), sets=sets, reports=tmp_path / "r")
