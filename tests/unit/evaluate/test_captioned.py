"""What a suite asks of captions: folds, and right items that others published, on pictures of one colour."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from align.config.evaluate import EvaluateConfig
from align.config.suite import SuiteSet
from align.errors import DataError, FormatError
from align.evaluate.captioned import Shown, query_scores, read_published, restricted
from align.evaluate.evaluate import SuiteNeeds, announce, evaluate
from align.evaluate.measure import Retrieval, measure_many_labels, measure_retrieval, published_gallery
from align.evaluate.tuned import Tuner
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.labelled_queries import QueryFile, parse_queries
from align.formats.query_ranks import RANKS, read_ranks
from tests.support.colours import COLOURS, ColourEncoder, square
from tests.support.suites import local_files, read


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
    # Four texts of its colour are equally near to a picture, two of them the other picture's.
    for name in ("recall@1", "r_precision"):
        assert (scores[f"image_to_text/{name}"].value, scores[f"image_to_text/{name}"].ends) == (0.5, (0, 1))
    assert scores["image_to_text/recall@5"].value == 1
    assert "text_to_image/r_precision" not in scores  # one right picture: recall@1 by another name


def test_published_right_items_stand_beside_the_sets_own(tmp_path: Path) -> None:
    one = captioned(positives=files(tmp_path, *of_colour(captioned())))
    found = measured(one)
    for direction in ("image_to_text", "text_to_image"):
        assert found.scores[f"eccv/{direction}/recall@1"].value == found.scores[f"eccv/{direction}/map_at_r"].value == 1
    assert found.scores["eccv/image_to_text/r_precision"].chance == 4 / 16
    assert found.scores["image_to_text/recall@1"].value == 0.5  # as without the files
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
    assert scores["image_to_text/recall@1"].value == 0.5  # the set's own are what they were
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


QUERIES: dict[str, Any] = {
    "schema_version": 1,
    "queries": [{"query": "a red thing", "expected": ["red"]}, {"query": "a unicorn", "expected": ["unicorn"]}],
    "composed": [
        {"image_text": "yellow", "minus": "green", "expected": ["red"]},
        {"image_text": "unicorn", "minus": "red", "expected": ["red"]},
    ],
}


def asked(folder: Path, queries: object = QUERIES) -> dict[str, object]:
    (folder / "queries.json").write_text(json.dumps(queries))
    return {"tasks": ["retrieval", "labelled_queries"], "queries": str(folder / "queries.json")}


def test_the_task_asks_what_the_set_can_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = measured(captioned(**asked(tmp_path))).scores
    # Eight pictures, two of each colour: the first ten are all of them, or all but the query's own.
    found = {name: score.value for name, score in scores.items() if name.startswith("labelled_queries/")}
    assert found == pytest.approx({
        "labelled_queries/text/precision@10": 2 / 8,
        "labelled_queries/image/expected/precision@10": 2 / 7,
        "labelled_queries/image/minus/precision@10": 2 / 7,
        "labelled_queries/image_minus_text/expected/precision@10": 2 / 7,
        "labelled_queries/image_minus_text/minus/precision@10": 2 / 7,
    })  # fmt: skip
    assert "c: 2 of 4 labelled queries have no picture in it" in capsys.readouterr().err


def test_taking_a_text_away_takes_its_pictures_away() -> None:
    """Enough pictures of each colour that ten are not all: yellow minus green is nearer to red."""
    images = [image for _ in range(6) for image in captioned().images]
    pictures = [data for _ in range(6) for _, data in captioned().read()]
    encoder = ColourEncoder()
    embeds, shown = encoder.embed_images(pictures), range(len(images))
    source = replace(captioned(), images=images)
    gallery = Shown(source, shown, published_gallery(source, shown), embeds, embeds, encoder.embed_texts)
    scores = query_scores(gallery, QueryFile.model_validate(QUERIES), num_resamples=50, seed=0)
    value = {name: score.value for name, score in scores.items()}
    assert value["text/precision@10"] == 1
    assert value["image_minus_text/expected/precision@10"] == 1 and value["image_minus_text/minus/precision@10"] == 0
    assert value["image/expected/precision@10"] == 0
    assert scores["image_minus_text/expected/precision@10"].chance == pytest.approx(12 / 47)


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    none = {**QUERIES, "queries": QUERIES["queries"][1:], "composed": []}
    with pytest.raises(DataError, match="c: none of the 1 labelled queries has a right picture"):
        measured(captioned(**asked(tmp_path, none)))
    with pytest.raises(FormatError, match=r"queries\.json: queries\.0\.expected: "):
        read_published(captioned(**asked(tmp_path, {**QUERIES, "queries": [{"query": "a"}]})), local_files())
    entry = captioned(**asked(tmp_path))
    (tmp_path / "queries.json").unlink()
    with pytest.raises(DataError, match=r"queries\.json: the labelled queries cannot be read"):
        read_published(entry, local_files())
    with pytest.raises(FormatError, match=r"s3://b/q\.json: : Invalid JSON"):
        parse_queries(b"{", "s3://b/q.json")


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
