"""Tables of addresses: formats, columns, quoting, and lines that nobody can read."""

import gzip
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.errors import DataError
from align.pairs.text import MAX_CHARACTERS
from tests.support import ROOT
from tests.support.bombs import SCAN_TABLE, one_long_line, parquet_bomb, with_little_memory
from tests.support.reading import pairs, source_at, table_rows

A, B = "http://x.example/a.jpg", "https://y.example/b.jpg"
PAIRS = [(A, "a cat, sitting"), (B, 'she said "hi')]


def csv_text(separator=","):
    return f'url{separator}caption\n{A}{separator}"a cat, sitting"\n{B}{separator}"she said ""hi"\n'


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", csv_text()),
        ("a.csv", "\ufeff" + csv_text().replace("\n", "\r\n")),
        ("a.csv", csv_text().partition("\n")[2]),  # no header
        ("a.tsv", f'caption\turl\na cat, sitting\t{A}\nshe said "hi\t{B}\n'),
        ("a.tsv", f'a cat, sitting\t{A}\nshe said "hi\t{B}'),  # Conceptual Captions
        ("a.tsv", f'{A}\ta cat, sitting\r\n{B}\tshe said "hi\r\n'),  # CC12M
        ("a.txt", f'{A}\ta cat, sitting\n\n{B}\tshe said "hi\n'),
        ("a.jsonl", "".join(json.dumps({"id": 1, "url": url, "caption": text}) + "\n" for url, text in PAIRS)),
        ("a.json", json.dumps([{"url": url, "caption": text} for url, text in PAIRS], indent=2)),
        ("a.json", "".join(json.dumps({"caption": text, "url": url}) + "\n" for url, text in PAIRS)),
    ],
)
def test_every_text_format(tmp_path, name, text, packed):
    path = tmp_path / (name + (".gz" if packed else ""))
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    rows = table_rows(path)
    assert pairs(rows) == PAIRS
    assert {(row["text_source"], row["page_url"], row["problem"], row["file"]) for row in rows} == {
        ("caption", None, None, None)
    }


LICENCE = "Apache License\nVersion 2.0\nhttp://www.apache.org/licenses/\n\nTERMS AND CONDITIONS\n" + "1. Terms.\n" * 30


def test_a_folder_takes_lists_of_addresses_but_no_other_texts(tmp_path, capsys):
    (tmp_path / "more").mkdir()
    (tmp_path / "a.csv").write_text(f"url,caption\n{A},a cat\n")
    (tmp_path / "b.txt").write_text(f"\n{A}\n{B}\tb\nno address\n")
    (tmp_path / "c.txt").write_text(f"caption\tURL\nhalf\nc\t{A}\n")  # its columns are named
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "LICENSE.txt").write_text(LICENCE)
    (tmp_path / "robots.txt").write_text("User-agent: *\nDisallow: /\nSitemap: http://x.example/sitemap.xml\n")
    (tmp_path / "more/README.txt.gz").write_bytes(gzip.compress(LICENCE.encode()))
    names = [file.rpartition("/")[2] for file in source_at(tmp_path, "source=url_table").files]
    assert names == ["a.csv", "b.txt", "c.txt", "d.txt"]
    said = capsys.readouterr().err
    for name in ("LICENSE.txt", "robots.txt", "more/README.txt.gz"):
        assert f"ingest: {tmp_path / name}: left out: its first lines are not addresses" in said
    assert said.count("\n") == 3
    assert pairs(table_rows(tmp_path))[:1] == [(A, "a cat")]
    assert len(table_rows(tmp_path / "LICENSE.txt")) == 34  # named: read all the same
    of_a_pattern = source_at(tmp_path / "*.txt", "source=url_table").files
    assert [file.rpartition("/")[2] for file in of_a_pattern] == ["b.txt", "c.txt", "d.txt"]
    with pytest.raises(DataError, match="no table exists there"):
        source_at(tmp_path / "more", "source=url_table")


FORMATS = ("t.csv", "t.csv.gz", "t.tsv", "t.jsonl", "t.json")


