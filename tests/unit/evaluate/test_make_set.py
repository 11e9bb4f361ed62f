"""make_set on small folders and tables: what is read, what is refused, and that all faults are said at once."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.align_tar import load_sets
from tests.support.small_filter import noise


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pictures(folder: str, *numbers: int) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Path(folder, f"{number}.png").write_bytes(noise(number, 20, 16))


def make(*words: str) -> int:
    return main(["make_set", *words, "--set", "paths.evaluation=sets"])


def made(name: str = "mine") -> EvaluationSet:
    return next(one for one in load_sets(Path("sets")) if one.name == name)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The error's line; nothing was written."""
    before = sorted(Path("sets").glob("*"))
    assert make(*words) == 1
    assert sorted(Path("sets").glob("*")) == before
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("align: error: ")
    return last.removeprefix("align: error: ")


def class_folders() -> None:
    for number, name in enumerate(("t_shirt", "hat", "dress")):
        pictures(f"photos/{name}", *range(10 * number, 10 * number + 4))
    Path("photos/hat/notes.txt").touch()
    Path("photos/.cache").mkdir()


def test_class_folders_become_a_classification_set(capsys: pytest.CaptureFixture[str]) -> None:
    class_folders()
    assert make("mine", "--from", "photos") == 0
    said = capsys.readouterr().err
    assert said.endswith("make_set: for git: git add sets/mine.tar sets/mine.json\n")
    found = made()
    assert (found.kind, found.classes) == ("classification", ("dress", "hat", "t shirt"))
    assert found.templates[0] == "a photo of a {}."
    assert {(one.key, one.label, one.texts, one.split) for one in found.images if one.label == "hat"} == {
        (f"hat_{number}", "hat", ("hat",), "query") for number in range(10, 14)
    }
    assert dict(found.read())[0] == noise(20, 20, 16)
    assert "mine: 3 classes, 12 pictures to classify, 0 references" in said


def test_a_share_of_each_class_is_the_reference_and_equal_inputs_are_equal_bytes() -> None:
    class_folders()
    for name in ("one", "two"):
        assert make(name, "--from", "photos", "--reference", "0.25", "--template", "{}", "--description", "d") == 0
    split = {one.key: one.split for one in made("one").images}
    assert [list(split.values()).count(one) for one in ("reference", "query")] == [3, 9]
    assert Path("sets/one.tar").read_bytes() == Path("sets/two.tar").read_bytes()
    pictures("photos/hat", 99)  # a new picture moves no other one
    assert make("one", "--from", "photos", "--reference", "0.2", "--replace") == 0
    assert split.items() <= {one.key: one.split for one in made("one").images}.items()


def test_another_folder_is_the_reference() -> None:
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        pictures(f"photos/{split}/hat", *numbers)
        pictures(f"photos/{split}/dress", *(10 + number for number in numbers))
    assert make("mine", "--from", "photos/test", "--reference", "photos/train") == 0
    assert {one.key: one.split for one in made().images} == {
        "test_hat_3": "query", "test_dress_13": "query", "train_hat_1": "reference", "train_hat_2": "reference",
        "train_dress_11": "reference", "train_dress_12": "reference",
    }  # fmt: skip


def test_folders_of_class_folders_say_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    pictures("photos/train/hat", 1)
    pictures("photos/test/hat", 2)
    assert refused(capsys, "mine", "--from", "photos").endswith("--from photos/test --reference photos/train")


