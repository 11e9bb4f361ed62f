import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from align.config.evaluate import EvaluateConfig
from align.config.suite import SuiteSet
from align.errors import ConfigError, DataError
from align.evaluate.evaluate import evaluate, main
from align.evaluate.examples import DIRECTIONS, draw_classified, same_examples
from align.evaluate.learned import frozen_answers, ranked
from align.evaluate.measure import measure_classification, measure_retrieval
from align.evaluate.protocols.labelled import Labelled, accuracy
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Unreadable, held
from align.formats.measured_sets import evaluation_digest, set_digests, shards_test_set
from align.formats.query_ranks import QueryRanks, Ranked, read_ranks
from align.formats.shards import Sample
from align.statistics.paired import difference, of_metrics, set_of
from tests.support.colours import COLOURS, ColourEncoder, square
from tests.support.params import load_params
from tests.support.shard_folder import write_shards

CONFIG = EvaluateConfig(seed=0, image_px=None, num_resamples=200, max_test_images=100, num_examples=2)


@pytest.fixture
def undrawn(monkeypatch):
    """No figure becomes a picture, which is most of what a report costs."""
    monkeypatch.setattr("align.evaluate.evaluate.png", lambda figure: b"")
    monkeypatch.setattr("align.display.html.svg", lambda figure: "<svg ></svg>")


def pictures(mislabelled=None):
    """Of `images`; those of `mislabelled` are painted in the first colour."""
    return [square("red" if name == mislabelled else name, shade=shade) for name in COLOURS for shade in (0, 15)]


def images():
    """Two shades of each colour."""
    return [
        EvaluationImage(
            key=f"{name}{shade}", concept=name,
            texts=(f"{name} square", f"A {name} picture"), label=name,
            split="query" if shade == 0 else "reference",
        )
        for name in COLOURS for shade in (0, 15)
    ]  # fmt: skip


def colour_set(kind, mislabelled=None):
    classes, templates = (tuple(COLOURS), ("a {} thing", "{}")) if kind == "classification" else ((), ())
    name = "classes" if kind == "classification" else "concepts"
    shown = held(pictures(mislabelled))
    return EvaluationSet(name, kind, "squares", images(), classes, templates, shown)  # type: ignore[arg-type]


def run(tmp_path, *sets, encoder=None):
    report = evaluate(CONFIG, encoder=encoder or ColourEncoder(), sets=sets, reports=tmp_path / "evaluation")
    assert json.loads((tmp_path / "evaluation" / "metrics.json").read_text()) == report.metrics
    return report.metrics


def test_an_encoder_that_sees_is_right_about_everything(tmp_path, undrawn):
    metrics = run(tmp_path, colour_set("retrieval"), colour_set("classification"))
    # Both texts of a colour have one embedding: each is correct, so that the tie does no harm.
    for direction in ("image_to_text", "text_to_image"):
        assert metrics[f"concepts/{direction}/recall@1"] == 1.0
        # 8 items of which 2 are correct.
        assert metrics[f"concepts/{direction}/recall@1/chance"] == 0.25
        assert metrics[f"concepts/{direction}/recall@5/chance"] == pytest.approx(1 - 3 / 28, abs=1e-6)
        assert metrics[f"concepts/{direction}/recall@1/low"] == pytest.approx(0.025 ** (1 / 4), abs=1e-6)
    assert metrics["concepts/mean_recall"] == 1.0
    assert metrics["classes/zero_shot/accuracy"] == metrics["classes/knn/accuracy"] == 1.0
    assert metrics["classes/zero_shot/accuracy/majority"] == metrics["classes/zero_shot/accuracy/chance"] == 0.25


