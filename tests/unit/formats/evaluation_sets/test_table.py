"""Tables of pictures with captions or classes, as sets of a suite."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from tests.support.class_sets import picture
from tests.support.suites import read

PICTURES = {f"in/{number}.jpg": picture(number, "test") for number in range(4)}


@pytest.fixture(autouse=True)
def pictures(tmp_path):
    (tmp_path / "photos/in").mkdir(parents=True)
    for name, data in PICTURES.items():
        (tmp_path / "photos" / name).write_bytes(data)


def table(folder, form, rows):
    file = folder / f"photos/table.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    if form.startswith("json"):
        text = json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))
    else:
        separator = "\t" if form == "tsv" else ","
        text = "\n".join(separator.join(map(str, line)) for line in (rows[0], *(row.values() for row in rows)))
    file.write_bytes(gzip.compress(text.encode()) if form.endswith(".gz") else text.encode())
    return file


@pytest.mark.parametrize("form", ["csv", "tsv", "txt", "jsonl", "json", "csv.gz", "parquet"])
def test_a_table_with_a_caption_a_row(tmp_path, form):
    captions = [("in/1.jpg", "one  caption"), ("./in/1.jpg", "another"), ("in/2.jpg", "3"), ("in/1.jpg", "another")]
    file = table(tmp_path, form, [{"image": name, "caption": text} for name, text in captions])
    one = read(tmp_path, file, "table", "retrieval")
    assert one.kind == "retrieval" and not one.unusable
    assert [(image.key, image.concept, image.texts) for image in one.images] == [
        ("in/1.jpg", "in/1.jpg", ("one caption", "another")), ("in/2.jpg", "in/2.jpg", ("3",)),
    ]  # fmt: skip
    assert [data for _, data in one.read()] == [PICTURES["in/1.jpg"], PICTURES["in/2.jpg"]]


def test_lists_of_captions_other_columns_and_concepts(tmp_path):
    rows = [{"file": f"{n}.jpg", "texts": ["a", f"b {n}", ""], "said": "no", "what": "x"} for n in (1, 2)]
    file, folder = table(tmp_path, "jsonl", rows), str(tmp_path / "photos/in")
    one = read(tmp_path, file, "table", "retrieval", columns={"concept": "what"}, images=folder)
    assert [(image.concept, image.texts) for image in one.images] == [("x", ("a", "b 1")), ("x", ("a", "b 2"))]
    assert [data for _, data in one.read()] == [PICTURES["in/1.jpg"], PICTURES["in/2.jpg"]]
    other = read(tmp_path, file, "table", "retrieval", columns={"text": "said"}, images=folder)
    assert [image.texts for image in other.images] == [("no",), ("no",)]


def test_classes_with_a_split_to_learn_from(tmp_path):
    kinds = [("hat", "test"), ("big_dress", "test"), ("hat", "train"), ("big_dress", "val")]
    rows = [{"file": f"in/{n}.jpg", "class": kind, "split": split} for n, (kind, split) in enumerate(kinds)]
    file = table(tmp_path, "csv", rows)
    one = read(tmp_path, file, "table", "zero_shot", "knn")
    assert (one.kind, one.classes) == ("classification", ("big dress", "hat"))
    assert [(image.key, image.label, image.split) for image in one.images] == [
        ("in/0.jpg", "hat", "query"), ("in/1.jpg", "big dress", "query"), ("in/2.jpg", "hat", "reference"),
    ]  # fmt: skip
    assert len(read(tmp_path, file, "table", "zero_shot").images) == 2
    for row in rows:
        del row["split"]
    assert len(read(tmp_path, table(tmp_path, "csv", rows), "table", "zero_shot").images) == 4
    with pytest.raises(DataError, match=r"table\.csv: no column split, which says what to learn from"):
        read(tmp_path, file, "table", "zero_shot", "knn")


def test_what_cannot_be_used_is_a_row_with_a_reason(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(PICTURES["in/0.jpg"])
    (tmp_path / "photos/link.jpg").symlink_to("../secret.jpg")
    names = ("in/1.jpg", "../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "gone.jpg", "\ud800.jpg", "a\0.jpg")
    rows = [{"file": name, "caption": "x"} for name in names]
    rows += [{"file": "in/2.jpg", "caption": " "}, {"caption": "of nothing"}, 7]
    one = read(tmp_path, table(tmp_path, "jsonl", rows), "table", "retrieval")
    out, odd = "its name leads out of the folder of pictures", "without a name that a file can have"
    assert one.unusable == {
        names[1]: out, names[2]: out, "row 6": odd, "row 7": odd, "row 8": "without a caption", "row 9": odd,
        "row 10": "cannot be read",
    }  # fmt: skip
    told = {}
    assert [data for _, data in one.read(fault=told.__setitem__)] == [PICTURES["in/1.jpg"]]
    assert "link.jpg: leads out of" in told[1] and "gone.jpg: cannot be read" in told[2]
    again = [{"file": "in/1.jpg", "class": name} for name in ("hat", "dress")]
    again.append({"file": "in/2.jpg", "class": "dress"})
    one = read(tmp_path, table(tmp_path, "csv", again), "table", "zero_shot")
    assert one.unusable == {"row 2": "another class, concept or split of in/1.jpg than in the first row of it"}


@pytest.mark.parametrize(("name", "data", "task", "message"), [
    ("t.csv", b"file,kind\n", "zero_shot", "no column .* for `label`, it has file, kind; set columns.label of set"),
    ("t.csv", b"", "retrieval", "the table is empty"),
    ("t.csv", b"file,caption\n", "retrieval", r"evaluation set one .*: no picture that can be used"),
    ("t.parquet", b"PAR1", "retrieval", "unreadable"),
    ("gone.csv", None, "retrieval", r"gone\.csv: cannot be read"),
    ("t.jsonl", b'{"file": "a.jpg", "texts": [%s]}' % b",".join(b'"%d"' % n for n in range(2000)),
     "retrieval", "more than 1,000 captions"),
])  # fmt: skip
def test_what_is_no_such_table_is_one_line(tmp_path, name, data, task, message):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(tmp_path, tmp_path / name, "table", task)


def test_a_column_that_is_not_there(tmp_path):
    file = table(tmp_path, "csv", [{"file": "in/1.jpg", "caption": "x"}])
    with pytest.raises(DataError, match=r"no column 'what', it has file, caption; set columns.concept of set one"):
        read(tmp_path, file, "table", "retrieval", columns={"concept": "what"})