def words_without_texts(tmp_path, name, num_workers):
    """Writes a table that has no texts; the words of `align` that read it."""
    separator = "\t" if ".tsv" in name else ","
    text = f"url{separator}words\n" + f"{A}{separator}a cat\n" * 500
    if ".json" in name:
        text = json.dumps([{"url": A, "words": "t"}] * 500) if name == "t.json" else f'{{"url": "{A}"}}\n' * 500
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    places = {"archive": name, "raw": "raw", "reports": "reports", "runtime": "runtime"}
    sets = [f"--set=paths.{key}={tmp_path / place}" for key, place in places.items()]
    return ["ingest", "--set=ingest.source=url_table", *sets, f"--set=engine.num_workers={num_workers}"]


NO_TEXTS = "no column with a usual name for texts, it has url"


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_column_is_one_line(tmp_path, name, capfd):
    assert main(words_without_texts(tmp_path, name, 1)) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"align: error: {tmp_path / name}: {NO_TEXTS}") and said.count("\n") == 1


def test_a_missing_column_is_one_line_and_nothing_else(tmp_path):
    command = [sys.executable, "-X", "dev", "-m", "align.cli", *words_without_texts(tmp_path, "t.csv.gz", 2)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith(f"align: error: {tmp_path / 't.csv.gz'}: {NO_TEXTS}")
    assert done.stderr.count("\n") == 1


def test_columns_of_published_tables(tmp_path, capsys):
    path = tmp_path / "laion.parquet"
    columns = {"SAMPLE_ID": [1, 2], "URL": [A, B], "TEXT": ["t", None], "WIDTH": [3, 4], "page": ["http://p/", None]}
    pq.write_table(pa.table(columns), path)
    rows = table_rows(path, "url=url", "text=text", "page_url=page")  # in any case
    assert pairs(rows) == [(A, "t"), (B, "")]
    assert [(row["text_source"], row["page_url"]) for row in rows] == [("text", "http://p/"), (None, None)]
    with pytest.raises(DataError, match=r"no column 'caption', it has SAMPLE_ID, URL, TEXT.*ingest\.columns\.text"):
        table_rows(path, "text=caption")
    assert pairs(table_rows(path)) == [(A, "t"), (B, "")]  # by their usual names
    assert "pictures from column 'URL', texts from column 'TEXT'; for others set" in capsys.readouterr().err
    pq.write_table(pa.table({"url": [A], "URL": [B], "caption": ["c"]}), path)
    assert pairs(table_rows(path, "url=URL")) == [(B, "c")]
    with pytest.raises(DataError, match="no column 'Url'"):
        table_rows(path, "url=Url")  # two are equally near
    pq.write_table(
        pa.table({"url": pa.array([A]).dictionary_encode(), "caption": pa.array(["c"], pa.large_string())}), path
    )
    assert pairs(table_rows(path)) == [(A, "c")]


def test_lines_that_nobody_can_read_are_counted(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"url,caption\n{A}\n,no address\nftp://x/y.png,ftp\nhttp://[,bad\n relative.png ,r\n{B},fine,5\n")
    counts = Counter()
    assert [(row["url"], row["text"], row["problem"]) for row in table_rows(path, counts=counts)] == [
        ("", "no address", "no address"),
        ("ftp://x/y.png", "ftp", "not http or https"),
        ("http://[", "bad", "invalid URL"),
        ("relative.png", "r", "no such file"),
    ]
    assert counts == {"rows": 4, "rows_unreadable": 2}
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"url": "{A}", "caption": "c"}}\n{{"url": "half\n[1]\n{{"other": 1}}\n{{"url": "{B}"}}\n')
    counts.clear()
    rows = table_rows(path, counts=counts)
    assert [(row["url"], row["problem"]) for row in rows] == [(A, None), ("", "no address"), (B, None)]
    assert counts == {"rows": 3, "rows_unreadable": 2}
    path.write_text('{"url": "http://x/\\ud83d", "caption": "half \\ud83d"}\n')
    assert [(row["text"], row["problem"]) for row in table_rows(path)] == [("half ?", "invalid URL")]


def test_an_unbalanced_quote_does_not_take_the_table_with_it(tmp_path):
    path = tmp_path / "a.csv"
    lines = "".join(f"http://x/{number},{'text ' * 20}{number}\n" for number in range(60_000))
    path.write_text(f'url,caption\n{A},"open\n{lines}')
    counts = Counter()
    rows = table_rows(path, counts=counts)
    assert counts["rows_unreadable"] == 1
    assert len(rows) > 20_000
    assert rows[-1]["url"] == "http://x/59999"


def test_damaged_and_empty_files(tmp_path):
    packed = gzip.compress("".join(f"{A}{number}\ttext\n" for number in range(20_000)).encode())
    (tmp_path / "b.tsv.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"b\.tsv\.gz: cut off"):
        table_rows(tmp_path / "b.tsv.gz")
    counts = Counter()
    rows = table_rows(tmp_path / "b.tsv.gz", counts=counts)
    assert 1000 < len(rows) < 20_000
    assert counts["damaged_files"] == 1
    (tmp_path / "b.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="unreadable"):
        table_rows(tmp_path / "b.tsv.gz")
    (tmp_path / "empty").mkdir()
    for name in ("d.csv", "d.txt", "d.jsonl"):
        (tmp_path / "empty" / name).write_bytes(b"")
        with pytest.raises(DataError, match="the table is empty"):
            table_rows(tmp_path / "empty" / name)
    (tmp_path / "empty/e.csv").write_text(f"url,caption\n{A}1,text\n")
    assert len(table_rows(tmp_path / "empty")) == 1
    with pytest.raises(DataError):
        source_at(tmp_path / "nothing.parquet", "source=url_table")


def test_a_long_parquet_table_takes_little_memory(tmp_path):
    path, random = tmp_path / "a.parquet", np.random.default_rng(0)
    with pq.ParquetWriter(
        path, pa.schema([("url", pa.string()), ("caption", pa.string())]), compression="none"
    ) as writer:
        for _ in range(80):
            rows = [random.bytes(100).hex() for _ in range(500)]
            writer.write_table(pa.table({"url": [f"{A}{row}" for row in rows], "caption": rows}, writer.schema))
    source = source_at(path, "source=url_table")
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for batch in source.scan(source.files[0], Counter()):
        most = max(most, pa.total_allocated_bytes() - before)
        count += len(batch)
    assert count == 40_000
    assert most < path.stat().st_size / 4


def test_a_small_parquet_file_takes_little_memory(tmp_path):
    path = parquet_bomb(tmp_path / "bomb.parquet", 1000)
    assert with_little_memory(SCAN_TABLE, path, mib=500) == f"1000 {MAX_CHARACTERS}"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_an_endless_line_is_skipped(tmp_path, suffix):
    rows = [{"url": f"http://x/{word}", "caption": word} for word in ("one", "two")]
    separator = "\t" if suffix == "tsv" else ","
    lines = [json.dumps(row) if suffix == "jsonl" else separator.join(row.values()) for row in rows]
    header = "" if suffix == "jsonl" else separator.join(rows[0]) + "\n"
    path = tmp_path / f"t.{suffix}.gz"
    one_long_line(path, f"{header}{lines[0]}\n".encode(), 90, f"\n{lines[1]}\n".encode())
    assert with_little_memory(SCAN_TABLE, path, mib=70) == "2 3"


def test_long_texts_and_addresses_are_cut(tmp_path):
    path = tmp_path / "t.jsonl"
    long = "x" * 10_000
    lines = [
        {"url": f"http://x/{long}", "caption": "the address is too long", "page": None},
        {"url": "http://x/1", "caption": f"three words {long}"},
        {"url": "http://x/2", "caption": "a page's address is too long", "page": f"http://x/{long}"},
        {"url": "http://x/" + "é" * 2000, "caption": "too long once it is encoded"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cut, text, page, encoded = table_rows(path, "page_url=page")
    assert (len(cut["url"]), cut["problem"]) == (2048, "URL too long")
    assert (len(text["text"]), text["problem"]) == (MAX_CHARACTERS, None)
    assert (len(page["page_url"]), page["problem"]) == (MAX_CHARACTERS, None)
    assert encoded["problem"] == "URL too long"
    nested = tmp_path / "nested.jsonl"
    nested.write_text('{"url": "http://x/1", "caption": "one"}\n{"url": ' + "[" * 100_000 + "\n")
    assert [row["text"] for row in table_rows(nested)] == ["one"]


def test_pictures_in_the_folder_of_the_table_and_none_outside(tmp_path):
    folder = tmp_path / "own"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a b.png").write_bytes(b"red")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    rows = [
        "sub/a b.png", f"file://{folder}/sub/a%20b.png", str(folder / "sub/a b.png"), A,
        "../secret.png", f"file://{tmp_path}/secret.png", f"{tmp_path}/secret.png", "link.png", "file://host/sub/a.png",
        "file:///etc/passwd", "sub/../../secret.png", "none.png", "file:secret.png",
    ]  # fmt: skip
    (folder / "t.csv").write_text("url,caption\n" + "".join(f"{row},text {at}\n" for at, row in enumerate(rows)))
    opened = source_at(folder / "t.csv", "source=url_table")
    found = table_rows(folder / "t.csv")
    red = f"{folder}/sub/a b.png"
    assert [(row["url"], row["file"]) for row in found[:4]] == [("sub/a b.png", red)] * 3 + [(A, None)]
    outside = "outside the folder"
    assert [row["problem"] for row in found] == [None] * 4 + [outside] * 7 + ["no such file", outside]
    assert {row["file"] for row in found[4:]} == {None}
    assert opened.read(red, None) == b"red"
    for file in ("link.png", "../secret.png"):
        assert opened.read(f"{folder}/{file}", None) is None
    (folder / "plain.tsv").write_text("sub/a b.png\ta cat\n")  # no header
    assert [(row["text"], row["file"]) for row in table_rows(folder / "plain.tsv")] == [("a cat", red)]


LISTS = [["one", "two"], [None, "three", 4], [], None, "a text"]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_a_list_of_texts_is_a_pair_for_each(tmp_path, suffix):
    path, lists = tmp_path / f"t.{suffix}", LISTS
    if suffix == "parquet":
        lists = [["one", "two"], [None, "three", "4"], [], None, ["a text"]]
        pq.write_table(pa.table({"url": [A] * 5, "caption": pa.array(lists, pa.list_(pa.string()))}), path)
    else:
        rows = [{"url": A, "caption": value} for value in lists]
        path.write_text(json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    counts = Counter()
    read_rows = table_rows(path, counts=counts)
    assert [row["text"] for row in read_rows] == ["one", "two", "three", "4", "", "", "a text"]
    assert {(row["url"], row["problem"]) for row in read_rows} == {(A, None)}
    assert (counts["rows"], counts["rows_unreadable"]) == (7, 0)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string(), 2), pa.list_view(pa.string()),
     pa.list_(pa.dictionary(pa.int32(), pa.string()))],
    ids=str,
)  # fmt: skip
def test_every_kind_of_list_in_parquet(tmp_path, kind):
    path, long = tmp_path / "t.parquet", "x" * 20_000
    values = pa.array([["one", "two"], ["three", long], [None, "five"]], kind)
    pq.write_table(pa.table({"url": [A, B, A], "caption": values}), path)
    assert pairs(table_rows(path)) == [(A, "one"), (A, "two"), (B, "three"), (B, long[:MAX_CHARACTERS]), (A, "five")]
    for nested in ([[["a"]]], [[{"raw": "a"}]], [{"raw": "a"}], [[b"a"]]):
        pq.write_table(pa.table({"url": [A], "caption": nested}), path)
        with pytest.raises(DataError, match="column 'caption' is "):
            table_rows(path)
    pq.write_table(pa.table({"url": [[A]], "caption": ["a"]}), path)
    with pytest.raises(DataError, match="column 'url' is list"):
        table_rows(path)


def test_objects_and_nested_lists_are_rows_that_cannot_be_read(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [
        {"url": A, "caption": {"en": "a"}, "page": None},
        {"url": A, "caption": ["a", ["b"]], "page": None},
        {"url": A, "caption": [{"raw": "a"}], "page": None},
        {"url": {"0": A}, "caption": "a", "page": None},
        {"url": [A], "caption": "a", "page": None},
        {"url": A, "caption": "a", "page": {"url": "http://p/"}},
        {"url": B, "caption": "fine", "page": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = Counter()
    *unreadable, last = table_rows(path, "page_url=page", counts=counts)
    assert last["text"] == "fine"
    assert {(row["text"], row["page_url"], row["problem"]) for row in unreadable} == {
        ("", None, "an object or a list where a text is expected")
    }
    assert (counts["rows"], counts["rows_unreadable"]) == (7, 6)


def test_a_row_with_very_many_texts_is_not_read(tmp_path):
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