@pytest.mark.parametrize("form", ["json", "csv"])
def test_classes_get_readable_names(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    pictures("photos/n01", 1)
    pictures("photos/n02", 2)
    names = {"n01": "tabby cat", "n02": "Übung"}
    lines = "\n".join(f"{one},{other}" for one, other in names.items())
    Path(f"names.{form}").write_text(json.dumps(names) if form == "json" else lines)
    assert make("mine", "--from", "photos", "--classes", f"names.{form}") == 0
    assert made().classes == ("tabby cat", "Übung")
    pictures("photos/n03", 3)
    pictures("photos/n04", 4)
    Path("names.csv").write_text(f"{lines}\nn09,dog")
    line = refused(capsys, "other", "--from", "photos", "--classes", "names.csv")
    assert line == "--classes: 2 class(es) without a name (n03, n04); 1 name(s) of no class (n09)"


def table(form: str, rows: list[dict[str, Any]]) -> str:
    file = Path(f"photos/table.{form}")
    if form == "jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif form == "json":
        file.write_text(json.dumps(rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        separator = "\t" if form == "tsv" else ","
        lines = [separator.join(rows[0]), *(separator.join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines))
    return str(file)


@pytest.mark.parametrize("form", ["csv", "tsv", "txt", "jsonl", "json", "parquet"])
def test_a_table_with_a_caption_a_row_becomes_a_retrieval_set(form: str) -> None:
    pictures("photos/in", 1, 2)
    captions = [("in/1.png", "one  caption"), ("in/1.png", "another"), ("in/2.png", "third"), ("in/1.png", "another")]
    assert make("mine", "--from", table(form, [{"image": one, "caption": text} for one, text in captions])) == 0
    found = made()
    assert (found.kind, found.classes, found.templates) == ("retrieval", (), ())
    assert [(one.key, one.concept, one.texts) for one in found.images] == [
        ("in_1", "in/1.png", ("one caption", "another")), ("in_2", "in/2.png", ("third",)),
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_all_captions_of_a_list_and_a_column_of_concepts(form: str) -> None:
    pictures("photos", 1, 2)
    rows = [
        {"file": f"{number}.png", "texts": ["a", f"b {number}", ""], "caption": "no", "what": "x"} for number in (1, 2)
    ]
    assert make("mine", "--from", table(form, rows), "--concept", "what") == 0
    assert [(one.concept, one.texts) for one in made().images] == [("x", ("a", "b 1")), ("x", ("a", "b 2"))]
    assert make("other", "--from", table(form, rows), "--caption", "caption") == 0
    assert [one.texts for one in made("other").images] == [("no",), ("no",)]


def test_a_column_of_classes_makes_a_classification_set() -> None:
    pictures("photos", 1, 2, 3)
    rows = [{"file": f"{number}.png", "kind": "hat" if number < 3 else "big_dress"} for number in (1, 2, 3)]
    assert make("mine", "--from", table("csv", rows), "--class", "kind", "--reference", "0.5") == 0
    assert (made().kind, made().classes) == ("classification", ("big dress", "hat"))
    assert sorted((one.label, one.split) for one in made().images) == [
        ("big dress", "query"), ("hat", "query"), ("hat", "reference"),
    ]  # fmt: skip


def test_a_table_without_header() -> None:
    pictures("photos", 1)
    Path("photos/table.tsv").write_text('1.png\tan unbalanced " quote')
    assert make("mine", "--from", "photos/table.tsv") == 0
    assert made().images[0].texts == ('an unbalanced " quote',)


def test_all_that_is_missing_or_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    pictures("photos", *range(3))
    Path("secret.png").write_bytes(noise(50, 20, 16))
    Path("photos/link.png").symlink_to("../secret.png")
    Path("photos/broken.png").write_bytes(noise(7, 20, 16)[:100])
    rows = [{"file": f"gone{number}.png", "caption": "x"} for number in range(12)]
    names = ("../secret.png", str(Path("secret.png").resolve()), "link.png", "broken.png")
    rows += [{"file": name, "caption": "y"} for name in names]
    rows += [{"file": "0.png", "caption": "fine"}, {"file": "1.png", "caption": " "}, {"file": "", "caption": "z"}]
    file = table("csv", rows)
    with Path(file).open("a") as text:
        text.write("\n2.png,a comma, and no quotes")
    line = refused(capsys, "mine", "--from", file)
    assert "3 outside of photos (../secret.png, " in line
    assert "1 row(s) without a picture (row 19); 1 row(s) that cannot be read (row 20)" in line
    assert "1 without a caption (1.png)" in line
    assert "12 missing (gone0.png, gone1.png" in line and "gone9.png and 2 more)" in line
    assert "1 undecodable (broken.png: " in line
    assert line.endswith("correct these, or leave them out with --skip")
    assert make("mine", "--from", file, "--skip") == 0
    assert [one.key for one in made().images] == ["0"]
    assert "left out: 12 missing" in capsys.readouterr().err


def test_equal_pictures_are_joined_unless_that_contradicts(capsys: pytest.CaptureFixture[str]) -> None:
    pictures("photos", 1, 2)
    Path("photos/copy.png").write_bytes(noise(1, 20, 16))
    rows = [{"file": name, "caption": name[0], "c": f"of {name}"} for name in ("1.png", "2.png", "copy.png")]
    assert make("mine", "--from", table("csv", rows)) == 0
    assert "1 picture(s) joined to one with the same bytes (copy.png = 1.png)" in capsys.readouterr().err
    assert [one.texts for one in made().images] == [("1", "c"), ("2",)]
    line = refused(capsys, "other", "--from", table("csv", rows), "--concept", "c")
    assert "1 equal to one of another class, concept or split (copy.png = 1.png)" in line


def test_an_existing_set_is_replaced_only_when_told(capsys: pytest.CaptureFixture[str]) -> None:
    class_folders()
    assert make("mine", "--from", "photos") == 0
    before = Path("sets/mine.tar").read_bytes()
    pictures("photos/hat", 77)
    assert "sets/mine.json: exists; replace the set with --replace" in refused(capsys, "mine", "--from", "photos")
    assert Path("sets/mine.tar").read_bytes() == before
    assert make("mine", "--from", "photos", "--replace") == 0
    assert len(made().images) == 13


def test_large_pictures_are_shrunk_when_told() -> None:
    pictures("photos", 1)
    Path("photos/2.png").write_bytes(noise(2, 300, 200))
    file = table("csv", [{"file": f"{number}.png", "caption": "x"} for number in (1, 2)])
    assert make("mine", "--from", file, "--resize", "64") == 0
    small, shrunk = (picture for _, picture in made().read())
    assert small == noise(1, 20, 16)
    assert shrunk.startswith(b"\xff\xd8") and shrunk != noise(2, 300, 200)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test", "--from", "photos"], "test: `align evaluate` measures a set of this name itself; choose"),
        (["../x", "--from", "photos"], "'../x': a set's name has letters, digits, - and _ only"),
        (["mine", "--from", "nowhere"], "nowhere: does not exist; give a folder of class folders, or a table"),
        (["mine", "--from", "photos/hat"], "photos/hat: 4 picture(s) in no class folder (10.png, "),
        (["mine", "--from", "photos/.cache"], "photos/.cache: no pictures in class folders; expected FOLDER/CLASS/"),
        (["mine", "--from", "photos", "--reference", "2"], "--reference 2: expected a share between 0 and 1"),
        (["mine", "--from", "photos", "--template", "a {} {}"], "--template 'a {} {}': has no {} for the name"),
        (["mine", "--from", "t.csv"], "t.csv: no column with a usual name for captions, it has file, kind; say which"),
        (["mine", "--from", "t.csv", "--class", "x"], "t.csv: --class x: no such column, it has file, kind"),
        (["mine", "--from", "empty.csv"], "empty.csv: no column with a usual name for picture files, it has none"),
        (["mine", "--from", "t.csv", "photos", "--class", "kind"], "t.csv: no rows"),
        (["mine", "--from", "c.csv", "--reference", "0.5"], "mine: --reference and --classes need classes; give class"),
        (["mine", "--from", "bad.parquet"], "bad.parquet: unreadable ("),
    ],
)  # fmt: skip
def test_typical_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    class_folders()
    Path("t.csv").write_text("file,kind\n")
    Path("c.csv").write_text("file,caption\nphotos/hat/10.png,a hat\n")
    Path("empty.csv").touch()
    Path("bad.parquet").write_bytes(b"PAR1 and no more")
    assert refused(capsys, *words).startswith(message)


def picture(path: str, number: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(noise(number, 20, 16))


@pytest.mark.parametrize("kind", ["table", "folder", "reference"])
def test_pictures_of_sources_with_the_same_name_stay_apart(kind: str) -> None:
    for number, folder in enumerate(("a", "b")):
        for one in ("hat", "dress"):
            picture(f"{folder}/photos/{one}/1.png", 2 * number + (one == "hat"))
        rows = "".join(f"photos/{one}/1.png,the {one} of {folder}\n" for one in ("hat", "dress"))
        Path(folder, "captions.csv").write_text(f"file,caption\n{rows}")
    if kind == "table":
        assert make("mine", "--from", "a/captions.csv", "b/captions.csv") == 0
        assert {one.concept: one.texts for one in made().images} == {
            f"{number}_captions.csv/photos/{one}/1.png": (f"the {one} of {folder}",)
            for number, folder in ((1, "a"), (2, "b"))
            for one in ("hat", "dress")
        }
    elif kind == "folder":
        assert make("mine", "--from", "a/photos", "b/photos") == 0
    else:
        assert make("mine", "--from", "a/photos", "--reference", "b/photos") == 0
        assert {one.concept[:8]: one.split for one in made().images} == {
            "1_photos": "query",
            "2_photos": "reference",
        }
    assert len({one.concept for one in made().images}) == 4


def test_half_a_surrogate_pair_in_a_row_is_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    picture("photos/1.png", 1)
    names = ("1.png", "\ud800.jpg", "a\0.jpg")
    rows = [{"file_name": name, "caption": "a"} for name in names]
    Path("photos/t.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert make("mine", "--from", "photos/t.jsonl") == 1
    assert "2 row(s) with a name that no file can have (row 2, row 3)" in capsys.readouterr().err.splitlines()[-1]
    assert make("mine", "--from", "photos/t.jsonl", "--skip") == 0
    assert [one.key for one in made().images] == ["1"]


def test_a_name_that_is_not_utf_8_is_a_fault_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate((b"hat/1.png", b"dress/2.png", b"hat/caf\xe9.png", b"caf\xe9/3.png")):
        picture(f"photos/{os.fsdecode(name)}", number)
    assert make("mine", "--from", "photos") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "2 with a name that is not UTF-8 (caf\\udce9/3.png, hat/caf\\udce9.png)" in line
    assert make("mine", "--from", "photos", "--skip") == 0
    assert [one.key for one in made().images] == ["dress_2", "hat_1"]


@pytest.mark.parametrize("words", [["--from", "p\udce9"], ["--from", "photos", "--description", "p\udce9"]])
def test_what_is_typed_and_is_not_utf_8_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("photos", "p\udce9"):
        for number, one in enumerate(("hat", "dress")):
            picture(f"{folder}/{one}/1.png", number)
    assert make("mine", *words) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("align: error: 'p\\udce9': not UTF-8; ")


def test_files_that_are_no_pictures_by_their_names_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for number, one in enumerate(("hat", "dress")):
        picture(f"photos/{one}/1.png", number)
    for name in ("hat/notes.txt", "hat/raw.dng", ".DS_Store", "labels.csv"):
        Path("photos", name).touch()
    assert make("mine", "--from", "photos") == 0
    line = "left out: 4 file(s) that are no pictures by their names (.DS_Store, labels.csv, hat/notes.txt, hat/raw.dng)"
    assert f"make_set: {line}\n" in capsys.readouterr().err
    Path("photos/hat/photo.HEIC").write_bytes(b"whatever")
    assert make("mine", "--from", "photos", "--replace") == 1
    assert "1 undecodable (hat/photo.HEIC: " in capsys.readouterr().err


def test_missing_pictures_are_looked_for_in_the_usual_folders_only(capsys: pytest.CaptureFixture[str]) -> None:
    picture("photos/deep/in/1.png", 1)
    Path("photos/t.csv").write_text("file,caption\n1.png,one\n")
    assert make("mine", "--from", "photos/t.csv") == 1
    assert "--images" not in capsys.readouterr().err
    picture("photos/Images/1.png", 1)
    assert make("mine", "--from", "photos/t.csv") == 1
    assert capsys.readouterr().err.endswith("; 1.png is in photos/Images: give --images photos/Images\n")
    assert make("mine", "--from", "photos/t.csv", "--images", "photos/Images") == 0
