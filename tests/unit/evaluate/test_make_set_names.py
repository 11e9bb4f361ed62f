"""make_set and names: of sources that are called the same, that no set can store, and of files that are no pictures."""

import json
import os
from pathlib import Path

import pytest

from align.cli import main
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.align_tar import load_sets
from tests.support.small_filter import noise


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def picture(path: str, number: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(noise(number, 20, 16))


def make(*words: str) -> int:
    return main(["make_set", "mine", *words, "--set", "paths.evaluation=sets"])


def made() -> EvaluationSet:
    [one] = load_sets(Path("sets"))
    return one


@pytest.mark.parametrize("kind", ["table", "folder", "reference"])
def test_pictures_of_sources_with_the_same_name_stay_apart(kind: str) -> None:
    for number, folder in enumerate(("a", "b")):
        for one in ("hat", "dress"):
            picture(f"{folder}/photos/{one}/1.png", 2 * number + (one == "hat"))
        rows = "".join(f"photos/{one}/1.png,the {one} of {folder}\n" for one in ("hat", "dress"))
        Path(folder, "captions.csv").write_text(f"file,caption\n{rows}")
    if kind == "table":
        assert make("--from", "a/captions.csv", "b/captions.csv") == 0
        assert {one.concept: one.texts for one in made().images} == {
            f"{number}_captions.csv/photos/{one}/1.png": (f"the {one} of {folder}",)
            for number, folder in ((1, "a"), (2, "b"))
            for one in ("hat", "dress")
        }
    elif kind == "folder":
        assert make("--from", "a/photos", "b/photos") == 0
    else:
        assert make("--from", "a/photos", "--reference", "b/photos") == 0
        assert {one.concept[:8]: one.split for one in made().images} == {"1_photos": "query", "2_photos": "reference"}
    assert len({one.concept for one in made().images}) == 4


def test_half_a_surrogate_pair_in_a_row_is_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    picture("photos/1.png", 1)
    names = ("1.png", "\ud800.jpg", "a\0.jpg")
    rows = [{"file_name": name, "caption": "a"} for name in names]
    Path("photos/t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert make("--from", "photos/t.jsonl") == 1
    assert "2 row(s) with a name that no file can have (row 2, row 3)" in capsys.readouterr().err.splitlines()[-1]
    assert make("--from", "photos/t.jsonl", "--skip") == 0
    assert [one.key for one in made().images] == ["1"]


def test_a_name_that_is_not_utf_8_is_a_fault_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate((b"hat/1.png", b"dress/2.png", b"hat/caf\xe9.png", b"caf\xe9/3.png")):
        picture(f"photos/{os.fsdecode(name)}", number)
    assert make("--from", "photos") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "2 with a name that is not UTF-8 (caf\\udce9/3.png, hat/caf\\udce9.png)" in line
    assert make("--from", "photos", "--skip") == 0
    assert [one.key for one in made().images] == ["dress_2", "hat_1"]


@pytest.mark.parametrize("words", [["--from", "p\udce9"], ["--from", "photos", "--description", "p\udce9"]])
def test_what_is_typed_and_is_not_utf_8_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("photos", "p\udce9"):
        for number, one in enumerate(("hat", "dress")):
            picture(f"{folder}/{one}/1.png", number)
    assert make(*words) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("align: error: 'p\\udce9': not UTF-8; ")


def test_files_that_are_no_pictures_by_their_names_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for number, one in enumerate(("hat", "dress")):
        picture(f"photos/{one}/1.png", number)
    for name in ("hat/notes.txt", "hat/raw.dng", ".DS_Store", "labels.csv"):
        Path("photos", name).touch()
    assert make("--from", "photos") == 0
    line = "left out: 4 file(s) that are no pictures by their names (.DS_Store, labels.csv, hat/notes.txt, hat/raw.dng)"
    assert f"make_set: {line}\n" in capsys.readouterr().err
    Path("photos/hat/photo.HEIC").write_bytes(b"whatever")
    assert make("--from", "photos", "--replace") == 1
    assert "1 undecodable (hat/photo.HEIC: " in capsys.readouterr().err


def test_missing_pictures_are_looked_for_in_the_usual_folders_only(capsys: pytest.CaptureFixture[str]) -> None:
    picture("photos/deep/in/1.png", 1)
    Path("photos/t.csv").write_text("file,caption\n1.png,one\n")
    assert make("--from", "photos/t.csv") == 1
    assert "--images" not in capsys.readouterr().err
    picture("photos/Images/1.png", 1)
    assert make("--from", "photos/t.csv") == 1
    assert capsys.readouterr().err.endswith("; 1.png is in photos/Images: give --images photos/Images\n")
    assert make("--from", "photos/t.csv", "--images", "photos/Images") == 0
