"""What a suite asks of captions: folds, and right items that others published, on pictures of one colour."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.config.suite import SuiteSet
from align.errors import DataError, FormatError
from align.evaluate.captioned import read_published, restricted
from align.evaluate.measure import Retrieval, measure_retrieval
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from tests.support.colours import COLOURS, ColourEncoder, square
from tests.support.suites import local_files


def captioned(**asked: Any) -> EvaluationSet:
    """A picture of each colour, twice: numbers 10, 11, ...; its two captions have ten times that, and one more."""
    images, pictures = [], []
    for number, (name, shade) in enumerate(((name, shade) for name in COLOURS for shade in (0, 15)), 10):
        texts, key = (f"{name} square", f"a {name} thing"), f"{name}{shade}"
        images.append(
            EvaluationImage(
                key, key, texts, None, None, "query", number=number, text_numbers=(10 * number, 10 * number + 1)
            )
        )
        pictures.append(square(name, shade=shade))
    entry = SuiteSet.model_validate({"name": "c", "path": "c.json", "format": "coco", "tasks": ["retrieval"], **asked})
    return EvaluationSet("c", "retrieval", "", images, (), (), held(pictures), repeats=True, asked=entry)


def measured(one: EvaluationSet) -> Retrieval:
    return measure_retrieval(
        one, ColourEncoder(), num_resamples=200, seed=0, published=read_published(one, local_files())
    )


def of_colour(one: EvaluationSet) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """Published positives: everything of the same colour is right."""
    colour = {image.number: image.texts[0] for image in one.images}
    of_image = {
        number: [10 * other + nth for other in colour for nth in (0, 1) if colour[other] == colour[number]]
        for number in colour
    }  # fmt: skip
    of_text: dict[int, list[int]] = {}
    for number, texts in of_image.items():
        for text in texts:
            of_text.setdefault(text, []).append(number)  # type: ignore[arg-type]
    return of_image, of_text  # type: ignore[return-value]


def files(folder: Path, of_image: object, of_text: object) -> dict[str, dict[str, str]]:
    (folder / "i.json").write_text(json.dumps(of_image))
    (folder / "t.json").write_text(json.dumps(of_text))
    return {"eccv": {"image_to_text": str(folder / "i.json"), "text_to_image": str(folder / "t.json")}}


def test_r_precision_and_map_at_r_where_a_query_has_several_right_items() -> None:
    scores = measured(captioned()).scores
    assert not any(name.startswith(("coco_1k", "eccv")) for name in scores)
    # Four texts of its colour are equally near to a picture, and the two of the other picture rank first.
    assert scores["image_to_text/recall@1"].value == scores["image_to_text/r_precision"].value == 0
    assert scores["image_to_text/recall@5"].value == 1
    assert "text_to_image/r_precision" not in scores  # one right picture: recall@1 by another name


def test_published_right_items_stand_beside_the_sets_own(tmp_path: Path) -> None:
    one = captioned(positives=files(tmp_path, *of_colour(captioned())))
    found = measured(one)
    for direction in ("image_to_text", "text_to_image"):
        assert found.scores[f"eccv/{direction}/recall@1"].value == found.scores[f"eccv/{direction}/map_at_r"].value == 1
    assert found.scores["eccv/image_to_text/r_precision"].chance == 4 / 16
    assert found.scores["image_to_text/recall@1"].value == 0  # as without the files
    few = of_colour(one)[0]
    half = {number: few[number] for number in list(few)[:3]}
    asked = read_published(captioned(positives=files(tmp_path, half, of_colour(one)[1])), local_files()).positives[
        "eccv"
    ][0]
    assert [len(right) for right in asked] == [4, 4, 4, 0, 0, 0, 0, 0]  # ids that are no keys are no queries


def test_right_items_of_a_picture_that_does_not_decode_are_left_out(tmp_path: Path) -> None:
    one = captioned(positives=files(tmp_path, *of_colour(captioned())))
    pictures = [data for _, data in one.read()]
    found = measured(replace(one, pictures=held([b"no picture", *pictures[1:]])))
    assert list(found.faults) == ["red0"]
    score = found.scores["eccv/image_to_text/r_precision"]
    assert score.value == 1 and score.chance == pytest.approx((2 + 6 * 4) / 7 / 14)
    some = restricted([np.array([5, 0, 3]), np.array([1])], [0], [0, 2, 5])
    assert [right.tolist() for right in some] == [[2, 0]]


def test_coco_1k_asks_within_folds() -> None:
    one = captioned(tasks=["retrieval", "coco_1k"])
    first = replace(one, images=one.images[::2][:4] + one.images[1:2], pictures=lambda positions: iter(()))
    pictures = [data for _, data in one.read()]
    first = replace(first, pictures=held([*pictures[::2][:4], pictures[1]]))
    scores = measured(first).scores
    # Ten captions make five folds of one picture each: the lighter red picture no longer hides the darker one.
    assert scores["coco_1k/text_to_image/recall@1"].value == scores["coco_1k/image_to_text/recall@1"].value == 1
    assert scores["text_to_image/recall@1"].value == pytest.approx(8 / 10)
    with pytest.raises(DataError, match="4 texts do not make 5 folds"):
        measured(replace(first, images=first.images[:2], pictures=held(pictures[:2])))


def test_multi30k_is_the_mean_of_six_recalls() -> None:
    scores = measured(captioned(tasks=["retrieval", "multi30k"])).scores
    recalls = [scores[f"multi30k/{way}/recall@{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    score = scores["multi30k/mean_recall"]
    assert score.value == pytest.approx(np.mean([one.value for one in recalls])) and 0 < score.value < 1
    assert score.chance == pytest.approx(np.mean([one.chance for one in recalls]))
    assert score.low <= score.value <= score.high
    assert not any(name.startswith("multi30k") for name in measured(captioned()).scores)


def test_files_that_do_not_fit_are_told_before_anything_is_embedded(tmp_path: Path) -> None:
    of_image, of_text = of_colour(captioned())
    with pytest.raises(DataError, match=r"evaluation set c: positives eccv: right items: the set lacks 1, .* id 999"):
        read_published(captioned(positives=files(tmp_path, {**of_image, 10: [999]}, of_text)), local_files())
    with pytest.raises(FormatError, match=r"positives eccv: .*i\.json"):
        read_published(captioned(positives=files(tmp_path, [1], of_text)), local_files())
    entry = files(tmp_path, of_image, of_text)
    (tmp_path / "t.json").unlink()
    with pytest.raises(DataError, match="No such file"):
        read_published(captioned(positives=entry), local_files())
    one = captioned(positives=files(tmp_path, of_image, of_text))
    with pytest.raises(DataError, match=r"c: c\.json has pictures or captions without COCO's ids"):
        read_published(replace(one, images=[replace(image, number=None) for image in one.images]), local_files())


def ratings(folder: Path, one: EvaluationSet) -> Path:
    """Every pair of the set, rated about 5 where both show one colour, and less by the distance of the colours else."""
    place = itertools.count()  # no two ratings are equal: three equal ones have no correlation

    def near(left: int, right: int) -> float:
        colours = [np.array(COLOURS[one.images[index - 10].texts[0].split()[0]]) / 255 for index in (left, right)]
        return round(5 - 3.3 * float(np.linalg.norm(colours[0] - colours[1])) - 0.0005 * next(place), 4)

    images = [int(image.number or 0) for image in one.images]
    texts = [number for image in one.images for number in image.text_numbers]
    said = {
        "sts": [f"C:sentid:{a},C:sentid:{b},{near(a // 10, b // 10)},x" for a in texts for b in texts if a < b],
        "sis": [f"v_{a:012}.jpg,v_{b:012}.jpg,{near(a, b)},x" for a in images for b in images if a < b],
        "sits": [f"C:sentid:{a},v_{b:012}.jpg,{near(a // 10, b)},x" for a in texts for b in images],
    }
    heads = {"sts": "caption1,caption2", "sis": "image1,image2", "sits": "caption,image"}
    for kind, rows in said.items():
        (folder / f"{kind}_test.csv").write_text("\n".join([f"{heads[kind]},agg_score,sampling_method", *rows]) + "\n")
    return folder


def test_crisscrossed_captions_give_four_retrievals_and_three_correlations(tmp_path: Path) -> None:
    one = captioned(tasks=["retrieval", "cxc"], ratings=str(ratings(tmp_path, captioned())))
    scores = measured(one).scores
    for direction in ("image_to_text", "text_to_image", "text_to_text", "image_to_image"):
        assert scores[f"cxc/{direction}/recall@1"].value == scores[f"cxc/{direction}/r_precision"].value == 1
    for name in ("sts", "sis", "sits"):
        score = scores[f"cxc/{name}"]
        assert score.value > 0.5 and score.low <= score.value <= score.high <= 1 and score.chance == 0
    assert scores["image_to_text/recall@1"].value == 0  # the set's own are what they were
    assert not any(name.startswith("cxc") for name in measured(captioned()).scores)


def test_rated_pairs_of_a_picture_that_does_not_decode_are_left_out(tmp_path: Path) -> None:
    one = captioned(tasks=["retrieval", "cxc"], ratings=str(ratings(tmp_path, captioned())))
    pictures = [data for _, data in one.read()]
    scores = measured(replace(one, pictures=held([*pictures[:3], b"no picture", *pictures[4:]]))).scores
    # Seven pictures, each but the other green one with one more of its colour; the query itself is no item.
    assert scores["cxc/image_to_image/recall@1"].chance == pytest.approx(1 / 6)
    assert scores["cxc/image_to_image/recall@1"].value == scores["cxc/text_to_image/recall@1"].value == 1


def test_files_of_ratings_that_do_not_fit_are_told(tmp_path: Path) -> None:
    entry = {"tasks": ["retrieval", "cxc"], "ratings": str(ratings(tmp_path, captioned()))}
    (tmp_path / "sis_test.csv").write_text((tmp_path / "sts_test.csv").read_text())
    with pytest.raises(DataError, match=r"c: cxc: .*sis_test\.csv: its pairs are those of sts_test\.csv"):
        read_published(captioned(**entry), local_files())
    (tmp_path / "sts_test.csv").write_text("caption1,caption2,agg_score\nC:sentid:9,C:sentid:100,1\n")
    with pytest.raises(DataError, match=r"c: cxc: sts: caption: the set lacks 1, the first is id 9"):
        read_published(captioned(**entry), local_files())
    (tmp_path / "sts_test.csv").unlink()
    with pytest.raises(DataError, match=r"c: cxc: .*sts_test\.csv: the ratings cannot be read: .*No such file"):
        read_published(captioned(**entry), local_files())
