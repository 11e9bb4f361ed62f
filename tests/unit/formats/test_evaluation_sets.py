"""Sets of classes as folder, webdataset and parquet, written by the formats' own tools."""

import json
import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from tests.support.class_sets import CLASSES, ROWS, folder, parquet, picture, tars
from tests.support.colours import square
from tests.support.suites import read


@pytest.mark.usefixtures("any_blocks")
@pytest.mark.parametrize(("kind", "write"), [("folder", folder), ("webdataset", tars), ("parquet", parquet)])
def test_the_same_set_in_each_format(tmp_path, kind, write):
    one = read(tmp_path, write(tmp_path / "set"), kind, "zero_shot", "knn")
    names = [name if kind == "parquet" else name.replace("_", " ") for name in CLASSES]
    assert (one.kind, list(one.classes)) == ("classification", names)
    assert [(image.label, image.split) for image in one.images] == [
        (names[label], split) for of, split in (("test", "query"), ("train", "reference")) for label, _ in ROWS[of]
    ]
    everything = [data for rows in ROWS.values() for _, data in rows]
    assert [data for _, data in one.read()] == everything
    assert list(one.read([1, 5, 6, 11])) == [(n, everything[n]) for n in (1, 5, 6, 11)]  # from any place
    assert list(one.read([])) == [] and len(one.identity) == 64
    assert one.templates == (("a photo of a {}.",) if kind == "webdataset" else one.templates)
    assert all("{}" in template for template in one.templates)
    without = read(tmp_path, tmp_path / "set", kind, "zero_shot")
    assert {image.split for image in without.images} == {"query"} and len(without.images) == 6


@pytest.mark.parametrize(("sample", "why"), [
    ({"jpg": b"x", "cls": "9"}, "its class is 9, but there are 3 names"),
    ({"jpg": b"x", "cls": "first"}, "no class (a number in .cls)"),
    ({"jpg": b"x"}, "no class (a number in .cls)"),
])  # fmt: skip
def test_a_bad_sample_is_a_row_with_a_reason(tmp_path, sample, why):
    one = read(tmp_path, tars(tmp_path / "set", **sample), "webdataset", "zero_shot")
    assert len(one.images) == 5 and one.unusable == {"s0000000": why}


def test_a_sample_without_its_picture_is_told(tmp_path):
    one = read(tmp_path, tars(tmp_path / "set", cls="0"), "webdataset", "zero_shot")
    told = {}
    assert len(list(one.read(fault=told.__setitem__))) == 5 and told == {0: "the sample has no picture"}


@pytest.mark.parametrize(("name", "content", "message"), [
    ("classnames.txt", None, r"classnames\.txt: the names of the classes of one cannot be read"),
    ("classnames.txt", b"\xff\xfe\xfd", "not UTF-8"),
    ("classnames.txt", b"\n", "an empty file"),
    ("classnames.txt", b"car\nhouse cat\nowl\nbee\n", r"1 of 4 classes have no image in split test \(bee\)"),
    ("zeroshot_classification_templates.txt", b"a photo\n", r"template 'a photo' has no \{c\}"),
    ("test/nshards.txt", b"many", "'many' is no number of tars"),
    ("test/nshards.txt", None, "the number of tars of split test cannot be read"),
    ("test/1.tar", None, r"1\.tar: cannot be read"),
    ("test/1.tar", b"no tar" * 200, r"1\.tar: not a readable tar"),
])  # fmt: skip
def test_a_damaged_layout_is_one_clear_line(tmp_path, name, content, message):
    root = tars(tmp_path / "set")
    (root / name).unlink()
    if content is not None:
        (root / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, root, "webdataset", "zero_shot")


@pytest.mark.parametrize(
    ("tar", "kept", "says"),
    [(1, 700, r"1\.tar: not a readable tar"), (0, None, "4 ids occur more than once, the first is s0000000")],
    ids=["cut off", "ids twice"],
)
def test_a_tar_that_cannot_be_used_is_an_error(tmp_path, tar, kept, says):
    root = tars(tmp_path / "set")
    (root / "test/1.tar").write_bytes((root / f"test/{tar}.tar").read_bytes()[:kept])
    with pytest.raises(DataError, match=says):
        read(tmp_path, root, "webdataset", "zero_shot")