@pytest.mark.usefixtures("any_blocks")
def test_a_wrong_picture_costs_what_it_should(tmp_path, undrawn):
    """The blue pictures are red: images find red texts first, and so do blue's two of eight."""
    metrics = run(tmp_path, colour_set("retrieval", "blue"), colour_set("classification", "blue"))
    assert metrics["concepts/image_to_text/recall@1"] == 0.75
    # Text "red": the red pictures tie with as many red-painted blue ones, so half of the orders are right.
    assert metrics["concepts/text_to_image/recall@1"] == 0.625
    assert metrics["classes/zero_shot/accuracy"] == metrics["classes/zero_shot/mean_per_class"] == 0.75
    assert "classes/zero_shot/top5" not in metrics  # of four classes
    # Query red and query blue both tie between a red and a blue reference.
    assert metrics["classes/knn/accuracy"] == 0.5
    low, high = (metrics[f"classes/zero_shot/accuracy/{bound}"] for bound in ("low", "high"))
    assert 0 <= low < 0.75 < high <= 1


def test_the_report_is_whole_and_the_same_bytes_again(tmp_path):
    sets = [colour_set("retrieval", "blue"), colour_set("classification")]
    contents = []
    for name in ("first", "second"):
        config = CONFIG.model_copy(update={"num_examples": 1})
        evaluate(config, encoder=ColourEncoder(), sets=sets, reports=tmp_path / name)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert contents[0].keys() == {
        "report.json", "metrics.json", "report.html", "recall.png", "classes_confusion.png",
        "same_image_to_text.png", "same_text_to_image.png",
        "ranks.parquet", ".align.json",
    }  # fmt: skip
    page = contents[0]["report.html"].decode()
    assert "answered wrong" in page
    assert page.count('<svg role=img aria-label="') == 2 and "by chance 25.0%" in page
    assert "http" not in page.replace("http-equiv", "")
    assert "Image-text retrieval" in page and "Other measures" not in page
    assert page.count("<figure") >= 4  # the wall of pictures that were classified


def test_pictures_are_shown_with_their_class_and_with_what_was_answered():
    measured = measure_classification(colour_set("classification", "blue"), ColourEncoder(), num_resamples=100, seed=0)
    right, wrong = draw_classified(measured, number=9, seed=0)
    assert sorted(one.label for one in right) == ["green", "red", "yellow"]
    assert [(one.label, one.predicted, one.picture) for one in wrong] == [("blue", "red", square("red"))]
    assert all(one.label == one.predicted and one.picture == square(one.label) for one in right)
    assert [one.label for one in draw_classified(measured, number=2, seed=0)[0]] == [one.label for one in right[:2]]


class Blind(ColourEncoder):
    """Mistakes every picture for another colour."""

    def embed_crops(self, crops):
        return np.roll(super().embed_crops(crops), 1, axis=1)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_same_queries_are_shown_of_a_good_and_of_a_bad_model(direction):
    shown = []
    for encoder in (ColourEncoder(), Blind()):
        measured = measure_retrieval(colour_set("retrieval"), encoder, num_resamples=100, seed=0)
        shown.append(same_examples(measured, direction, number=3, seed=0))
    assert [example.query for example in shown[0]] == [example.query for example in shown[1]]
    assert len(shown[0]) == 3
    assert [example.rank for example in shown[0]] == [1, 1, 1] and all(example.rank > 1 for example in shown[1])


def test_a_model_that_diverged_is_an_error_and_writes_no_report(tmp_path):
    class Diverged(ColourEncoder):
        def embed_crops(self, crops):
            return np.full((len(list(crops)), 4), np.nan, dtype=np.float32)

    with pytest.raises(DataError, match="not finite"):
        run(tmp_path, colour_set("retrieval"), encoder=Diverged())
    assert not (tmp_path / "evaluation").exists()


def test_nothing_to_measure_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no evaluation set"):
        run(tmp_path)
    with pytest.raises(DataError, match="no image or no text"):
        run(tmp_path, replace(colour_set("retrieval"), images=[]))


