"""Tables of pictures that people write by hand, and files that are none."""

import gzip
import json
import time
from pathlib import Path

import pytest

from align.errors import DataError
from align.formats.picture_table import PictureTable, usual_column


def test_a_comma_in_a_text_without_quotes_is_a_row_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('file,caption\na.jpg,"one, two"\nb.jpg,one, two\nc.jpg\n')
    table = PictureTable(tmp_path / "a.csv")
    assert table.names == ["file", "caption"]
    assert list(table.rows(["caption", None, "file"])) == [("one, two", None, "a.jpg"), None, None]


def test_gzipped_tables_and_those_of_pandas(tmp_path: Path) -> None:
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbffile\tcaption\na.jpg\tone\n"))
    (tmp_path / "a.json").write_text(json.dumps({"file": {"0": "a.jpg"}, "caption": {"0": "one"}}))
    for name in ("a.tsv.gz", "a.json"):
        table = PictureTable(tmp_path / name)
        assert table.names == ["file", "caption"]
        assert list(table.rows(["file", "caption"])) == [("a.jpg", "one")]


def test_columns_that_only_some_rows_have(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"file": "a.jpg"}\n7\n{"file": "b.jpg", "text": ["x", "y"]}\n')
    table = PictureTable(tmp_path / "a.jsonl")
    assert table.names == ["file", "text"]
    assert list(table.rows(table.names)) == [("a.jpg", None), None, ("b.jpg", ["x", "y"])]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"file,file\n", "two columns have the name 'file'"),
        ("a.csv.gz", gzip.compress(b"file,caption\n" * 1000)[:40], "unreadable"),
        ("a.csv.gz", gzip.compress(b"")[:10] + b"\xff" * 30, "unreadable"),
        ("a.csv.gz", b"not gzipped", "unreadable"),
        ("a.parquet", b"PAR1 and no more PAR1", "unreadable"),
        ("a.json", b'[{"file": ', "cut off or damaged"),
        ("a.xlsx", b"", "no table; its name ends in one of .csv, .tsv"),
    ],
)
def test_what_is_no_table_says_so(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(PictureTable(tmp_path / name).rows(["file"]))


def test_the_work_grows_with_the_columns_and_not_with_their_square(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(f"column {number}" for number in range(20_000)))
    start = time.process_time()
    assert len(PictureTable(tmp_path / "a.csv").names) == 20_000
    assert time.process_time() - start < 2


def test_usual_names_are_found_in_any_case_and_in_order() -> None:
    assert usual_column(("captions", "caption"), ["x", "Caption", "CAPTIONS"]) == "CAPTIONS"
    assert usual_column(("captions",), ["x"]) is None
