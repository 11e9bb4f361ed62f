"""What a table in a folder may name and what it is: nothing from outside, no other table's pictures, no cut texts."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from tests.support.reading import pairs, read_all, short, source_at
from tests.support.warc_records import picture

RED, BLUE = picture(3, 2), picture(4, 2, "blue", "JPEG")


def write(root: Path, **files: bytes | str) -> Path:
    """Files by their names, `__` for `/` and `_0` for the dot."""
    for name, data in files.items():
        path = root / name.replace("__", "/").replace("_0", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def test_a_link_leads_nowhere_outside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = write(tmp_path / "secret", key_0txt="a secret", people_0csv="file,caption\na.png,a secret\n")
    root = write(tmp_path / "A", a_0png=RED, b_0png=RED, a_0txt="a red square", real__c_0txt="of this folder")
    (root / "b.txt").symlink_to(secret / "key.txt")
    (root / "t.csv").symlink_to(secret / "people.csv")
    (root / "people.txt").symlink_to(secret / "people.csv")
    (root / "d.png").write_bytes(RED)
    (root / "d.txt").symlink_to(root / "real/c.txt")
    counts: Counter[str] = Counter()
    rows = read_all(root, "folder", counts)
    assert short(rows, "url", "text") == [("a.png", "a red square"), ("d.png", "of this folder")]
    assert counts["files_left_out"] == 4 and counts["pictures_without_text"] == 1
    assert "other files, left out: 4 (b.txt, people.txt, real/c.txt, t.csv)" in capsys.readouterr().err


def test_no_other_table_s_picture_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = "file,caption\n001.png,one\nsub/003.png,three\n002.png,two\n"
    root = write(tmp_path, train__001_0png=RED, train__x__sub__003_0png=RED, val__002_0png=BLUE, train__c_0csv=table)
    rows = read_all(root, "folder")
    assert short(rows, "url", "problem") == [
        ("train/001.png", None), ("train/x/sub/003.png", None), ("002.png", "no such file"),
    ]  # fmt: skip
    assert "elsewhere" not in capsys.readouterr().err
    root = write(tmp_path / "B", notes__c_0csv=table, notes__logo_0png=RED, a__001_0png=RED, b__sub__003_0png=BLUE)
    rows = read_all(root, "folder")
    assert short(rows, "url", "problem") == [
        ("a/001.png", None), ("b/sub/003.png", None), ("002.png", "no such file"),
    ]  # fmt: skip
    assert f"{root}/notes/c.csv: pictures found elsewhere in {root}, by the end of their path: 2" in (
        capsys.readouterr().err
    )


def test_a_comma_without_quotes_cuts_no_text(tmp_path: Path) -> None:
    root = write(tmp_path, a_0png=RED, c_0csv="file,caption\na.png,red\na.png,a man, a dog\na.png\n\na.png,fine\n")
    counts: Counter[str] = Counter()
    rows = read_all(root, "folder", counts)
    wrong = "another number of values than columns"
    assert short(rows, "text", "problem") == [("red", None), ("", wrong), ("", wrong), ("fine", None)]
    assert counts["rows_unreadable"] == 2
    rows = read_all(root / "c.csv", "url_table")
    assert [row["problem"] for row in rows] == [None, wrong, wrong, None]


def test_a_missing_picture_is_no_row_that_cannot_be_read(tmp_path: Path) -> None:
    root = write(tmp_path, a_0png=RED, c_0csv='file,caption\na.png,red\nnone.png,gone\n"open,x\n')
    counts: Counter[str] = Counter()
    rows = read_all(root, "folder", counts)
    assert [row["problem"] for row in rows][:2] == [None, "no such file"]
    assert counts["rows_unreadable"] == len(rows) - 2


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary(3), pa.binary_view(), pa.list_(pa.binary())])
def test_a_column_of_bytes_names_no_picture(tmp_path: Path, kind: pa.DataType) -> None:
    value = [b"abc"] if pa.types.is_list(kind) else b"abc"
    columns = {"image": pa.array([value], kind), "photo": ["a.png"], "caption": ["red"]}
    root = write(tmp_path, a_0png=RED)
    pq.write_table(pa.table(columns), root / "all.parquet")
    assert pairs(read_all(root, "folder")) == [("a.png", "red")]


def test_a_table_may_have_the_name_of_a_picture(tmp_path: Path) -> None:
    table = "file,caption\na.png,red\n"
    root = write(tmp_path, a_0png=RED, photos_0png=BLUE, photos_0csv=table, a_0csv="width,height\n1,2\n")
    counts: Counter[str] = Counter()
    assert pairs(read_all(root, "folder", counts)) == [("a.png", "red")]
    assert counts["files_left_out"] == 1


def test_a_colon_makes_no_address(tmp_path: Path) -> None:
    (tmp_path / "Screenshot:1.jpg").write_bytes(BLUE)
    write(tmp_path, c_0csv="file,caption\nScreenshot:1.jpg,blue\nhttp://x/a.png,an address\ndata:image/png;x,inline\n")
    address = "an address, no file: ingest.source url_table fetches it"
    assert short(read_all(tmp_path, "folder"), "problem") == [(None,), (address,), (address,)]


def test_a_folder_in_the_layout_files_has_each_pair_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write(tmp_path, s__a_0png=RED, s__a_0txt="red")
    columns = {"url": ["http://x/a.png"], "caption": ["red"], "key": ["a"], "status": ["success"]}
    pq.write_table(pa.table(columns), root / "00.parquet")
    assert pairs(read_all(root, "folder")) == [("s/a.png", "red")]
    assert "a table is left out: " in capsys.readouterr().err
    with pytest.raises(DataError, match=r"ingest\.source: url_table"):
        source_at(root / "00.parquet", "source=folder")
