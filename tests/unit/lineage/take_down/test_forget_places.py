"""A purge and places outside of DVC: measured values of evaluation images, and evaluation sets of one's own."""

import hashlib
from pathlib import Path

import pytest

from align.cli import main
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.evaluation_sets.align_tar import write_set
from align.formats.features import Features
from align.formats.policy import Entry, OptedOut, write_opted_out
from align.lineage.versions.who_saw import WhoSaw
from tests.support import small_data
from tests.support.small_data import Pair, jpeg

A, B = jpeg(1), jpeg(2)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Picture B is opted out; it is in no folder of data."""
    monkeypatch.setattr("align.lineage.take_down.forget.who_saw", lambda *_: WhoSaw(()))
    monkeypatch.chdir(tmp_path)
    small_data.write(tmp_path, [Pair("a red fox", 1)])
    write_opted_out(Path("data/policy"), OptedOut([Entry("image_id", hashlib.sha256(B).hexdigest(), "", "2026-01-02")]))
    return tmp_path


def test_measured_values_of_the_pictures_go(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in (("a", A), ("b", B)):
        features: Features[bytes] = Features(Path(".align/features/views-1"), lambda value: value, lambda data: data)
        list(features.look(lambda images: images, [(name, data)]))
    assert len(list(Path(".align/features").rglob("*.arrow"))) == 2
    assert main(["forget", "--purge"]) == 1
    assert "to go: 1 files of .align/features, with values measured of evaluation images" in capsys.readouterr().out
    assert main(["forget", "--purge", "--yes"]) == 0
    assert ".align/features: 1 files of measured values; `align filter` measures them" in capsys.readouterr().out
    [kept] = Path(".align/features").rglob("*.arrow")
    assert hashlib.sha256(A).digest() in kept.read_bytes()


def test_evaluation_sets_with_the_pictures_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, images in (("mine", (A, B)), ("others", (A,))):
        items = [EvaluationImage(f"k{n}", f"c{n}", ("x",), None, None, "query") for n in range(len(images))]
        write_set(Path("data/sample/evaluation"), EvaluationSet(name, "retrieval", "x", items, (), (), held(images)))
    Path("data/sample/evaluation/broken.tar").write_bytes(b"no tar")
    assert main(["forget", "--purge", "--yes"]) == 0
    said = capsys.readouterr().out.splitlines()
    line = said.index("  data/sample/evaluation/mine.tar: 1 of the pictures, with their captions")
    assert said[line + 1] == (
        "    ends with: removing them from what the set was made of, then `align make_set mine --from ... --replace`"
    )
    assert "  data/sample/evaluation/broken.tar: cannot be read, so perhaps some of the pictures" in said
    assert not any("others.tar" in line for line in said)
    assert (
        "  other sets in data/sample/evaluation: copies in another size (`make_set --resize`) are not recognised"
        in said
    )
