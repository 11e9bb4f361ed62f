"""Tables as spreadsheets, data frames and strangers write them: one reader for ingest, catalogues, evaluation sets."""

import gzip
import json
import time
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from align.formats.table import CutOffError, NoColumnError, Table, find_column


@contextmanager
def table(folder, name, data, columns=()):
    """The table in a file with these bytes; in `.gz`, packed."""
    data = data if isinstance(data, bytes) else data.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with (folder / name).open("rb") as stream:
        yield Table(stream, str(folder / name), columns)


def read(folder, name, data, columns=()):
    """The names and the rows of a table; None stands for a row that cannot be read."""
    with table(folder, name, data, columns) as one:
        return one.names, list(one.rows(one.names))


SHOP = 'SKU;Title;Price;Picture\n1;Größe, "weiß";1,50;a.png\n2;"Café; offen";2,00;b.jpg\n'


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize(
    ("encoding", "separator", "said"),
    [
        ("utf-8", ",", ""),
        ("utf-8", ";", "separated by semicolons"),
        ("utf-8-sig", ";", "separated by semicolons"),
        ("windows-1252", ";", "separated by semicolons, encoded in windows-1252"),
        ("utf-8", "\t", "separated by tabs"),
        ("utf-16", "\t", "separated by tabs, encoded in utf-16"),
        ("utf-8", "|", "separated by vertical bars"),
    ],
)
def test_separator_and_encoding_are_found_in_the_bytes(tmp_path, encoding, separator, said, packed):
    text = SHOP if separator == ";" else SHOP.replace(",", ".").replace(";", separator)
    with table(tmp_path, f"shop.csv{packed}", text.encode(encoding)) as one:
        assert (one.layout, one.names) == (said, ["SKU", "Title", "Price", "Picture"])
        comma = "," if separator == ";" else "."
        rows = [("a.png", f'Größe{comma} "weiß"'), ("b.jpg", f"Café{separator} offen")]
        assert list(one.rows(["Picture", "Title"])) == list(one.rows(["Picture", "Title"])) == rows


def test_a_damaged_byte_and_a_comma_in_other_places_change_no_layout(tmp_path):
    text = "file,caption\n" + "a.png,a; b | c\n" * 3 + "a.png,größer\n" * 2
    _, rows = read(tmp_path, "t.csv", text.encode() + b"a.png,\xff\n")
    assert [text for _, text in rows] == [*["a; b | c"] * 3, *["größer"] * 2, "\ufffd"]


A = "http://x.example/a,1.jpg"


@pytest.mark.parametrize(("name", "data", "names", "rows"), [
    ("t.csv", "a.jpg,one\nb.jpg\nc.jpg,one, two\n", "picture text", [("a.jpg", "one"), ("b.jpg", None), None]),
    ("t.csv", "one,a.jpg\ntwo,b.jpg\n", "text picture", [("one", "a.jpg"), ("two", "b.jpg")]),
    ("t.csv", 'a.jpg,"one, two",//p,x\n', "picture text page column_4", [("a.jpg", "one, two", "//p", "x")]),
    ("t.csv", "a.jpg\n", "picture text", [("a.jpg", None)]),
    ("t.tsv", f'{A}\tshe said "hi\n{A}\tone\ttwo\n', "picture text", [(A, 'she said "hi'), (A, "one")]),
    ("t.tsv", '"url"\t"caption"\nx\ty\n', "url caption", [("x", "y")]),
    ("t.txt", f"\n{A}\n{A}\ta text\n", "picture text", [(A, None), (A, "a text")]),
    ("t.txt", f"# a list, of mine\n{A}\n", "picture text", [("# a list, of mine", None), (A, None)]),
    ("t.txt", f"caption\tURL\nhalf\nc\t{A}\n", "caption URL", [None, ("c", A)]),
    ("t.txt", 'image,caption\na.jpg,"one, two"\n', "image caption", [("a.jpg", "one, two")]),  # Flickr8k
    ("t.txt", "a.jpg,one\nb.jpg,two\n", "picture text", [("a.jpg", "one"), ("b.jpg", "two")]),
    ("t.txt", "what,who\nx,y\n", "what who", [("x", "y")]),
])  # fmt: skip
def test_what_has_no_header_has_its_columns_in_order(tmp_path, name, data, names, rows):
    known = [one.replace("_", " ") for one in names.split(" ")]
    assert read(tmp_path, name, data, ["Who"]) == (known, rows)


