import json
import shutil
import tarfile
import tracemalloc
from dataclasses import replace

import pytest

from align.durable.files import sha256_file
from align.errors import CorruptError, DataError, FormatError
from align.formats import measured_sets
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Unreadable, distinct_pictures, held
from align.formats.evaluation_sets.align_tar import load_sets
from align.formats.measured_sets import evaluation_digest, set_digests
from tests.support.evaluation_sets import write_items, write_set


def test_reads_images_with_everything_that_belongs_to_them(tmp_path):
    (found,) = load_sets(write_set(tmp_path))
    assert (found.name, found.kind, found.classes, found.templates) == ("concepts", "retrieval", (), ())
    heart, rose = found.images
    assert (heart.key, heart.concept, heart.texts) == ("a1", "heart", ("red heart",))
    assert list(found.read()) == [(0, b"bytes of a1"), (1, b"bytes of b1")]
    assert (heart.label, heart.split) == ("symbols", "query")
    assert (rose.texts, rose.split) == (("rose", "flower"), "reference")


def test_sets_come_in_order_of_their_names_and_an_empty_folder_has_none(tmp_path):
    assert load_sets(tmp_path) == []
    write_set(tmp_path, "vendor")
    write_set(tmp_path, "concepts")
    assert [found.name for found in load_sets(tmp_path)] == ["concepts", "vendor"]


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"schema_version": 2}, FormatError, "schema_version"),
    ({"kind": "ranking"}, FormatError, "kind"),
    ({"num_images": 3}, DataError, "2 images, but concepts.json says 3"),
    ({"kind": "classification"}, FormatError, "needs classes and templates"),
    ({"kind": "classification", "classes": ["symbols"], "templates": ["{}"]}, DataError, "class 'plants'"),
    ({"members": {"a1.jpg": b"no json beside it"}}, DataError, "a1 lacks its image or its json"),
    ({"members": {"a1.jpg": b"", "a1.json": b'{"key": "a1"}'}}, FormatError, "concept"),
])  # fmt: skip
def test_a_broken_set_says_what_is_wrong(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        load_sets(write_set(tmp_path, **changes))


def renamed(folder):
    header = folder / "concepts.json"
    header.write_text(header.read_text().replace('"concepts"', '"../copy"'))


def flipped(folder):
    data = bytearray((folder / "concepts.tar").read_bytes())
    data[600] ^= 1
    (folder / "concepts.tar").write_bytes(bytes(data))


def with_a_link(folder):
    with tarfile.open(folder / "concepts.tar", "a") as file:
        link = tarfile.TarInfo("a2.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    header = folder / "concepts.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"sha256": sha256_file(folder / "concepts.tar")}))


def a_file(folder):
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize(("damage", "error", "message"), [
    (renamed, FormatError, r"concepts\.json: its name is '\.\./copy'"),
    (flipped, CorruptError, r"concepts\.tar: sha256 differs"),
    (with_a_link, DataError, r"concepts\.tar: a2\.jpg: a symbolic link"),
    (lambda folder: (folder / "concepts.tar").unlink(), DataError, "missing"),
    (shutil.rmtree, DataError, r"sets: no such folder of evaluation sets; make it .* paths\.evaluation"),
    (a_file, DataError, "sets: is a file, not a folder of evaluation sets"),
])  # fmt: skip
def test_a_damaged_set_says_what_is_wrong(tmp_path, damage, error, message):
    damage(write_set(tmp_path / "sets"))
    with pytest.raises(error, match=message):
        load_sets(tmp_path / "sets")


def test_a_classification_set_has_its_classes(tmp_path):
    write_set(tmp_path, "classes", kind="classification", classes=["symbols", "plants"], templates=["a {}"])
    (found,) = load_sets(tmp_path)
    assert (found.classes, found.templates) == (("symbols", "plants"), ("a {}",))
    assert [image.label for image in found.images] == ["symbols", "plants"]


