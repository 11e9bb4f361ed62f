"""Labelled queries over a set of coloured squares."""

import json
from pathlib import Path
from typing import Any

import pytest

from align.errors import DataError, FormatError
from align.evaluate.captioned import LabelledPictures, query_scores, read_published
from align.formats.labelled_queries import QueryFile, parse_queries
from tests.support.colours import ColourEncoder
from tests.support.suites import local_files
from tests.unit.evaluate.test_captioned import captioned, measured

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
    gallery = LabelledPictures("c", images, encoder.embed_images(pictures), encoder.embed_texts)
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