def test_the_test_split_becomes_a_retrieval_set(tmp_path):
    samples = [Sample(f"00000000{i}", str(i), square("red"), (f"00000000{i}",), (f"text {i}",)) for i in range(3)]
    write_shards(tmp_path, {"test": [samples]}, image_px=48)

    (split,) = shards_test_set(tmp_path, 2, None)
    assert (split.name, split.kind) == ("test", "retrieval")
    assert [(image.concept, image.texts) for image in split.images] == [
        ("000000000", ("text 0",)),
        ("000000001", ("text 1",)),
    ]
    assert shards_test_set(tmp_path, 0, None) == []


def test_two_sets_of_one_name_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"2 sets have the name 'concepts'; .* paths\.evaluation another"):
        run(tmp_path, colour_set("retrieval"), colour_set("classification"), colour_set("retrieval", "blue"))


def test_the_metrics_follow_from_the_ranks_of_the_queries(tmp_path, undrawn):
    sets = [colour_set("retrieval", "blue"), colour_set("classification", "blue")]
    metrics = run(tmp_path, *sets)
    ranks = read_ranks(tmp_path / "evaluation" / "ranks.parquet")
    bounds = ("/low", "/high", "/chance", "/majority")
    # the mean over classes does not follow from single ranks
    for name in [name for name in metrics if not name.endswith((*bounds, "/mean_per_class"))]:
        groups = ranks.scored(name)
        assert np.mean([group.values.mean() for group in groups]) == pytest.approx(metrics[name], abs=1e-6)
        assert ranks.chance(name) == pytest.approx(metrics[f"{name}/chance"], abs=1e-6)
    images, texts = ranks.ranked["concepts", "image_to_text"], ranks.ranked["concepts", "text_to_image"]
    assert images.queries[:2] == ("red0", "red15") and images.clusters[:2] == ("red", "red")
    assert all(query.startswith("text-") for query in texts.queries) and len(set(texts.queries)) == 8
    assert ranks.ranked["classes", "zero_shot"].labels == ranks.ranked["classes", "knn"].labels == tuple(COLOURS)
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    digests = set_digests(sets)
    assert {name: one["digest"] for name, one in report["sets"].items()} == ranks.sets == digests
    assert report["evaluation_digest"] == evaluation_digest(digests)


@pytest.mark.parametrize("reports", [None, "reports/evaluation", "./reports/../reports/evaluation"])
def test_the_report_of_another_model_goes_elsewhere(reports):
    args = argparse.Namespace(compare=None, model=Path("other"), reports=None if reports is None else Path(reports))
    with pytest.raises(ConfigError, match="reports/evaluation is about the fine-tuned model; name another folder"):
        main(load_params(), args)


@pytest.mark.parametrize("kind", ["retrieval", "classification"])
def test_a_picture_that_is_no_picture_is_a_row_with_a_reason(tmp_path, undrawn, kind):
    broken = [b"no picture", *pictures()[1:]]
    report = evaluate(
        CONFIG, encoder=ColourEncoder(), sets=[replace(colour_set(kind), pictures=held(broken))], reports=tmp_path / "r"
    )
    (one,) = report.sets.values()
    assert (one["num_images"], one["num_left_out"]) == (7, 1)
    assert one["left_out"] == {"red0": "not an image that can be decoded"}
    assert any("warning" in line and "red0: not an image" in line for line in report.summary())
    assert "left out" in (tmp_path / "r/report.html").read_text()


def test_a_set_whose_pictures_all_fail_is_an_error(tmp_path):
    broken = [b"no picture"] * 7
    one = replace(colour_set("retrieval"), pictures=held([Unreadable("no such file"), *broken]))
    with pytest.raises(DataError, match="concepts: none of its 8 pictures can be shown to the model; red0: no such"):
        run(tmp_path, one)


HOW = {"num_resamples": 200, "seed": 0}


def asked(*tasks, **more):
    entry = {"name": "c", "path": "c", "format": "folder", "tasks": ["zero_shot", *tasks], **more}
    return SuiteSet.model_validate(entry)


