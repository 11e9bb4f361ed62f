"""Folders of pictures with a table of file names, or a text beside each picture."""

import gzip
import json
import os
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import ConfigError, DataError
from align.ingest.limits import TooLarge
from align.ingest.sources import require_seen_by_dvc
from tests.support.reading import pairs, read_all, rows_of, short, source_at
from tests.support.warc_records import picture

RED, BLUE = picture(3, 2), picture(4, 2, "blue", "JPEG")
PAIRS = [("images/a.png", "a red square"), ("images/sub/b.jpg", "blue"), ("images/sub/b.jpg", "not red")]


def photos(root):
    (root / "images/sub").mkdir(parents=True)
    (root / "images/a.png").write_bytes(RED)
    (root / "images/sub/b.jpg").write_bytes(BLUE)
    return root


def table(root, text, name="captions.csv"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root / name


LINES = "".join(f"{json.dumps({'file': file, 'caption': text})}\n" for file, text in PAIRS)
LISTS = (
    '{"credit": 1, "file": "images/a.png", "texts": ["a red square"], "caption": "long"}\n'
    '{"file": "images/sub/b.jpg", "texts": ["blue", "not red"], "caption": "long"}\n'
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.csv", "id,Text,File_Name\n" + "".join(f"1,{text},{file}\n" for file, text in PAIRS)),
        ("captions.csv", "".join(f"{file},{text}\n" for file, text in PAIRS)),  # no header
        ("x.tsv", "".join(f"{text}\t{file}\n" for file, text in PAIRS)),
        ("captions.txt", "image,caption\n" + "".join(f"{file},{text}\n" for file, text in PAIRS)),  # Flickr8k
        ("captions.jsonl", LINES),
        ("captions.jsonl", LISTS),
        ("images/metadata.csv", "file_name,text\na.png,a red square\nsub/b.jpg,blue\nsub/b,not red\n"),
        ("notes/c.csv", "path,alt\n../images/a.png,a red square\n../images/sub/b.jpg,blue\n../images/sub/b,not red\n"),
        ("captions.csv", "file,caption\na.png,a red square\nsub/b.jpg,blue\nsub/b,not red\n"),  # in a sub-folder
    ],
)
def test_every_kind_of_table_needs_no_setting(tmp_path, name, text):
    root = photos(tmp_path / "photos")
    table(root, text, name)
    counts = Counter()
    rows = read_all(root, "folder", counts)
    assert pairs(rows) == PAIRS
    assert short(rows, "bytes", "problem", "page_url") == [(RED, None, None), (BLUE, None, None), (BLUE, None, None)]
    assert +counts == {"rows": 3}


def test_how_a_table_is_written_is_said(tmp_path, capsys):
    text = 'Title;Picture\nGröße, "weiß";images/a.png\n'
    file = photos(tmp_path) / "shop.csv.gz"
    file.write_bytes(gzip.compress(text.encode("windows-1252")))
    assert pairs(read_all(tmp_path, "folder")) == [("images/a.png", 'Größe, "weiß"')]
    assert f"ingest: {file}: separated by semicolons, encoded in windows-1252\n" in capsys.readouterr().err


def test_what_is_guessed_is_said_and_can_be_set(tmp_path, capsys):
    root = photos(tmp_path)
    table(root, LISTS, "captions.jsonl")
    rows = rows_of(source_at(root, "source=folder"))[0]
    assert {row["text_source"] for row in rows} == {"texts"}
    assert capsys.readouterr().err == (
        f"ingest: {root}/captions.jsonl: pictures from column 'file', texts from column 'texts' (not from 'caption'); "
        "for others set ingest.columns.url and ingest.columns.text\n"
    )
    source = source_at(root, "source=folder", "columns.url=file", "columns.text=caption")
    assert [row["text"] for row in rows_of(source)[0]] == ["long", "long"]
    assert capsys.readouterr().err == ""
    table(root, "bild,text\nimages/a.png,x\n")
    (root / "captions.jsonl").unlink()
    with pytest.raises(DataError) as raised:
        source_at(root, "source=folder")
    assert str(raised.value) == (
        f"{root}/captions.csv: no column with a usual name for pictures, it has bild, text; set ingest.columns.url to "
        "one of these"
    )
    assert pairs(rows_of(source_at(root, "source=folder", "columns.url=bild"))[0]) == [("images/a.png", "x")]


