"""Recall as published and recall by any owner, where captions repeat; positives that owners do not express."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from align.config.evaluate import EvaluateConfig
from align.errors import DataError
from align.evaluate.evaluate import evaluate
from align.evaluate.measure import any_owner_gallery, published_gallery
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.query_ranks import read_ranks
from tests.support.colours import ColourEncoder, square

CONFIG = EvaluateConfig(seed=0, image_px=None, num_resamples=200, max_test_images=0, num_examples=1)


def captions(*texts: tuple[str, ...], repeats: bool = True) -> EvaluationSet:
    """An image a row, red, green and blue, each its own concept, with its texts."""
    colours = ("red", "green", "blue")[: len(texts)]
    items = [EvaluationImage(key, key, of, None, None, "query") for key, of in zip(colours, texts, strict=True)]
    shown = held([square(colour) for colour in colours])
    return EvaluationSet("captions", "retrieval", "", items, (), (), shown, repeats=repeats)


def lists(arrays: list[np.ndarray]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def test_a_caption_is_right_for_its_own_image_only(tmp_path: Path) -> None:
    """The green picture has the caption of the red one, too: kinder recall counts it, the published one does not."""
    one = captions(("a red thing", "red"), ("green", "a  Red thing"), ("blue",))
    items, merged = published_gallery(one, range(3)), any_owner_gallery(one, range(3))
    assert items.texts == ["a red thing", "red", "green", "a  Red thing", "blue"]
    assert lists(items.texts_of_image) == [[0, 1], [2, 3], [4]]
    assert lists(items.images_of_text) == [[0], [0], [1], [1], [2]]
    assert merged.texts == ["a red thing", "red", "green", "blue"]
    assert lists(merged.images_of_text) == [[0, 1], [0], [1], [2]]

    report = evaluate(CONFIG, encoder=ColourEncoder(), sets=[one], reports=tmp_path / "r")
    # Of five captions, the green picture's red one finds the red picture.
    assert report.metrics["captions/text_to_image/recall@1"] == 0.8
    assert report.metrics["captions/text_to_image/recall_any_owner@1"] == 1.0
    ranks = read_ranks(tmp_path / "r/ranks.parquet")
    for metric in ("captions/text_to_image/recall@1", "captions/text_to_image/recall_any_owner@5"):
        assert np.mean(ranks.scored(metric)[0].values) == pytest.approx(report.metrics[metric])
    queries = ranks.ranked["captions", "text_to_image"].queries
    assert len(set(queries)) == 5
    assert "a text is correct for the images that it was written for" in (tmp_path / "r/report.html").read_text()


def test_repeats_stay_items_in_captions_and_are_one_in_a_set_of_concepts() -> None:
    texts = ("red", "red ", ""), ("green",), ("blue",)
    assert published_gallery(captions(*texts), range(3)).texts == ["red", "red ", "green", "blue"]
    assert published_gallery(captions(*texts, repeats=False), range(3)).texts == ["red", "green", "blue"]


def test_images_of_one_concept_share_their_texts() -> None:
    one = captions(("red",), ("ruby",), ("blue",))
    one = replace(one, images=[replace(image, concept="r" if n < 2 else "b") for n, image in enumerate(one.images)])
    items = published_gallery(one, range(3))
    assert lists(items.texts_of_image) == [[0, 1], [0, 1], [2]] and lists(items.images_of_text) == [[0, 1], [0, 1], [2]]


def test_texts_of_a_picture_that_is_not_shown_are_no_items() -> None:
    items = published_gallery(captions(("red", "ruby"), ("green",), ("blue",)), [1, 2])
    assert items.texts == ["green", "blue"] and lists(items.texts_of_image) == [[0], [1]]


def test_positives_say_what_owners_cannot() -> None:
    one = replace(captions(("red",), ("green",), ("blue",)), positives=((0, 0), (0, 1), (1, 1), (2, 0)))
    items = published_gallery(one, range(3))
    assert lists(items.texts_of_image) == [[0, 1], [1], [0]] and lists(items.images_of_text) == [[0, 2], [0, 1], []]
    with pytest.raises(DataError, match="names image 3 and text 0, but the set has 3 images and 3 texts"):
        published_gallery(replace(one, positives=((3, 0),)), range(3))


def test_the_page_says_which_model_and_what_the_test_split_is(tmp_path: Path) -> None:
    one = replace(captions(("red",), ("green",), ("blue",)), name="test")
    evaluate(CONFIG, encoder=ColourEncoder(), sets=[one], reports=tmp_path / "r")
    page = (tmp_path / "r/report.html").read_text()
    assert "The first row of each table is the fine-tuned model" in page
    assert "The set test is of the training distribution" in page