def test_what_was_written_is_read_again(tmp_path):
    images = [
        EvaluationImage("b", "rose", ("rose", "fleur é"), "plants", "reference"),
        EvaluationImage("a", "heart", (), "symbols", "query"),
    ]
    one = EvaluationSet(
        "mine", "classification", "two things", images, ("plants", "symbols"), ("a {}",), held([b"one", b"two"])
    )
    sha256 = write_items(tmp_path / "new", one)
    (found,) = load_sets(tmp_path / "new")
    assert found == replace(one, images=images[::-1], sha256=sha256)
    assert list(found.read()) == [(0, b"two"), (1, b"one")]


def test_pictures_are_read_from_any_place_and_several_times(tmp_path):
    (found,) = load_sets(write_set(tmp_path))
    first, second = found.read(), found.read([1])
    assert next(first) == (0, b"bytes of a1") and next(second) == (1, b"bytes of b1")
    assert next(first) == (1, b"bytes of b1")
    chosen = found.select([1])
    assert [image.key for image in chosen.images] == ["b1"] and list(chosen.read()) == [(0, b"bytes of b1")]


@pytest.mark.parametrize("change", [lambda tar: tar.unlink(), lambda tar: tar.write_bytes(tar.read_bytes() + b"\0")])
def test_a_tar_that_changes_while_it_is_read_is_an_error(tmp_path, change):
    (found,) = load_sets(write_set(tmp_path))
    change(tmp_path / "concepts.tar")
    with pytest.raises(DataError, match=r"concepts\.tar: re(moved|placed) while it was read; repeat the command"):
        list(found.read())


def test_pictures_are_not_held_in_memory(tmp_path):
    """A set of 64 MB is loaded and read with a tenth of it at a time."""
    big = [EvaluationImage(f"{n:02}", f"{n}", (f"text {n}",), None, "query") for n in range(32)]
    made = EvaluationSet("big", "retrieval", "", big, (), (), lambda wanted: (bytes([n]) * (2 << 20) for n in wanted))
    tracemalloc.start()
    try:
        write_items(tmp_path, made)
        (found,) = load_sets(tmp_path)
        assert [picture[0] for _, picture in found.read()] == list(range(32))
        assert len(set(found.digests)) == 32
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_picture_that_cannot_be_read_is_told_or_an_error():
    items = [EvaluationImage(key, key, ("x",), None, "query") for key in "abc"]
    one = EvaluationSet("s", "retrieval", "", items, (), (), held([b"1", Unreadable("gone"), b"1"]))
    told = {}
    assert list(one.read(fault=told.__setitem__)) == [(0, b"1"), (2, b"1")]
    assert told == {1: "gone"}
    with pytest.raises(DataError, match="evaluation set s: b: gone"):
        list(one.read())
    distinct = distinct_pictures([one])
    assert distinct.names == [["s/a", "s/c"]] and list(distinct.read()) == [("s/a", b"1")]
    assert list(distinct.faults) == ["s/b"]


IMAGE = EvaluationImage("k", "concept", ("a text",), "cat", "query")
ONE = EvaluationSet(
    "one", "classification", "words", [IMAGE], ("cat", "owl"), ("{}",), held([b"picture", b"other"]), "tar"
)


def of(one):
    return set_digests([one])["one"]


@pytest.mark.parametrize("other", [
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
])  # fmt: skip
def test_what_changes_ranks_changes_the_digest(other):
    assert of(other) != of(ONE)


def test_words_about_the_set_do_not_and_code_does(monkeypatch):
    before = of(ONE)
    assert of(replace(ONE, description="others", sha256="other")) == before
    monkeypatch.setattr(measured_sets, "digest", lambda module: f"other {module}")
    assert of(ONE) != before


def test_the_evaluation_digest_names_the_sets_in_any_order():
    assert evaluation_digest({"a": "1", "b": "2"}) == evaluation_digest({"b": "2", "a": "1"})
    assert evaluation_digest({"a": "1", "b": "2"}) != evaluation_digest({"a": "2", "b": "1"})
