from dataclasses import replace

import pytest

from align.formats import measured_sets
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.measured_sets import evaluation_digest, set_digests

IMAGE = EvaluationImage("k", "concept", ("a text",), "cat", "vendor", "query")
ONE = EvaluationSet(
    "one", "classification", "words", [IMAGE], ("cat", "owl"), ("{}",), held([b"picture", b"other"]), "tar"
)


def of(one: EvaluationSet) -> str:
    return set_digests([one])["one"]


@pytest.mark.parametrize(
    "other",
    [
        replace(ONE, pictures=held([b"another"])),
        replace(ONE, images=[replace(IMAGE, texts=("a text", "more"))]),
        replace(ONE, images=[replace(IMAGE, concept="c")]),
        replace(ONE, images=[replace(IMAGE, label="owl")]),
        replace(ONE, images=[replace(IMAGE, split="reference")]),
        replace(ONE, images=[IMAGE, replace(IMAGE, key="l")]),
        replace(ONE, classes=("owl", "cat")),
        replace(ONE, templates=("a {}",)),
        replace(ONE, kind="retrieval"),
        replace(ONE, repeats=True),
        replace(ONE, positives=((0, 0),)),
    ],
)
def test_what_changes_ranks_changes_the_digest(other: EvaluationSet) -> None:
    assert of(other) != of(ONE)


def test_words_about_the_set_do_not_and_code_does(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(ONE)
    vendor = replace(IMAGE, vendor=None)
    assert of(replace(ONE, description="others", sha256="other", images=[vendor])) == before
    monkeypatch.setattr(measured_sets, "digest", lambda module: f"other {module}")
    assert of(ONE) != before


def test_the_evaluation_digest_names_the_sets_in_any_order() -> None:
    assert evaluation_digest({"a": "1", "b": "2"}) == evaluation_digest({"b": "2", "a": "1"})
    assert evaluation_digest({"a": "1", "b": "2"}) != evaluation_digest({"a": "2", "b": "1"})