def test_a_row_without_its_picture_says_why(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "images/a.jpg").write_bytes(BLUE)
    (tmp_path / "secret.png").write_bytes(RED)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.png").write_bytes(RED)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "Screenshot:1.png").write_bytes(RED)
    outside, missing = "outside the folder", "no such file"
    address = "an address, no file: ingest.source url_table fetches it"
    problems = {
        "none.png": missing, "images": missing, "a": "ambiguous: 2 files of this name", "": "no file name",
        "../secret.png": outside, "images/../../secret.png": outside, f"{tmp_path}/secret.png": outside,
        "link.png": outside, "linked/x.png": outside, "file:///etc/passwd": outside, "/etc/passwd": outside,
        "http://x.example/a.png": address, "data:image/png;x,y": address, "Screenshot:1.png": None, "x" * 300: missing,
        "y" * 5000: "no name that a file can have", "z\0.png": "no name that a file can have",
        str(root / "images/a.png"): None, f"file://{root}/images/a.png": None, "./images//a.png": None,
    }  # fmt: skip
    table(
        root, "".join(f"{json.dumps({'file': name, 'text': str(at)})}\n" for at, name in enumerate(problems)), "t.jsonl"
    )
    counts = Counter()
    rows = read_all(root, "folder", counts)
    assert dict(zip(problems, [row["problem"] for row in rows], strict=True)) == problems
    found = {(row["url"], row["bytes"]) for row in rows if row["problem"] is None}
    assert found == {("images/a.png", RED), ("Screenshot:1.png", RED)}
    assert counts["rows_unreadable"] == 0  # each can be read, and says what is missing
    opened = source_at(root, "source=folder")
    assert [opened.read(f"{root}/{name}", None) for name in ("link.png", "../secret.png", "none", "images")] == [
        None
    ] * 4


def test_what_has_no_text_and_what_is_no_picture_is_counted(tmp_path, capsys):
    root = photos(tmp_path)
    table(root, "file,caption\nimages/a.png,red\n")
    table(root, "width,height\n1,2\n", "sizes.csv")
    table(root, '{"name": "x", "list": [1', "package.json")
    for name in ("LICENSE", "README.md", "Thumbs.db", ".DS_Store", "images/._a.png", "__MACOSX/images/a.png", "n.txt"):
        table(root, "text", name)
    counts = Counter()
    assert pairs(read_all(root, "folder", counts)) == [("images/a.png", "red")]
    assert counts == {"rows": 1, "pictures_without_text": 1, "files_left_out": 9}
    said = capsys.readouterr().err
    assert f"left out: {root}/sizes.csv: no column with a usual name for pictures, it has width, height" in said
    assert "a table is left out" in said.partition("package.json")[0]
    assert "other files, left out: 7 (.DS_Store, LICENSE, README.md, Thumbs.db, " in said


def test_a_text_beside_each_picture(tmp_path):
    root = photos(tmp_path)
    table(root, "\ufeffa red square\r\n\r\n  red \n", "images/a.txt")
    (root / "images/sub/b.jpg.caption").write_bytes("blau \xff".encode("latin-1"))
    (root / "c.2019.png").write_bytes(RED)
    table(root, " \n", "c.2019.txt")
    table(root, '{"any": "thing"}', "images/a.json")  # of this picture, no table
    (root / "d.png").write_bytes(RED)
    table(root, "x\n" * 10_001, "d.txt")
    (root / "e.png").write_bytes(RED)
    table(root, "x" * (1 << 21), "e.txt")
    counts = Counter()
    rows = read_all(root, "folder", counts)
    assert short(rows, "url", "text", "text_source", "problem") == [
        ("c.2019.png", "", None, None),
        ("d.png", "", None, "too large: more than 10,000 texts of one picture"),
        ("e.png", "", None, "too large: a text above 1,048,576 bytes"),
        ("images/a.png", "a red square", "txt", None),
        ("images/a.png", "red", "txt", None),
        ("images/sub/b.jpg", "blau \ufffd", "caption", None),
    ]
    assert +counts == {"rows": 6, "rows_unreadable": 2, "files_left_out": 1}
    table(root, "file,caption\nimages/a.png,from the table\n")
    counts.clear()
    assert ("images/a.png", "from the table") in pairs(read_all(root, "folder", counts))
    assert counts["files_left_out"] == 2  # its own text, too


