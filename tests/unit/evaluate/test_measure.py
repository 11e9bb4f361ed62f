"""Which texts are right for which images, where captions repeat; and the languages of queries."""

from dataclasses import replace

import numpy as np
import pytest

from align.config.evaluate import EvaluateConfig
from align.evaluate.evaluate import evaluate, with_languages
from align.evaluate.measure import published_gallery
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.query_ranks import IMAGE_TO_TEXT, RANKS, TEXT_TO_IMAGE, Ranked, read_ranks
from align.project import provenance
from tests.support.colours import ColourEncoder, square

CONFIG = EvaluateConfig(seed=0, image_px=None, num_resamples=200, max_test_images=0, num_examples=1)


def captions(*texts, repeats=True):
    """An image a row, red, green and blue, each its own concept, with its texts."""
    colours = ("red", "green", "blue")[: len(texts)]
    items = [EvaluationImage(key, key, of, None, "query") for key, of in zip(colours, texts, strict=True)]
    shown = held([square(colour) for colour in colours])
    return EvaluationSet("captions", "retrieval", "", items, (), (), shown, repeats=repeats)


def lists(arrays):
    return [array.tolist() for array in arrays]


def test_a_caption_is_right_for_its_own_image_only(tmp_path):
    """The green picture has the caption of the red one, too."""
    one = captions(("a red thing", "red"), ("green", "a  Red thing"), ("blue",))
    items = published_gallery(one, range(3))
    assert items.texts == ["a red thing", "red", "green", "a  Red thing", "blue"]
    assert lists(items.texts_of_image) == [[0, 1], [2, 3], [4]]
    assert lists(items.images_of_text) == [[0], [0], [1], [1], [2]]

    report = evaluate(CONFIG, encoder=ColourEncoder(), sets=[one], reports=tmp_path / "r")
    # Of five captions, the green picture's red one finds the red picture.
    assert report.metrics["captions/text_to_image/recall@1"] == 0.8
    ranks = read_ranks(tmp_path / "r/ranks.parquet")
    assert np.mean(ranks.scored("captions/text_to_image/recall@1")[0].values) == pytest.approx(0.8)
    queries = ranks.ranked["captions", "text_to_image"].queries
    assert len(set(queries)) == 5
    assert "a text is correct for the images that it was written for" in (tmp_path / "r/report.html").read_text()


def test_repeats_stay_items_in_captions_and_are_one_in_a_set_of_concepts():
    texts = ("red", "red ", ""), ("green",), ("blue",)
    assert published_gallery(captions(*texts), range(3)).texts == ["red", "red ", "green", "blue"]
    assert published_gallery(captions(*texts, repeats=False), range(3)).texts == ["red", "green", "blue"]


def test_images_of_one_concept_share_their_texts():
    one = captions(("red",), ("ruby",), ("blue",))
    one = replace(one, images=[replace(image, concept="r" if n < 2 else "b") for n, image in enumerate(one.images)])
    items = published_gallery(one, range(3))
    assert lists(items.texts_of_image) == [[0, 1], [0, 1], [2]] and lists(items.images_of_text) == [[0, 1], [0, 1], [2]]


def test_texts_of_a_picture_that_is_not_shown_are_no_items():
    items = published_gallery(captions(("red", "ruby"), ("green",), ("blue",)), [1, 2])
    assert items.texts == ["green", "blue"] and lists(items.texts_of_image) == [[0], [1]]


def test_the_page_says_which_model_and_what_the_test_split_is(tmp_path):
    one = replace(captions(("red",), ("green",), ("blue",)), name="test")
    evaluate(CONFIG, encoder=ColourEncoder(), sets=[one], reports=tmp_path / "r")
    page = (tmp_path / "r/report.html").read_text()
    assert "In bold the fine-tuned model" in page
    assert "The set test is of the training distribution" in page


ENGLISH, GERMAN = "a red fox in the snow", "ein roter Fuchs im tiefen Schnee"


def part(number):
    ids = tuple(map(str, range(number)))
    return Ranked(ids, ids, None, np.ones(number, np.int64), np.ones(number, np.int64), number)


def test_a_text_has_its_language_and_an_image_that_of_its_texts_if_they_agree():
    texts = {
        "fox": (ENGLISH,),
        "schnee": (GERMAN.upper(), "xq"),
        "no text": (),
        "both": ("two owls on an old branch", "zwei Eulen sitzen auf einem Ast"),
        "none": ("keycap: 6",),  # a guess would be Danish
    }
    images = [EvaluationImage(name, name, of, None, "query") for name, of in texts.items()]
    items = published_gallery(EvaluationSet("a", "retrieval", "", images, (), (), held([])), range(len(images)))
    found = with_languages({IMAGE_TO_TEXT: part(4), TEXT_TO_IMAGE: part(6)}, items)
    assert found[IMAGE_TO_TEXT].languages == ("en", "de", None, None)
    assert found[TEXT_TO_IMAGE].languages == ("en", "de", None, "en", "de", None)


def test_the_file_of_an_evaluation_has_them(tmp_path):
    texts = {"red": "a plain red square on white paper", "blue": "ein schlichtes Quadrat auf weißem Papier, blue"}
    images = [
        EvaluationImage(f"{name}{shade}", name, (text, name), None, "query")
        for name, text in texts.items()
        for shade in (0, 9)
    ]
    config = EvaluateConfig(seed=0, image_px=None, num_resamples=100, max_test_images=9, num_examples=1)
    pictures = held([square(name, shade=shade) for name in texts for shade in (0, 9)])
    squares = EvaluationSet("squares", "retrieval", "", images, (), (), pictures)
    evaluate(config, encoder=ColourEncoder(), sets=[squares], reports=tmp_path / "evaluation")
    found = read_ranks(tmp_path / "evaluation" / RANKS).ranked
    assert found["squares", IMAGE_TO_TEXT].languages == ("en", "en", "de", "de")
    assert found["squares", TEXT_TO_IMAGE].languages == ("en", None, "de", None)


def test_another_way_to_tell_languages_measures_no_model_again():
    """The digest of a set covers the code that measures it: with this one in it, each version would be asked again."""
    assert "align.pairs.languages" not in provenance.deciding("align.evaluate.measure")
    assert "align.pairs.languages" in provenance.deciding("align.evaluate.evaluate")
