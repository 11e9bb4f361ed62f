import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from align.errors import CorruptError, DataError, FormatError
from align.formats.evaluation_set import load_sets


def write_set(directory: Path, name: str = "concepts", **changes: Any) -> Path:
    """A set of two images; `changes` overrides header fields, `members` the tar's files."""
    rows = [
        {"key": "a1", "concept": "heart", "texts": ["red heart"], "class": "symbols", "vendor": "noto",
         "split": "query"},
        {"key": "b1", "concept": "rose", "texts": ["rose", "flower"], "class": "plants", "vendor": None,
         "source_url": "https://example.org/rose", "split": "reference"},
    ]  # fmt: skip
    members = changes.pop("members", None)
    if members is None:
        members = {f"{row['key']}.json": json.dumps(row).encode() for row in rows}
        members |= {f"{row['key']}.jpg": f"bytes of {row['key']}".encode() for row in rows}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in sorted(members.items()):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.tar").write_bytes(buffer.getvalue())
    header = {
        "schema_version": 1, "name": name, "kind": "retrieval", "num_images": 2, "num_texts": 3, "num_concepts": 2,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "description": "two things",
    }  # fmt: skip
    (directory / f"{name}.json").write_text(json.dumps(header | changes))
    return directory


def test_reads_images_with_everything_that_belongs_to_them(tmp_path: Path) -> None:
    (found,) = load_sets(write_set(tmp_path))
    assert (found.name, found.kind, found.classes, found.templates) == ("concepts", "retrieval", (), ())
    heart, rose = found.images
    assert (heart.key, heart.image, heart.concept, heart.texts) == ("a1", b"bytes of a1", "heart", ("red heart",))
    assert (heart.label, heart.vendor, heart.split) == ("symbols", "noto", "query")
    assert (rose.texts, rose.vendor, rose.split) == (("rose", "flower"), None, "reference")


def test_sets_come_in_order_of_their_names_and_a_missing_folder_is_no_set(tmp_path: Path) -> None:
    assert load_sets(tmp_path / "nowhere") == []
    write_set(tmp_path, "vendor")
    write_set(tmp_path, "concepts")
    assert [found.name for found in load_sets(tmp_path)] == ["concepts", "vendor"]


def test_one_changed_byte_is_an_error(tmp_path: Path) -> None:
    tar = write_set(tmp_path) / "concepts.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(bytes(data))
    with pytest.raises(CorruptError, match=r"concepts\.tar: sha256 differs"):
        load_sets(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"schema_version": 2}, FormatError, "schema_version"),
        ({"kind": "ranking"}, FormatError, "kind"),
        ({"num_images": 3}, DataError, "2 images, but concepts.json says 3"),
        ({"kind": "classification"}, FormatError, "needs classes and templates"),
        ({"kind": "classification", "classes": ["symbols"], "templates": ["{}"]}, DataError, "class 'plants'"),
        ({"members": {"a1.jpg": b"no json beside it"}}, DataError, "a1 lacks its image or its json"),
        ({"members": {"a1.jpg": b"", "a1.json": b'{"key": "a1"}'}}, FormatError, "concept"),
    ],
)
def test_a_broken_set_says_what_is_wrong(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_sets(write_set(tmp_path, **changes))


def test_a_header_without_its_tar(tmp_path: Path) -> None:
    (write_set(tmp_path) / "concepts.tar").unlink()
    with pytest.raises(DataError, match="missing"):
        load_sets(tmp_path)


def test_a_classification_set_has_its_classes(tmp_path: Path) -> None:
    write_set(tmp_path, "classes", kind="classification", classes=["symbols", "plants"], templates=["a {}"])
    (found,) = load_sets(tmp_path)
    assert (found.classes, found.templates) == (("symbols", "plants"), ("a {}",))
    assert [image.label for image in found.images] == ["symbols", "plants"]