def test_folders_that_are_classes(tmp_path):
    for name in ("train/red_dress/0.png", "train/shirt/0.png", "top.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(RED)
    with pytest.raises(DataError) as raised:
        source_at(tmp_path, "source=folder")
    for words in ("3 pictures without a text: no table (.csv, ", "folders like train/red_dress are classes",
                  "`format: folder` of a suite", "set ingest.folder_text"):  # fmt: skip
        assert words in str(raised.value)
    source = source_at(tmp_path, "source=folder", "folder_text=a photo of a {}")
    counts = Counter()
    rows = rows_of(source, counts)[0]
    assert short(rows, "url", "text", "text_source") == [
        ("train/red_dress/0.png", "a photo of a red dress", "folder"),
        ("train/shirt/0.png", "a photo of a shirt", "folder"),
    ]
    assert counts == {"rows": 2, "pictures_without_text": 1, "files_left_out": 0}
    with pytest.raises(ConfigError, match=r"ingest\.folder_text"):
        source_at(tmp_path, "source=folder", "folder_text=a photo")


@pytest.mark.parametrize("images", [".", "images", "train"])
def test_a_table_alone(tmp_path, images, monkeypatch):
    (tmp_path / images).mkdir(exist_ok=True)
    (tmp_path / images / "a.png").write_bytes(RED)
    table(tmp_path, "file,caption\na.png,red\nb.png,none\n")
    table(tmp_path, "image,caption\na.png,red\nb.png,none\n", "flickr.txt")
    name = "a.png" if images == "." else f"{images}/a.png"
    monkeypatch.chdir(tmp_path)
    for location in (tmp_path / "captions.csv", "captions.csv", "./captions.csv", "*.csv", "flickr.txt"):
        rows = read_all(location, "folder")
        assert short(rows, "url", "problem", "bytes") == [(name, None, RED), ("b.png", "no such file", None)]
    if images != ".":
        (tmp_path / "val").mkdir()
        (tmp_path / "val/a.png").write_bytes(BLUE)
        assert read_all("captions.csv", "folder")[0]["problem"] == "ambiguous: 2 files of this name"


def test_what_is_no_source_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"no file exists there; check the path"):
        source_at(tmp_path, "source=folder")
    table(tmp_path, "x", "README.md")
    with pytest.raises(DataError, match="neither a picture nor a table"):
        source_at(tmp_path, "source=folder")
    with pytest.raises(DataError, match="a web server lists no files"):
        source_at("https://x.example/captions.csv", "source=folder")
    table(tmp_path, "", "a.csv")
    with pytest.raises(DataError, match=r"a\.csv: the table is empty$"):
        source_at(tmp_path, "source=folder")
    table(tmp_path, "a,b\n1,2\n", "a.csv")
    table(tmp_path, "c,d\n1,2\n", "b.csv")
    with pytest.raises(DataError, match=r"none of its 2 tables can be used.*a\.csv: no column .* has a, b"):
        source_at(tmp_path, "source=folder")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"file,caption\n" * 99)[:20])
    with pytest.raises(DataError, match=r"c\.csv\.gz: cut off"):
        read_all(tmp_path, "folder")


def test_a_picture_that_is_too_large_and_a_name_that_is_not_utf8(tmp_path):
    table(tmp_path, "file,caption\na.png,red\n")
    (tmp_path / "a.png").write_bytes(RED)
    opened = source_at(tmp_path, "source=folder", "max_record_bytes=20")
    with pytest.raises(TooLarge):
        opened.read(f"{tmp_path}/a.png", None)
    odd = os.fsdecode(b"\xff")
    (tmp_path / f"{odd}.png").write_bytes(RED)
    table(tmp_path, "odd", f"{odd}.txt")
    assert short(read_all(tmp_path, "folder"), "text", "problem") == [
        ("red", None), ("odd", "no name that a file can have"),
    ]  # fmt: skip