@pytest.mark.parametrize(("name", "content", "classes"), [
    ("names.json", '{"car": "a car", "house_cat": "cat", "owl": "owl"}', ("a car", "cat", "owl")),
    ("names.json", '["a car", "cat", "owl"]', ("a car", "cat", "owl")),
    ("names.csv", 'owl,"owl, a bird"\ncar,a car\nhouse_cat,cat\n', ("a car", "cat", "owl, a bird")),
    ("names.txt", "a car\ncat\nowl, a bird\n", ("a car", "cat", "owl, a bird")),
    ("names.txt", "a car\ncat\n", "2 names, but the set has 3 classes"),
    ("names.json", '{"car": "a car", "owl": "owl"}', r"no name for 1 of the classes \(house_cat\)"),
    ("names.json", '{"car": "a", "house_cat": "b", "owl": "c", "bee": "d"}', r"1 classes without images \(bee\)"),
    ("names.json", '{"car": "a", "house_cat": "a", "owl": "c"}', "two classes have the name 'a'"),
    ("names.json", "{", "no names of classes"),
])  # fmt: skip
def test_names_of_classes(tmp_path, name, content, classes):
    (tmp_path / name).write_text(content)
    root = folder(tmp_path / "set")
    if isinstance(classes, str):
        with pytest.raises(DataError, match=classes):
            read(tmp_path, root, "folder", "zero_shot", classnames=str(tmp_path / name))
    else:
        one = read(tmp_path, root, "folder", "zero_shot", classnames=str(tmp_path / name))
        assert one.classes == classes and one.images[2].label == classes[1]


def test_folders_without_classes_and_without_splits(tmp_path):
    root = folder(tmp_path / "set")
    assert len(read(tmp_path, root / "train", "folder", "zero_shot").images) == 6
    with pytest.raises(DataError, match=r"no pictures of split dev; name `split` and `reference`"):
        read(tmp_path, root, "folder", "zero_shot", "knn", split="dev")
    with pytest.raises(DataError, match=r"0 class folder\(s\) with pictures; expected .*/test/CLASS"):
        read(tmp_path, root / "test/car", "folder", "zero_shot")


def test_parquet_that_says_too_little(tmp_path):
    root = parquet(tmp_path / "set", named=False)
    with pytest.raises(DataError, match="its metadata name no classes; give a file: `classnames`"):
        read(tmp_path, root, "parquet", "zero_shot")
    (tmp_path / "names.txt").write_text("car\ncat\nowl\n")
    one = read(tmp_path, root, "parquet", "zero_shot", classnames=str(tmp_path / "names.txt"))
    assert one.classes == ("car", "cat", "owl")
    with pytest.raises(DataError, match=r"no parquet file of split dev .*it has test-00000"):
        read(tmp_path, root, "parquet", "zero_shot", split="dev")
    file = root / "data/test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match="unreadable as parquet"):
        read(tmp_path, root, "parquet", "zero_shot")
    pq.write_table(pa.table({"image": ["a.jpg"], "label": [0]}), file)
    with pytest.raises(DataError, match=r"no column of pictures \(\{bytes, path\}\); it has image, label"):
        read(tmp_path, root, "parquet", "zero_shot")


def test_a_row_without_bytes_and_one_without_a_label(tmp_path):
    pictures = [{"bytes": None, "path": "1.jpg"}, {"bytes": picture(1, "test"), "path": None}, None]
    table = pa.table({"image": pictures, "label": pa.array([0, 1, None], pa.int64())})
    pq.write_table(table, tmp_path / "one.parquet")
    (tmp_path / "names.txt").write_text("car\ncat\n")
    one = read(tmp_path, tmp_path / "one.parquet", "parquet", "zero_shot", classnames=str(tmp_path / "names.txt"))
    assert list(one.unusable.values()) == ["without a label"]
    told = {}
    assert list(one.read(fault=told.__setitem__)) == [(1, picture(1, "test"))]
    assert told == {0: "no bytes in the file, only the path '1.jpg'"}


@pytest.mark.parametrize(("kind", "write"), [("folder", folder), ("webdataset", tars), ("parquet", parquet)])
def test_a_mask_of_classes(tmp_path, kind, write):
    """As ImageNet-A and -R have them: some classes of many."""
    path = write(tmp_path / "set")
    names = [name if kind == "parquet" else name.replace("_", " ") for name in CLASSES]
    if kind == "webdataset":
        (path / "classnames.txt").write_text("car\nhouse cat\nowl\nbee\n")
    one = read(tmp_path, path, kind, "zero_shot", "knn", among="present")
    assert list(one.classes) == names and len(one.images) == 12
    (tmp_path / "names.txt").write_text("\n".join(["bee", *reversed(names)]))
    other = read(tmp_path, path, kind, "zero_shot", among=str(tmp_path / "names.txt"))
    assert list(other.classes) == ["bee", *reversed(names)] and len(other.images) == 6
    for content, message in (
        (names[:2], r"1 classes of its pictures are not in it \(owl\)"),
        ([*names, "owl"], "named twice"),
        ([], "an empty file"),
    ):
        (tmp_path / "names.txt").write_text("\n".join(content))
        with pytest.raises(DataError, match=message):
            read(tmp_path, path, kind, "zero_shot", among=str(tmp_path / "names.txt"))


