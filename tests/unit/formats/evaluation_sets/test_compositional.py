"""SugarCrepe, Winoground and ARO from files in their authors' layouts, and from the hub's parquet."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from align.formats.evaluation_sets.compositional import CATEGORIES
from tests.support.choices import aro, aro_rows, sugarcrepe, winoground
from tests.support.colours import square
from tests.support.suites import read


def test_sugarcrepe_as_published(tmp_path: Path) -> None:
    one = read(tmp_path, sugarcrepe(tmp_path / "set"), "sugarcrepe", "compositional")
    assert one.kind == "compositional" and one.choices is not None and one.choices.protocol == "sugarcrepe"
    assert [row.key for row in one.choices.rows[:2]] == ["replace_obj/0", "replace_obj/3"]  # indices may have gaps
    assert {row.group for row in one.choices.rows} == set(CATEGORIES) and len(one.choices.rows) == 14
    assert one.choices.rows[0].texts == ("a red square", "a green square")
    # One item a picture, however many rows ask about it.
    assert [image.key for image in one.images] == ["000000000001.jpg", "000000000002.jpg"]
    assert [data for _, data in one.read()] == [square("red"), square("green")]
    identity = one.identity
    elsewhere = (tmp_path / "set/val2017").rename(tmp_path / "pictures")
    again = read(tmp_path, tmp_path / "set", "sugarcrepe", "compositional", images=str(elsewhere))
    assert again.identity == identity


def test_winoground_as_published_and_as_on_the_hub(tmp_path: Path) -> None:
    one = read(tmp_path, winoground(tmp_path / "set"), "winoground", "compositional")
    assert one.choices is not None and one.choices.protocol == "winoground"
    assert [image.key for image in one.images] == [f"ex_{n}_img_{i}.png" for n in (0, 1) for i in (0, 1)]
    assert [(row.key, row.images, row.texts) for row in one.choices.rows] == [
        ("example 0", (0, 1), ("a red thing", "a green thing")),
        ("example 1", (2, 3), ("a blue thing", "a yellow thing")),
    ]
    rows = [json.loads(line) for line in (tmp_path / "set/examples.jsonl").read_text().splitlines()]
    for row in rows:
        for name in ("image_0", "image_1"):
            row[name] = {"bytes": (tmp_path / f"set/images/{row[name]}.png").read_bytes(), "path": None}
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub/test-00000-of-00001.parquet")
    hub = read(tmp_path, tmp_path / "hub", "winoground", "compositional")
    assert hub.choices is not None and [row.texts for row in hub.choices.rows] == [r.texts for r in one.choices.rows]
    mine = [hub.digests[image] for row in hub.choices.rows for image in row.images]
    assert mine == [one.digests[image] for row in one.choices.rows for image in row.images]


@pytest.mark.parametrize("kind", ["relation", "attribution"])
def test_aro_as_published(tmp_path: Path, kind: str) -> None:
    one = read(tmp_path, aro(tmp_path / "set", kind), "aro", "compositional")
    assert one.choices is not None and one.choices.protocol == kind
    group = "to the left of" if kind == "relation" else "red_green"
    assert [(row.images, row.group) for row in one.choices.rows] == [((0,), group), ((1,), group), ((0,), group)]
    assert one.choices.rows[0].texts == ("a red square", "a green square")
    assert [(image.key, image.concept, image.box) for image in one.images] == [
        ("1.jpg#0,0,20,40", "1.jpg", (0, 0, 20, 40)),
        ("1.jpg#20,0,40,40", "1.jpg", (20, 0, 40, 40)),
    ]
    whole = (tmp_path / "set/images/1.jpg").read_bytes()
    assert [data for _, data in one.read()] == [whole, whole]  # what rule I5 looks for is the picture


def test_aros_order_is_read_from_the_hubs_copy(tmp_path: Path) -> None:
    names = ("correct_caption", *(f"hard_text_{number}" for number in range(1, 5)))
    rows: list[dict[str, Any]] = [
        {"images": {"bytes": square("red"), "path": "a.jpg"}, **{name: f"red {name}" for name in names}},
        {"images": {"bytes": square("blue"), "path": "b.jpg"}, **dict.fromkeys(names, None)},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-0.parquet")
    one = read(tmp_path, tmp_path / "test-0.parquet", "aro", "compositional")
    assert one.choices is not None and one.choices.protocol == "order"
    assert [row.texts for row in one.choices.rows] == [tuple(f"red {name}" for name in names)]
    assert list(one.unusable) == ["test-0/000001"] and "no correct_caption" in one.unusable["test-0/000001"]
    pq.write_table(pa.Table.from_pylist([{"image": rows[0]["images"], "text": "x"}]), tmp_path / "test-0.parquet")
    with pytest.raises(DataError, match=r"no columns of pictures and captions as aro has them; it has image, text"):
        read(tmp_path, tmp_path / "test-0.parquet", "aro", "compositional")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"filename": "1.jpg", "caption": "a"}, "no negative_caption"),
        ({"filename": 1, "caption": "a", "negative_caption": "b"}, "no filename"),
        ({"filename": "1.jpg", "caption": " ", "negative_caption": "b"}, "no caption"),
        ({"filename": "../1.jpg", "caption": "a", "negative_caption": "b"}, "leads out of the folder"),
        ({"filename": "/etc/1.jpg", "caption": "a", "negative_caption": "b"}, "leads out of the folder"),
        ("a", "no filename"),
    ],
)
def test_a_bad_row_of_sugarcrepe_is_told(tmp_path: Path, row: Any, why: str) -> None:
    path = sugarcrepe(tmp_path / "set") / "swap_att.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "9": row}))
    one = read(tmp_path, tmp_path / "set", "sugarcrepe", "compositional")
    assert list(one.unusable) == ["swap_att/9"] and why in one.unusable["swap_att/9"]
    assert one.choices is not None and len(one.choices.rows) == 14


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bbox_w": 0}, "no box"),
        ({"bbox_w": 1 << 40}, "no box"),
        ({"bbox_x": -(1 << 40)}, "no box"),
        ({"bbox_y": "0"}, "no box"),
        ({"bbox_h": True}, "no box"),
        ({"relation_name": None}, "no relation"),
        ({"image_path": "../../x.jpg"}, "leads out of the folder"),
    ],
)
def test_a_bad_row_of_aro_is_told(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    path = aro(tmp_path / "set", "relation")
    rows = aro_rows("relation")
    path.write_text(json.dumps([*rows, {**rows[0], **change}]))
    one = read(tmp_path, path, "aro", "compositional")
    assert list(one.unusable) == ["row 3"] and why in one.unusable["row 3"]


def test_bad_lines_of_winoground_are_told(tmp_path: Path) -> None:
    path = winoground(tmp_path / "set") / "examples.jsonl"
    with path.open("a") as file:
        file.write('{"id": 2, "image_0": "a"}\n{"id": \n[1]\n')
    one = read(tmp_path, tmp_path / "set", "winoground", "compositional")
    assert one.unusable == {"example 2": "no image_1", "line 4": "no JSON", "example 4": "no image_0"}


def test_what_is_missing_or_damaged_is_one_line(tmp_path: Path) -> None:
    root = sugarcrepe(tmp_path / "set")
    (root / "add_obj.json").write_bytes((root / "add_obj.json").read_bytes()[:50])
    with pytest.raises(DataError, match=r"add_obj\.json: no JSON"):
        read(tmp_path, root, "sugarcrepe", "compositional")
    (root / "add_obj.json").unlink()
    with pytest.raises(DataError, match=r"add_obj\.json: the rows cannot be read"):
        read(tmp_path, root, "sugarcrepe", "compositional")
    (root / "add_obj.json").write_text("[]")
    with pytest.raises(DataError, match=r"add_obj\.json: no object of rows"):
        read(tmp_path, root, "sugarcrepe", "compositional")
    (sugarcrepe(tmp_path / "other") / "val2017").rename(tmp_path / "other/pictures")
    with pytest.raises(DataError, match=r"none of the first pictures \(000000000001\.jpg, \.\.\.\) is in one of"):
        read(tmp_path, tmp_path / "other", "sugarcrepe", "compositional")
    (tmp_path / "x.json").write_text('[{"a": 1}]')
    with pytest.raises(DataError, match="no rows with relation_name or attributes"):
        read(tmp_path, tmp_path / "x.json", "aro", "compositional")
    with pytest.raises(DataError, match=r"examples\.jsonl: the examples cannot be read"):
        read(tmp_path, tmp_path / "nowhere", "winoground", "compositional")
    (tmp_path / "torn.parquet").write_bytes(io.BytesIO(b"PAR1 and no more").getvalue())
    with pytest.raises(DataError, match="unreadable as parquet"):
        read(tmp_path, tmp_path / "torn.parquet", "winoground", "compositional")
