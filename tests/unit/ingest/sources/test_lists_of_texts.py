"""Lists of texts, and other values where a text is expected, in tables of addresses."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from align.pairs.text import MAX_CHARACTERS
from tests.support.bombs import SCAN_TABLE, with_little_memory
from tests.support.reading import pairs, table_rows

A, B = "http://x.example/a.jpg", "https://y.example/b.jpg"


LISTS: list[Any] = [["one", "two"], [None, "three", 4], [], None, "a text"]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_a_list_of_texts_is_a_pair_for_each(tmp_path: Path, suffix: str) -> None:
    path, lists = tmp_path / f"t.{suffix}", LISTS
    if suffix == "parquet":
        lists = [["one", "two"], [None, "three", "4"], [], None, ["a text"]]
        pq.write_table(pa.table({"url": [A] * 5, "caption": pa.array(lists, pa.list_(pa.string()))}), path)
    else:
        rows = [{"url": A, "caption": value} for value in lists]
        path.write_text(json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    counts: Counter[str] = Counter()
    read_rows = table_rows(path, counts=counts)
    assert [row["text"] for row in read_rows] == ["one", "two", "three", "4", "", "", "a text"]
    assert {(row["url"], row["problem"]) for row in read_rows} == {(A, None)}
    assert (counts["rows"], counts["rows_unreadable"]) == (7, 0)


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.string(), 2),
        pa.list_view(pa.string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ],
    ids=str,
)
def test_every_kind_of_list_in_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    path, long = tmp_path / "t.parquet", "x" * 20_000
    values = pa.array([["one", "two"], ["three", long], [None, "five"]], kind)
    pq.write_table(pa.table({"url": [A, B, A], "caption": values}), path)
    assert pairs(table_rows(path)) == [
        (A, "one"), (A, "two"), (B, "three"), (B, long[:MAX_CHARACTERS]), (A, "five"),
    ]  # fmt: skip
    for nested in ([[["a"]]], [[{"raw": "a"}]], [{"raw": "a"}], [[b"a"]]):
        pq.write_table(pa.table({"url": [A], "caption": nested}), path)
        with pytest.raises(DataError, match="column 'caption' is "):
            table_rows(path)
    pq.write_table(pa.table({"url": [[A]], "caption": ["a"]}), path)
    with pytest.raises(DataError, match="column 'url' is list"):
        table_rows(path)


def test_objects_and_nested_lists_are_rows_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows: list[dict[str, Any]] = [
        {"url": A, "caption": {"en": "a"}, "page": None},
        {"url": A, "caption": ["a", ["b"]], "page": None},
        {"url": A, "caption": [{"raw": "a"}], "page": None},
        {"url": {"0": A}, "caption": "a", "page": None},
        {"url": [A], "caption": "a", "page": None},
        {"url": A, "caption": "a", "page": {"url": "http://p/"}},
        {"url": B, "caption": "fine", "page": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts: Counter[str] = Counter()
    *unreadable, last = table_rows(path, "page_url=page", counts=counts)
    assert last["text"] == "fine"
    assert {(row["text"], row["page_url"], row["problem"]) for row in unreadable} == {
        ("", None, "an object or a list where a text is expected")
    }
    assert (counts["rows"], counts["rows_unreadable"]) == (7, 6)


def test_a_row_with_very_many_texts_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    long = f"http://x/{'y' * 7000}"
    rows = [
        {"url": A, "caption": [""] * 1_000_000},
        {"url": long, "caption": ["a"] * 9_999},
        {"url": A, "caption": "b"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read_rows = table_rows(path)
    assert [row["problem"] for row in read_rows] == [
        "too large: more than 10,000 texts of one picture",
        "too large: a row whose 9,999 texts repeat a long address",
        None,
    ]
    path = tmp_path / "t.parquet"
    offsets = pa.array([0, 5_000_000, 5_000_001], pa.int32())
    texts = pa.ListArray.from_arrays(offsets, pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(5_000_001, np.int32)), pa.array(["abc"])
    ))  # fmt: skip
    pq.write_table(pa.table({"url": [A, B], "caption": texts}), path, store_schema=False, compression="zstd")
    assert path.stat().st_size < 100_000
    assert with_little_memory(SCAN_TABLE, path, mib=1300) == "2 0 3"