def write(root, **files):
    """Files by their names, `__` for `/` and `_0` for the dot."""
    for name, data in files.items():
        path = root / name.replace("__", "/").replace("_0", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def test_a_link_leads_nowhere_outside(tmp_path, capsys):
    secret = write(tmp_path / "secret", key_0txt="a secret", people_0csv="file,caption\na.png,a secret\n")
    root = write(tmp_path / "A", a_0png=RED, b_0png=RED, a_0txt="a red square", real__c_0txt="of this folder")
    (root / "b.txt").symlink_to(secret / "key.txt")
    (root / "t.csv").symlink_to(secret / "people.csv")
    (root / "people.txt").symlink_to(secret / "people.csv")
    (root / "d.png").write_bytes(RED)
    (root / "d.txt").symlink_to(root / "real/c.txt")
    counts = Counter()
    rows = read_all(root, "folder", counts)
    assert short(rows, "url", "text") == [("a.png", "a red square"), ("d.png", "of this folder")]
    assert counts["files_left_out"] == 4 and counts["pictures_without_text"] == 1
    assert "other files, left out: 4 (b.txt, people.txt, real/c.txt, t.csv)" in capsys.readouterr().err


def test_no_other_table_s_picture_is_taken(tmp_path):
    table = "file,caption\n001.png,one\nsub/003.png,three\n002.png,two\n004,four\n"
    root = write(tmp_path, train__001_0png=RED, train__images__sub__003_0png=RED, val__002_0png=BLUE,
                 images__004_0jpg=BLUE, train__c_0csv=table)  # fmt: skip
    rows = read_all(root, "folder")
    assert short(rows, "url", "problem") == [
        ("train/001.png", None), ("train/images/sub/003.png", None), ("002.png", "no such file"),
        ("images/004.jpg", None),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [pa.binary(3), pa.list_(pa.binary())])
def test_a_column_of_other_bytes_has_no_picture(tmp_path, kind):
    value = [b"abc"] if pa.types.is_list(kind) else b"abc"
    columns = {"image": pa.array([value], kind), "photo": ["a.png"], "caption": ["red"]}
    root = write(tmp_path, a_0png=RED)
    pq.write_table(pa.table(columns), root / "all.parquet")
    assert pairs(read_all(root, "folder")) == [("a.png", "red")]
    pq.write_table(pa.table({name: columns[name] for name in ("image", "caption")}), root / "all.parquet")
    with pytest.raises(DataError, match=r"column 'image' is .*binary.*, expected text"):
        read_all(root, "folder")


def test_a_table_may_have_the_name_of_a_picture(tmp_path):
    table = "file,caption\na.png,red\n"
    root = write(tmp_path, a_0png=RED, photos_0png=BLUE, photos_0csv=table, a_0csv="width,height\n1,2\n")
    counts = Counter()
    assert pairs(read_all(root, "folder", counts)) == [("a.png", "red")]
    assert counts["files_left_out"] == 1


def test_a_folder_in_the_layout_files_has_each_pair_once(tmp_path, capsys):
    root = write(tmp_path, s__a_0png=RED, s__a_0txt="red")
    columns = {"url": ["http://x/a.png"], "caption": ["red"], "key": ["a"], "status": ["success"]}
    pq.write_table(pa.table(columns), root / "00.parquet")
    assert pairs(read_all(root, "folder")) == [("s/a.png", "red")]
    assert "a table is left out: " in capsys.readouterr().err
    with pytest.raises(DataError, match=r"ingest\.source: url_table"):
        source_at(root / "00.parquet", "source=folder")


def tables_alone_photos(root):
    (root / "images").mkdir(parents=True)
    for name in ("a.png", "b.png", "unnamed.png"):
        (root / "images" / name).write_bytes(RED)
    (root / "captions.csv").write_text("file,caption\nimages/a.png,red\nb.png,also red\nnone.png,gone\n")
    return root


def test_its_pictures_are_inputs(tmp_path):
    root = tables_alone_photos(tmp_path / "photos")
    named = [str(root / name) for name in ("captions.csv", "images/a.png", "images/b.png")]
    assert source_at(root / "captions.csv", "source=folder").inputs == named
    assert source_at(root, "source=folder").inputs == [f"{root}/"]  # any change in the folder is one of the source
    for location in (root, root / "captions.csv"):
        assert source_at(location, "source=url_table").inputs == named[:2]  # this one looks for no other names
    web = root / "web.tsv"
    web.write_text("url\tcaption\nhttp://x/a.png\tred\n")
    assert source_at(web, "source=url_table").inputs == [str(web)]


@pytest.mark.parametrize("source", ["folder", "url_table"])
def test_where_dvc_would_not_see_them_it_is_refused(tmp_path, source):
    root = tables_alone_photos(tmp_path / "photos")
    raw = tmp_path / "data/raw"
    table = str(root / "captions.csv")
    with pytest.raises(DataError) as raised:
        require_seen_by_dvc(source_at(table, f"source={source}"), table, raw)
    assert str(raised.value) == (
        f"{table}: DVC would see this alone, and no change of the pictures that it names; give the folder, so that "
        f"DVC sees its pictures: paths.archive: {root}"
    )
    require_seen_by_dvc(source_at(root, f"source={source}"), str(root), raw)
    with pytest.raises(DataError, match=r"put it and its pictures into a folder of their own, .* paths\.archive"):
        require_seen_by_dvc(source_at(table, f"source={source}"), table, root / "data/raw")
    (tmp_path / "t.csv").write_text("url,caption\nhttp://x/a.png,red\n")  # of addresses: may be alone
    require_seen_by_dvc(source_at(tmp_path / "t.csv", "source=url_table"), str(tmp_path / "t.csv"), raw)


TWO = [
    {"file": "images/a.png", "alt": "a red square", "synthetic": "a  red square\n"},  # the same text: one pair
    {"file": "images/a.png", "alt": "red", "synthetic": "a square in red"},
    {"file": "images/sub/b.jpg", "alt": " ", "synthetic": ["blue", "a blue square", "blue"]},
    {"file": "images/sub/b.jpg", "alt": "no other"},
    {"file": "images/a.png"},
]
BOTH = [
    ("images/a.png", "a red square", "alt"), ("images/a.png", "red", "alt"),
    ("images/a.png", "a square in red", "synthetic"), ("images/sub/b.jpg", "blue", "synthetic"),
    ("images/sub/b.jpg", "a blue square", "synthetic"), ("images/sub/b.jpg", "no other", "alt"),
    ("images/a.png", "", None),
]  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_each_of_several_columns_of_texts_gives_a_pair(tmp_path, name):
    root, rows, expected = photos(tmp_path), [dict(row) for row in TWO], list(BOTH)
    if name == "a.csv":  # which has no lists
        rows[2], expected[4:5] = TWO[2] | {"synthetic": "blue"}, []
        lines = (f'{row["file"]},{row.get("alt", "")},"{row.get("synthetic", "")}"\n' for row in rows)
        table(root, f"file,alt,synthetic\n{''.join(lines)}", name)
    elif name == "a.jsonl":
        table(root, "".join(f"{json.dumps(row)}\n" for row in (TWO[4], *rows[:4])), name)
        expected = [*BOTH[6:], *BOTH[:6]]
    else:
        lists = [
            {**row, "synthetic": [text] if isinstance(text := row.get("synthetic"), str) else text} for row in rows
        ]
        pq.write_table(pa.Table.from_pylist(lists), root / name)
    counts = Counter()
    found, _ = rows_of(source_at(root, "source=folder", "columns.text=[alt, Synthetic]"), counts)
    assert short(found, "url", "text", "text_source") == [
        (url, text, "Synthetic" if source == "synthetic" else source) for url, text, source in expected
    ]
    assert +counts == {"rows": len(expected)}


def test_columns_that_cannot_give_several_texts(tmp_path):
    root = photos(tmp_path)
    table(root, "file,alt,synthetic\nimages/a.png,a,b\n")
    with pytest.raises(DataError, match=r"'synthetc', it has file, alt, synthetic; set ingest\.columns\.text"):
        source_at(root, "source=folder", "columns.text=[alt, synthetc]")
    table(root, "images/a.png,a,b\n")
    with pytest.raises(DataError, match=r"no header, so it has one text: name one column in ingest\.columns\.text"):
        source_at(root, "source=folder", "columns.text=[alt, synthetic]")
    for wrong in ("[]", "['']", "3", "[alt, 3]"):
        with pytest.raises(ConfigError, match=r"'ingest\.columns\.text"):
            source_at(root, "source=folder", f"columns.text={wrong}")
    table(root, '{"file": "images/a.png", "alt": "a", "synthetic": {"b": 1}}\n', "captions.jsonl")
    (root / "captions.csv").unlink()
    (row,), _ = rows_of(source_at(root, "source=folder", "columns.text=[alt, synthetic]"))
    assert row["problem"] == "an object or a list where a text is expected" and not row["text"]
