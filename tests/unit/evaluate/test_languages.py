"""The languages of queries, and what depends on how they are told."""

from pathlib import Path

import numpy as np

from align.config.evaluate import EvaluateConfig
from align.evaluate.evaluate import evaluate, with_languages
from align.evaluate.protocols.recall import gallery
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.query_ranks import IMAGE_TO_TEXT, RANKS, TEXT_TO_IMAGE, Ranked, read_ranks
from align.project import provenance
from tests.support.colours import ColourEncoder, square

ENGLISH, GERMAN = "a red fox in the snow", "ein roter Fuchs im tiefen Schnee"


def part(number: int) -> Ranked:
    ids = tuple(map(str, range(number)))
    return Ranked(ids, ids, None, np.ones(number, np.int64), np.ones(number, np.int64), number)


def test_a_text_has_its_language_and_an_image_that_of_its_texts_if_they_agree() -> None:
    items = gallery(
        [
            ("fox", [ENGLISH]),
            ("schnee", [GERMAN.upper(), "xq"]),
            ("no text", []),
            ("both", ["two owls on an old branch", "zwei Eulen sitzen auf einem Ast"]),
            ("none", ["keycap: 6"]),  # a guess would be Danish
        ]
    )
    found = with_languages({IMAGE_TO_TEXT: part(4), TEXT_TO_IMAGE: part(6)}, items)
    assert found[IMAGE_TO_TEXT].languages == ("en", "de", None, None)
    assert found[TEXT_TO_IMAGE].languages == ("en", "de", None, "en", "de", None)


def test_the_file_of_an_evaluation_has_them(tmp_path: Path) -> None:
    texts = {"red": "a plain red square on white paper", "blue": "ein schlichtes Quadrat auf weißem Papier, blue"}
    images = [
        EvaluationImage(f"{name}{shade}", name, (text, name), None, None, "query")
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


def test_another_way_to_tell_languages_measures_no_model_again() -> None:
    """The digest of a set covers the code that measures it: with this one in it, each version would be asked again."""
    assert "align.pairs.text" not in provenance.deciding("align.evaluate.measure")
    assert "align.pairs.text" in provenance.deciding("align.evaluate.evaluate")