def split(name, seed, each, classes=3):
    """Pictures of each class around its own corner, on the unit sphere; hard enough for one in ten to be wrong."""
    labels = np.repeat(np.arange(classes), each)
    rows = np.random.default_rng(seed).normal(size=(len(labels), 16))
    rows[np.arange(len(labels)), labels] += 3
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Labelled(name, rows.astype(np.float32), labels)


TRAIN, TEST = split("train", 0, 60), split("test", 1, 40)


def test_the_linear_classifier_learns():
    entry = asked("frozen", frozen={"preset": "small"})
    found = accuracy([frozen_answers(entry, TRAIN, TEST, 3)], TEST, 3, **HOW)
    assert found.chance == 1 / 3 and 0.6 < found.low < found.value < found.high
    assert found == accuracy([frozen_answers(entry, TRAIN, TEST, 3)], TEST, 3, **HOW)


def test_single_answers_are_kept_for_comparisons():
    """From them follows each metric, as `align evaluate --compare` needs it."""
    answers = [frozen_answers(asked("frozen", frozen={"preset": "small"}), TRAIN, TEST, 3)]
    ids = tuple(map(str, range(len(TEST))))
    (of,) = ranked("frozen", answers, TEST, 3).values()
    one = Ranked(ids, ids, None, of.ranks, np.asarray(of.num_correct), of.num_items)
    ranks = QueryRanks({"c": "digest"}, {("c", "frozen"): one})
    score = accuracy(answers, TEST, 3, **HOW)
    assert np.mean([part.values.mean() for part in ranks.scored("c/frozen/accuracy")]) == pytest.approx(score.value)
    assert ranks.chance("c/frozen/accuracy") == score.chance == 1 / 3
    assert set_of("c/frozen/accuracy") == "c"
    assert difference(of_metrics(["c/frozen/accuracy"], ranks, ranks), confidence=0.95).value == 0


class DrawnEncoder(ColourEncoder):
    """A direction of sixteen for each picture and text, drawn by its bytes."""

    def crop(self, picture):
        return np.random.default_rng([*picture]).normal(size=16)

    def embed_crops(self, crops):
        rows = np.array([*crops], dtype=np.float32).reshape(-1, 16)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def embed_texts(self, texts):
        return self.embed_crops(self.crop(text.encode()) for text in texts)


def test_classifiers_that_learn_do_not_depend_on_the_order_of_files():
    """The same labelled pictures in two orders, as in folders of other names; more than a batch of them."""
    pictures = [f"picture {row}".encode() for row in range(240)]
    names = [*COLOURS]
    labels = [names[int(DrawnEncoder().crop(picture)[:4].argmax())] for picture in pictures]
    entry = asked("frozen", frozen={"preset": "small"})

    def answers(order):
        items = [
            EvaluationImage(f"{place}", f"{place}", (), labels[row], "query" if place < 80 else "reference")
            for place, row in enumerate(order)
        ]
        shown = held([pictures[row] for row in order])
        named = EvaluationSet("c", "classification", "", items, tuple(COLOURS), ("{}",), shown, asked=entry)
        found = measure_classification(named, DrawnEncoder(), num_resamples=50, seed=0).directions
        return found["frozen"].ranks.tolist()

    first = list(range(240))
    assert answers(first) == answers(first[:80] + first[:79:-1])


def test_a_set_learns_from_its_split_of_references_and_scores_stand_beside_zero_shot():
    one = replace(colour_set("classification"), asked=asked("frozen", frozen={"preset": "small"}))
    measured = measure_classification(one, ColourEncoder(), num_resamples=100, seed=0)
    scores = measured.scores
    assert list(measured.ranked()) == ["zero_shot", "frozen"]
    assert scores["frozen/accuracy"].value == scores["zero_shot/accuracy"].value == 1
    assert "knn/accuracy" not in scores  # not asked
    queries = [position for position, image in enumerate(one.images) if image.split == "query"]
    with pytest.raises(DataError, match="classes: no picture of split train can be shown"):
        measure_classification(one.select(queries), ColourEncoder(), num_resamples=100, seed=0)
