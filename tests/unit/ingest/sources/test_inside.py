"""Pictures inside parquet files: which column, which rows, in which order, and files that are damaged or hostile."""

import pickle
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from align.ingest.limits import TooLarge
from tests.support.bombs import repeated_value
from tests.support.reading import read_all, short, source_at
from tests.support.warc_records import picture

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PICTURES = [picture(width, 2) for width in range(3, 13)]
TEXTS = [f"picture {number}" for number in range(10)]


def hub_table(path, pictures=PICTURES, texts=TEXTS, *, group_rows=3, image="image", kind=HUB, **others):
    """A file as the hub's library writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [{"bytes": one, "path": "0.png"} for one in pictures] if pa.types.is_struct(kind) else pictures
    columns = {image: pa.array(values, kind), "text": texts} | others
    pq.write_table(pa.table(columns), path, row_group_size=group_rows)
    return path


@pytest.mark.parametrize("source", ["folder", "url_table"])
@pytest.mark.parametrize(
    ("image", "kind"),
    [("image", HUB), ("Images", HUB), ("jpg", pa.binary()), ("picture", pa.large_binary()), ("img", pa.binary_view())],
)
def test_every_row_has_its_own_picture_and_a_name(tmp_path, source, image, kind):
    hub_table(tmp_path / "data/train-00000.parquet", image=image, kind=kind)
    hub_table(tmp_path / "data/train-00001.parquet", PICTURES[::-1], image=image, kind=kind)
    rows = read_all(tmp_path, source)
    assert [row["bytes"] for row in rows] == PICTURES + PICTURES[::-1]
    assert short(rows, "url", "text", "problem") == [
        (f"data/train-0000{file}.parquet#{row}", TEXTS[row], None) for file in range(2) for row in range(10)
    ]
    alone = read_all(tmp_path / "data/train-00000.parquet", source)
    assert [(row["url"], row["bytes"]) for row in alone] == [
        (f"train-00000.parquet#{row}", one) for row, one in enumerate(PICTURES)
    ]


@pytest.mark.parametrize("source", ["folder", "url_table"])
def test_row_groups_are_tasks_and_give_the_same_rows(tmp_path, source):
    path = hub_table(tmp_path / "a.parquet")  # groups of 3, 3, 3, 1
    whole = source_at(tmp_path, f"source={source}")
    parts = source_at(tmp_path, f"source={source}", "shard_size=6")
    names = [f"{path} (row groups 0 to 1)", f"{path} (row groups 2 to 3)"]
    assert [file for file in parts.files if "row groups" in file] == names
    of_parts = [row for file in parts.files for batch in parts.scan(file, Counter()) for row in batch.to_pylist()]
    of_whole = [row for file in whole.files for batch in whole.scan(file, Counter()) for row in batch.to_pylist()]
    assert short(of_parts, "url", "text", "offset") == short(of_whole, "url", "text", "offset")
    # a row group is read by one shard
    assert len({row["together"] for row in of_whole[:3]}) == 1
    assert len({row["together"] for row in of_whole}) == 4


def test_pictures_are_read_in_any_order_and_by_a_copy(tmp_path):
    hub_table(tmp_path / "a.parquet")
    hub_table(tmp_path / "b.parquet", PICTURES[::-1])
    source = source_at(tmp_path, "source=folder")
    asked = [("a", 9), ("a", 0), ("b", 4), ("b", 5), ("a", 4), ("a", 3)]
    expected = [PICTURES[row] if name == "a" else PICTURES[::-1][row] for name, row in asked]
    for one in (source, pickle.loads(pickle.dumps(source))):  # the first has a file open
        assert [one.read(str(tmp_path / f"{name}.parquet"), row) for name, row in asked] == expected


def test_columns_may_be_named_and_texts_may_be_lists(tmp_path):
    texts = [["one", "two"], [], ["three"]]
    hub_table(tmp_path / "a.parquet", PICTURES[:3], ["no"] * 3, image="scan", url=["http://x/"] * 3, said=texts)
    columns = ["columns.url=scan", "columns.text=said"]
    source = source_at(tmp_path / "a.parquet", "source=url_table", *columns)
    (batch,) = source.scan(source.files[0], Counter())
    found = [(row["text"], source.read(row["file"], row["offset"])) for row in batch.to_pylist()]
    assert found == [("one", PICTURES[0]), ("two", PICTURES[0]), ("", PICTURES[1]), ("three", PICTURES[2])]
    with pytest.raises(DataError, match="no column with a usual name for pictures, it has scan"):
        hub_table(tmp_path / "b.parquet", PICTURES[:1], ["no"], image="scan", kind=pa.binary())
        read_all(tmp_path / "b.parquet", "folder")


def test_pictures_inside_count_before_those_that_are_named(tmp_path):
    hub_table(tmp_path / "a.parquet", url=["http://x.example/a.png"] * 10, file_name=["0.png"] * 10)
    (tmp_path / "0.png").write_bytes(picture(50, 50))
    for source in ("folder", "url_table"):
        assert [row["bytes"] for row in read_all(tmp_path, source)][:10] == PICTURES


def test_a_missing_picture_is_none_and_a_large_one_too_large(tmp_path):
    values = [None, {"bytes": None, "path": "0.png"}, {"bytes": b"", "path": None}, {"bytes": PICTURES[0]}]
    table = pa.table({"image": pa.array(values, HUB), "text": ["a"] * 4})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["bytes"] for row in read_all(tmp_path, "folder")] == [None, None, b"", PICTURES[0]]
    source = source_at(tmp_path, "source=folder", "max_record_bytes=10")
    with pytest.raises(TooLarge, match="more than 10 bytes"):
        source.read(str(tmp_path / "a.parquet"), 3)


def test_a_file_that_changed_is_no_other_picture(tmp_path):
    path = hub_table(tmp_path / "a.parquet")
    source = source_at(tmp_path, "source=folder")
    hub_table(path, PICTURES[:4], TEXTS[:4])
    with pytest.raises(DataError, match="did it change"):
        source.read(str(path), 9)


@pytest.mark.parametrize("source", ["folder", "url_table"])
def test_a_file_that_is_cut_off_is_named(tmp_path, source):
    path = hub_table(tmp_path / "b.parquet")
    hub_table(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"b\.parquet: unreadable"):
        read_all(tmp_path, source)


def test_damaged_pictures_are_named(tmp_path):
    path = hub_table(tmp_path / "a.parquet", group_rows=100)
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).dictionary_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.parquet: unreadable as parquet"):
        read_all(tmp_path, "folder")


def test_a_small_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    path = repeated_value(tmp_path / "a.parquet", "image", b"a" * (100 << 20), caption="words")
    source = source_at(path, "source=url_table")
    with pytest.raises(DataError, match=r"row group 0 need more than 512 MiB of memory; .* made to do harm"):
        source.read(str(path), 0)