def test_pictures_to_learn_from_of_masked_classes_are_left_out(tmp_path):
    for gone in (folder(tmp_path / "set") / "test/owl").iterdir():
        gone.unlink()
    (tmp_path / "names.json").write_text('{"car": "car", "house_cat": "cat", "owl": "owl", "n01": "bee"}')
    with pytest.raises(DataError, match="1 classes without images"):
        read(tmp_path, tmp_path / "set", "folder", "zero_shot", "knn", classnames=str(tmp_path / "names.json"))
    one = read(
        tmp_path, tmp_path / "set", "folder", "zero_shot", "knn",
        among="present", classnames=str(tmp_path / "names.json"),
    )  # fmt: skip
    assert one.classes == ("car", "cat")
    assert [image.split for image in one.images] == ["query"] * 4 + ["reference"] * 4
    assert [data for _, data in one.read()] == [data for of in ("test", "train") for _, data in ROWS[of][:4]]


SECRET = square("yellow")
NAMES = {
    "words": ("../../secret.jpg", None),
    "words in the middle": ("x/../../../secret.jpg", None),
    "the root": ("{root}/secret.jpg", None),
    "a link": ("link.jpg", lambda path, root: path.symlink_to(root / "secret.jpg")),
    "a link to a link": ("link.jpg", lambda path, root: path.symlink_to(root / "outside/again.jpg")),
    "a folder's link": ("away/secret.jpg", lambda path, root: path.parent.symlink_to(root)),
    "a device": ("zero.jpg", lambda path, root: path.symlink_to("/dev/zero")),
    "a pipe": ("pipe.jpg", lambda path, root: os.mkfifo(path)),
    "a zero byte": ("a\0b.jpg", None),
    "half a character": ("\ud800.jpg", None),
    "too long": ("x" * 5000 + ".jpg", None),
    "a folder": ("folder.jpg", lambda path, root: path.mkdir()),
}


def _coco(root, name):
    names = ["0.jpg", name]
    images = [{"id": number, "file_name": one} for number, one in enumerate(names)]
    rows = [{"image_id": number, "caption": f"thing {number}"} for number in range(2)]
    path = root / "set/captions.json"
    path.write_text(json.dumps({"images": images, "annotations": rows}))
    return path, {"images": str(root / "set/images")}


def _karpathy(root, name):
    rows = [{"filename": one, "split": "test", "sentences": [{"raw": f"thing {one[:9]!r}"}]} for one in ("0.jpg", name)]
    path = root / "set/dataset.json"
    path.write_text(json.dumps({"images": rows}))
    return path, {"images": str(root / "set/images")}


def _karpathy_folder(root, name):
    folder, _, file = name.rpartition("/")
    rows = [
        {"filename": file, "split": "test", "filepath": where, "sentences": [{"raw": where}]}
        for file, where in (("0.jpg", "images"), (file, f"images/{folder}"))
    ]
    path = root / "set/dataset.json"
    path.write_text(json.dumps({"images": rows}))
    return path, {}


def _lines(root, name):
    path = root / "set/captions.txt"
    path.write_bytes(f"0.jpg,one\n{name},other\n".encode("utf-8", "replace"))
    return path, {"images": str(root / "set/images")}


FORMATS = {"coco": _coco, "karpathy": _karpathy, "karpathy's folder": _karpathy_folder, "retrieval_txt": _lines}


#: All formats read their pictures by `FilePictures`.
CASES = [("coco", attack) for attack in NAMES] + [(kind, one) for kind in FORMATS for one in ("words", "a link")][2:]


@pytest.mark.parametrize(("kind", "attack"), CASES)
def test_captions_name_no_file_outside(tmp_path, kind, attack):
    _world(tmp_path)
    name = _made(tmp_path, attack, tmp_path / "set/images")
    path, more = FORMATS[kind](tmp_path, name)
    _harmless(tmp_path, path, kind.partition("'")[0], "retrieval", more)


@pytest.mark.parametrize("attack", [name for name, (_, make) in NAMES.items() if make])
def test_folders_lead_to_no_file_outside(tmp_path, attack):
    _world(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "set/test" / name).mkdir(parents=True)
        (tmp_path / "set/test" / name / "0.jpg").write_bytes(square("red"))
    _made(tmp_path, attack, tmp_path / "set/test/cat")
    _harmless(tmp_path, tmp_path / "set", "folder", "zero_shot", {})


def _world(root):
    (root / "set/images").mkdir(parents=True)
    (root / "outside").mkdir()
    (root / "secret.jpg").write_bytes(SECRET)
    (root / "outside/again.jpg").symlink_to(root / "secret.jpg")
    (root / "set/images/0.jpg").write_bytes(square("red"))


def _made(root, attack, folder):
    name, make = NAMES[attack]
    if make is not None:
        make(folder / name, root)
    return name.format(root=root)


def _harmless(root, path, kind, task, more):
    """The set is refused in one line, or its pictures are read, none of them from outside; and nothing waits."""
    found = []

    def work():
        try:
            found.extend(data for _, data in read(root, path, kind, task, **more).read())
        except DataError as refused:
            found.append(str(refused))
        except BaseException as broken:  # noqa: BLE001 - a thread's failure is the test's
            found.append(broken)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert found and SECRET not in found
    assert all(isinstance(one, bytes | str) and (isinstance(one, bytes) or "\n" not in one) for one in found), found