def test_a_line_that_cannot_be_split_is_no_row(tmp_path):
    names, rows = read(tmp_path, "a.csv", 'file,caption\na.jpg,"one, two"\n\nb.jpg,one, two\nc.jpg\n')
    assert (names, rows) == (["file", "caption"], [("a.jpg", "one, two"), None, None])
    with table(tmp_path, "a.csv", "file,caption\na.jpg,one\n") as one:
        assert list(one.rows(["caption", None, "file"])) == [("one", None, "a.jpg")]


def test_an_endless_first_line_loses_no_other(tmp_path, monkeypatch):
    for bound, size in {"_MAX_LINE_CHARACTERS": 50, "_MAX_VALUE_CHARACTERS": 40}.items():
        monkeypatch.setattr(f"align.formats.table_rows.{bound}", size)
    for name, separator in (("t.csv", ","), ("t.tsv", "\t")):
        lines = ["x" * 120, f"url{separator}caption", f"1{separator}one", "y" * 50, f"2{separator}two"]
        assert read(tmp_path, name, "\n".join(lines)) == (["url", "caption"], [None, ("1", "one"), None, ("2", "two")])
    assert read(tmp_path, "t.jsonl", f'{{"n": 1}}\n"{"x" * 120}"\n{{"n": 2}}\n') == (["n"], [(1,), None, (2,)])


def test_what_is_no_table_is_read_in_bounds(tmp_path):
    _, rows = read(tmp_path, "noise.csv", bytes(range(256)) * 10_000 + b'"' * 100_000)
    assert isinstance(rows, list)


TABLE = {"url": ["a", "b", "c"], "page": [None, "http://p/", None], "caption": ["one", ["two", "\u00e9"], 1234.5e2]}


def orients():
    """TABLE as `pandas.DataFrame.to_json` writes it, by `orient`."""
    rows = [dict(zip(TABLE, values, strict=True)) for values in zip(*TABLE.values(), strict=True)]
    columns = {name: {str(at): value for at, value in enumerate(values)} for name, values in TABLE.items()}
    data = [list(row.values()) for row in rows]
    return {
        "columns": json.dumps(columns),
        "columns, indented": json.dumps(columns, indent=2),
        "lists": json.dumps(TABLE),
        "split": json.dumps({"columns": list(TABLE), "index": [0, 1, 2], "data": data}),
        "records": json.dumps(rows),
        "values": json.dumps(data),
        "index": json.dumps({str(at): row for at, row in enumerate(rows)}),
    }


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("name", orients())
def test_tables_of_pandas(tmp_path, name, size, monkeypatch):
    monkeypatch.setattr("align.formats.table_rows._CHUNK_CHARACTERS", size)  # values are cut everywhere
    if name == "records":
        assert read(tmp_path, "t.json.gz", orients()[name]) == ([*TABLE], list(zip(*TABLE.values(), strict=True)))
        return
    reason = "without the names of their columns" if name == "values" else "neither an array of objects nor one"
    with pytest.raises(DataError, match=f"{reason}.*write it as JSON lines"):
        read(tmp_path, "t.json", orients()[name])


@pytest.mark.parametrize(("text", "says"), [
    ('[{"url": "a", "caption": "c"}', "array is cut off or damaged; fetch it again"),
    ('[{"url": "a", "caption" "c"}]', "array is cut off or damaged; fetch it again"),
    ('[{"url": "a", "caption": ' + "[" * 100_000, "nested too deeply; write it as JSON lines"),
    ('[{"url": "a", "caption": "c"}]\n[{"url": "b", "caption": "d"}]', "something follows .*; write it as JSON lines"),
    ('["http://x/1", "http://x/2"]', "without the names .*; write it as JSON lines"),
    ('{\n"url": "http://x/1",\n"caption": "c"}', "neither an array .*; write it as JSON lines"),
])  # fmt: skip
def test_json_that_is_no_table_is_refused_in_one_line(tmp_path, text, says):
    with pytest.raises(DataError, match=says) as raised:
        read(tmp_path, "t.json", text)
    assert "\n" not in str(raised.value)


def test_one_object_is_a_row_if_it_has_a_plain_value(tmp_path):
    row = {"url": A, "caption": ["one", "two"], "meta": {"size": [1, 2]}}
    assert read(tmp_path, "t.json", json.dumps(row)) == ([*row], [tuple(row.values())])


def test_columns_that_only_some_rows_have(tmp_path):
    text = '{"file": "a.jpg"}\n7\n{"file": "half\n{"file": "b.jpg", "text": ["x", "y"]}\n'
    assert read(tmp_path, "a.jsonl", text) == (["file", "text"], [("a.jpg", None), None, None, ("b.jpg", ["x", "y"])])
    text = "7\n" * 200 + "{}\n" + '{"file": "a.jpg"}\n'  # the first rows say nothing
    assert read(tmp_path, "a.jsonl", text) == ([], [None] * 200 + [(), ()])
    assert read(tmp_path, "a.jsonl", text.replace("{}\n", "", 1))[0] == ["file"]


def test_columns_of_parquet(tmp_path):
    columns = {"url": ["a"], "texts": pa.array([["x", "y"]]), "n": [1], "image": pa.array([b"x"]), "deep": [{"a": 1}]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    data = (tmp_path / "t.parquet").read_bytes()
    names, rows = read(tmp_path, "t.parquet", data)
    assert names == ["url", "texts", "n"]
    assert [(url, texts.to_pylist(), number) for url, texts, number in rows] == [("a", ["x", "y"], 1)]
    with table(tmp_path, "t.parquet", data) as one:
        assert one.column("texts", None, ["TEXTS"], "c", lists=True) == "texts"
        assert one.column("pictures", None, ["image", "url"], "c") == "url"  # bytes name no picture
        for name, kind in {"texts": "list", "image": "binary", "deep": "struct"}.items():
            with pytest.raises(NoColumnError, match=rf"column '{name}' is {kind}.*, expected text; set another in c$"):
                one.column("pictures", name.upper(), [], "c")
        with pytest.raises(NoColumnError, match=r"no column 'x', it has url, texts, n, image, deep; set c to one of"):
            one.column("pictures", "x", ["url"], "c")


@pytest.mark.parametrize(("name", "data", "kind", "message"), [
    ("a.csv", b"file,file\n", NoColumnError, "two columns have the name 'file'"),
    ("a.csv", b"x,y\n", NoColumnError, "no column with a usual name for files, it has x, y; set c to one of these"),
    ("a.tsv.gz", gzip.compress(b"file\tcaption\n" * 1000)[:40], CutOffError, "cut off"),
    ("a.jsonl.gz", gzip.compress(b'{"file": 1}\n' * 1000)[:40], CutOffError, "cut off"),
    ("a.csv.gz", gzip.compress(b"")[:10] + b"\xff" * 30, DataError, "unreadable"),
    ("a.csv.gz", b"not gzipped", DataError, "unreadable"),
    ("a.parquet", b"PAR1 and no more PAR1", DataError, r"a\.parquet: unreadable"),
    ("a.json", b'[{"file": ', DataError, "cut off or damaged"),
    ("a.xlsx", b"", DataError, "no table; its name ends in one of .csv, .tsv"),
    ("a.parquet.gz", b"", DataError, "no table"),
])  # fmt: skip
def test_what_is_no_table_says_so(tmp_path, name, data, kind, message):
    (tmp_path / name).write_bytes(data)
    with (tmp_path / name).open("rb") as stream, pytest.raises(kind, match=message):
        one = Table(stream, name)
        list(one.rows([one.column("files", None, ["file"], "c")]))


def test_rows_before_the_end_of_a_file_that_is_cut_off_are_read(tmp_path):
    packed = gzip.compress(b"".join(b'{"file": "%d.jpg"}\n' % number for number in range(20_000)))
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    found = []
    with (tmp_path / "a.jsonl.gz").open("rb") as stream, pytest.raises(CutOffError):
        for row in Table(stream, "a.jsonl.gz").rows(["file"]):
            found.append(row)
    assert found == [(f"{number}.jpg",) for number in range(len(found))] and len(found) > 1000


def test_the_work_grows_with_the_columns_and_not_with_their_square(tmp_path):
    start = time.process_time()
    names, _ = read(tmp_path, "a.csv", ",".join(f"column {number}" for number in range(20_000)))
    assert len(names) == 20_000
    assert time.process_time() - start < 2


def test_names_are_found_in_any_case_and_in_order():
    assert find_column(("captions", "caption"), ["x", "Caption", "CAPTIONS"]) == "CAPTIONS"
    assert find_column(("url",), ["Url", "URL", "url"]) == "url"
    assert find_column(("url", "x"), ["Url", "URL", "X"]) == "X"  # of two that are equally near, none
    assert find_column(("captions",), ["x"]) is None
