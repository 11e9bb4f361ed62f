"""Tars and captioned data sets: where the files are, and which must not be read."""

import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.limits import TooLarge
from align.ingest.sources import open_source
from align.services.files.files import StoreFiles
from tests.support.local_store import config
from tests.support.params import load_params
from tests.support.reading import read_all, rows_of, short, source_at
from tests.support.tars import tar
from tests.support.warc_records import picture, write_archive

RED, BLUE = picture(3, 2), picture(4, 2, "blue", "JPEG")


def test_img2dataset_folder(tmp_path):
    tar(
        tmp_path / "00000.tar",
        {"000000000.jpg": BLUE, "000000000.txt": b"t", "000000000.json": b"{}", "000000003.jpg": RED},
    )
    table = {
        "url": ["http://x/a.jpg", "http://x/b.jpg", "http://x/c.jpg", "http://X:80/d.jpg"],
        "caption": ["a", "b", None, " "],
        "key": ["000000000", "000000001", "000000002", "000000003"],
        "status": ["success", "failed_to_download", "success", "success"],
        "error_message": [None, "HTTP Error 404", None, None],
    }
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    counts = Counter()
    rows = read_all(tmp_path, "shards", counts)
    assert short(rows, "url", "text", "text_source", "problem", "bytes") == [
        ("http://x/a.jpg", "a", "caption", None, BLUE),
        ("http://x/b.jpg", "b", "caption", "HTTP Error 404", None),
        ("http://x/c.jpg", "", None, None, None),  # a success that its tar does not hold
        ("http://x/d.jpg", " ", None, None, RED),
    ]
    assert counts == {"rows": 4, "rows_unreadable": 1}
    pq.write_table(pa.table({"url": ["u"], "key": ["k"]}), tmp_path / "00000.parquet")
    with pytest.raises(DataError, match="no column 'status'"):
        read_all(tmp_path, "shards")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_webdataset_tars(tmp_path, form):
    long = "folder/" * 30 + "é" * 5 if form != tarfile.USTAR_FORMAT else "folder/é"
    members = {
        "a/0001.png": RED, "a/0001.txt": b"one",
        "a/0002.JPEG": BLUE, "a/0002.json": json.dumps({"url": "http://x/2.jpg", "caption": "two"}).encode(),
        "a/0003.json": json.dumps({"texts": ["three", "drei", None], "x": 1}).encode(), "a/0003.webp": RED,
        "a/0003.txt": b"three",
        "a/0004.jpg": BLUE,
        "a/0005.txt": b"text alone",
        "a/0006.caption": "sechs ü".encode(), "a/0006.depth.npy": b"...", "a/0006.jpg": BLUE,
        "a/0007.jpg": RED, "a/0007.json": b"{broken", "a/0007.cls": b"7",
        "classes.bin": b"neither",
        f"{long}.jpg": RED, f"{long}.txt": b"long",
    }  # fmt: skip
    (tmp_path / "set").mkdir()
    tar(tmp_path / "set/00000.tar", members, form)
    counts = Counter()
    rows = read_all(tmp_path / "set/*.tar", "shards", counts)
    assert short(rows, "url", "text", "text_source", "problem", "bytes") == [
        ("set/00000/a/0001", "one", "txt", None, RED),
        ("http://x/2.jpg", "two", "caption", None, BLUE),
        ("set/00000/a/0003", "three", "json", None, RED),
        ("set/00000/a/0003", "drei", "json", None, RED),
        ("set/00000/a/0004", "", None, None, BLUE),
        ("set/00000/a/0005", "text alone", "txt", "no picture in its sample", None),
        ("set/00000/a/0006", "sechs ü", "caption", None, BLUE),
        ("set/00000/a/0007", "", None, None, RED),
        (f"set/00000/{long}", "long", "txt", None, RED),
    ]
    assert counts == {"rows": 9}


def test_names_that_are_not_utf8(tmp_path):
    """Of a member they are spelt out; the file that holds pictures is named in a table, which cannot hold them."""
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set/0.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as file:
        for name, data in (
            ("caf\xe9.png", RED),
            ("caf\xe9.txt", b"one"),
            ("caf\xea.png", BLUE),
            ("caf\xea.txt", b"two"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    assert short(read_all(tmp_path / "set", "shards"), "url", "text", "bytes") == [
        ("set/0/caf\\xe9", "one", RED), ("set/0/caf\\xea", "two", BLUE)
    ]  # fmt: skip
    (tmp_path / "set/0.tar").rename(tmp_path / "set" / os.fsdecode(b"caf\xe9.tar"))
    write_archive(tmp_path / os.fsdecode(b"caf\xe9.warc.gz"), [])
    for source, name in (("shards", r"set/caf\\xe9\.tar"), ("warc", r"caf\\xe9\.warc\.gz")):
        with pytest.raises(DataError, match=f"{name}: the name is not UTF-8, so no table can hold it; rename it"):
            source_at(tmp_path, f"source={source}")


def test_a_damaged_tar_is_read_up_to_the_damage(tmp_path):
    path = tar(tmp_path / "0.tar", {f"{number}.png": bytes(5000) for number in range(5)})
    path.write_bytes(path.read_bytes()[: 3 * (512 + 5120) + 700])
    with pytest.raises(DataError, match="not a complete tar"):
        read_all(path, "shards")
    counts = Counter()
    source = source_at(path, "source=shards")
    rows, _ = rows_of(source, counts)
    assert [source.read(row["file"], row["offset"]) for row in rows][:3] == [bytes(5000)] * 3
    assert counts["damaged_files"] == 1
    with pytest.raises(DataError, match="no tar member at byte 700"):
        source.read(str(path), 700)


def test_odd_members_are_skipped_or_end_the_tar_and_are_named(tmp_path, capsys):
    path = tar(tmp_path / "0.tar", {"1.jpg": BLUE, "1.txt": b"one", "3.jpg": RED, "3.txt": b"three"})
    members = path.read_bytes().rstrip(b"\0")
    members += bytes(-len(members) % 512)
    link = tarfile.TarInfo("2.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    below_zero = bytearray(tarfile.TarInfo("2.png").tobuf(tarfile.USTAR_FORMAT))
    below_zero[124:136] = b"-0000000512\0"
    below_zero[148:156] = b"%06o\0 " % (sum(below_zero[:148]) + sum(below_zero[156:]) + 256)
    path.write_bytes(link.tobuf(tarfile.USTAR_FORMAT) + members + below_zero + bytes(1024))
    counts = Counter()
    assert short(read_all(path, "shards", counts), "text", "bytes") == [("one", BLUE), ("three", RED)]
    assert (counts["records_unreadable"], counts["rows"], counts["damaged_files"]) == (1, 2, 1)
    printed = capsys.readouterr().err
    assert f"{path}: 2.jpg: skipped: a symbolic link" in printed
    assert any(f"{path}: not a complete tar (the size of 2.png at byte " in count for count in counts)
    table = {
        "url": ["http://x/1", "http://x/2"], "caption": ["one", "two"], "key": ["1", "2"], "status": ["success"] * 2,
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    assert short(read_all(path, "shards", Counter()), "text", "bytes") == [("one", BLUE), ("two", None)]


def test_members_that_are_too_large_or_nested(tmp_path):
    members = {
        "1.jpg": bytes(100_001), "1.txt": b"large",
        "2.jpg": RED, "2.txt": bytes(2 << 20),
        "3.jpg": RED, "3.json": b"[" * 100_000,
        "4.jpg": RED, "4.json": b'{"caption":' + b'{"a":' * 100_000,
        "5.jpg": RED, "5.json": b'{"url": 7, "caption": {"a": 1}, "text": "five"}',
        "6.jpg": RED, "6.txt": b"six",
    }  # fmt: skip
    counts = Counter()
    source = source_at(tar(tmp_path / "0.tar", members), "source=shards", "max_record_bytes=100000")
    rows, _ = rows_of(source, counts)
    assert [row["text"] for row in rows] == ["large", "", "", "", "five", "six"]
    assert counts == {"records_unreadable": 1, "rows": 6}
    with pytest.raises(TooLarge):
        source.read(rows[0]["file"], rows[0]["offset"])
    assert [source.read(row["file"], row["offset"]) for row in rows[1:]] == [RED] * 5


def test_tables_of_other_types_and_damaged_tables(tmp_path):
    tar(tmp_path / "0.tar", {"1.jpg": RED})
    table = {"url": [7], "caption": [["a", "list"]], "key": [1], "status": ["success"], "page_url": [3.5]}
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    assert short(read_all(tmp_path, "shards"), "url", "text", "page_url", "bytes") == [
        ("7", "a", "3.5", RED), ("7", "list", "3.5", RED)
    ]  # fmt: skip
    latin = pa.array([b"gr\xfcn"]).buffers()
    pq.write_table(pa.table({**table, "caption": pa.Array.from_buffers(pa.string(), 1, latin)}), tmp_path / "0.parquet")
    assert short(read_all(tmp_path, "shards"), "text") == [("gr\ufffdn",)]
    whole = (tmp_path / "0.parquet").read_bytes()
    for damaged in (whole[:200], whole[:-30] + b"\xff" * 22 + whole[-8:], b"PAR1" * 9):
        (tmp_path / "0.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"0\.parquet: not a readable parquet file"):
            read_all(tmp_path, "shards")


def test_lists_and_objects_in_place_of_a_text(tmp_path):
    """A list gives a pair for each text, in the table of img2dataset and in the JSON of a sample."""
    (tmp_path / "set").mkdir()
    (tmp_path / "made").mkdir()
    nested = json.dumps({"captions": [{"raw": "a"}]}).encode()
    tar(
        tmp_path / "set/0.tar",
        {"a.png": RED, "a.json": b'{"captions": ["one", null, 2]}', "b.png": BLUE, "b.json": nested},
    )
    rows = read_all(tmp_path / "set/0.tar", "shards")
    assert short(rows, "url", "text", "problem") == [
        ("set/0/a", "one", None), ("set/0/a", "2", None),
        ("set/0/b", "", "an object or a list where a text is expected"),
    ]  # fmt: skip
    tar(tmp_path / "made/0.tar", {"k.png": RED})
    columns = {"url": ["http://x/k.png"], "key": ["k"], "status": ["success"], "caption": [["one", "two"]]}
    pq.write_table(pa.table(columns), tmp_path / "made/0.parquet")
    assert short(read_all(tmp_path / "made", "shards"), "text", "bytes") == [("one", RED), ("two", RED)]


def table(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"url": ["http://x/0", "http://x/1"], "caption": ["a", "b"], "key": ["0", "1"], "status": ["success"] * 2}
    pq.write_table(pa.table({name: value for name, value in {**columns, **changes}.items() if value}), path)
    return path


def of_tar(folder):
    table(folder / "00000.parquet")
    tar(folder / "00000.tar", {"0.jpg": BLUE, "1.jpg": RED})


def of_files(folder):
    table(folder / "00000.parquet")
    (folder / "00000").mkdir()
    (folder / "00000/0.jpg").write_bytes(BLUE)
    (folder / "00000/1.jpg").write_bytes(RED)


def names(root, location):
    return [str(Path(file).relative_to(root)) for file in source_at(location, "source=shards").files]


def test_folders_of_pictures_are_read_beside_those_of_tars(tmp_path):
    of_tar(tmp_path / "a")
    of_files(tmp_path / "c")
    assert names(tmp_path, tmp_path) == ["a/00000.tar", "c/00000.parquet"]
    assert len([row for row in rows_of(source_at(tmp_path, "source=shards"))[0] if row["file"]]) == 4


@pytest.mark.parametrize("evidence", ["columns", "statistics", "folder", "damage"])
def test_a_tar_that_is_lost_in_another_folder_is_named(tmp_path, evidence):
    of_tar(tmp_path / "a")
    lost = table(
        tmp_path / "b/00000.parquet", status=["success"] * 2 if evidence in ("columns", "statistics") else None
    )
    if evidence == "statistics":
        lost = lost.rename(lost.with_name("all.parquet"))
        lost.with_name("all_stats.json").write_text("{}")
    elif evidence == "folder":
        lost.with_suffix("").mkdir()
        (lost.with_suffix("") / "0.jpg").write_bytes(RED)
    elif evidence == "damage":
        lost.write_bytes(lost.read_bytes()[:-9])
    says = {"folder": "no column 'status'", "damage": "not a readable parquet file"}.get(evidence, r"\.tar: missing")
    with pytest.raises(DataError, match=rf"b/.*{says}"):
        rows_of(source_at(tmp_path, "source=shards"))


def test_tables_that_are_left_out_are_named_and_counted(tmp_path, capsys):
    of_tar(tmp_path / "a")
    table(tmp_path / "urls/00000.parquet", key=None, status=None)
    for number in range(12):
        table(tmp_path / f"metadata/of-{number:02d}.parquet")
    assert names(tmp_path, tmp_path) == ["a/00000.tar"]
    said = capsys.readouterr().err
    assert f"{tmp_path}: 13 tables left out: they have no tar, nor are they img2dataset's: " in said
    assert "metadata/of-09.parquet and 3 more" in said
    assert "of-10" not in said
    assert names(tmp_path, tmp_path / "a") == ["a/00000.tar"]
    assert "left out" not in capsys.readouterr().err


def stamps(location):
    files = StoreFiles(config(location))
    source = open_source(load_params(overrides=["ingest.source=shards"]).section(IngestConfig), str(location), files)
    return [f"{file} {stamp}" for file, stamp in zip(source.inputs, files.stamps(source.inputs), strict=True)]


def test_a_change_of_a_picture_is_a_change_of_the_source(tmp_path):
    of_files(tmp_path)
    seen = [stamps(tmp_path)]
    assert stamps(tmp_path) == seen[0]
    pictures = tmp_path / "00000"

    def added():
        (pictures / "2.jpg").write_bytes(RED)

    def larger():
        (pictures / "2.jpg").write_bytes(BLUE * 2)

    def later():
        os.utime(pictures / "2.jpg", ns=(1, 1))

    def renamed():
        (pictures / "2.jpg").rename(pictures / "3.jpg")

    def gone():
        (pictures / "3.jpg").unlink()

    def link_to_nothing():
        (pictures / "4.jpg").symlink_to("nothing")

    for change in (added, larger, later, renamed, gone, link_to_nothing):
        before = pictures.stat()
        change()
        os.utime(pictures, ns=(before.st_atime_ns, before.st_mtime_ns))
        seen.append(stamps(tmp_path))
    assert seen[5] == seen[6] == seen[0]
    assert len({str(each) for each in seen}) == 5


def test_several_columns_of_img2dataset_and_keys_of_webdataset(tmp_path):
    (tmp_path / "tables").mkdir()
    tar(tmp_path / "tables/00000.tar", {"0.jpg": BLUE, "1.jpg": RED, "2.jpg": RED})
    columns = {
        "url": ["http://x/0.jpg", "http://x/1.jpg", "http://x/2.jpg"], "key": ["0", "1", "2"],
        "status": ["success"] * 3, "caption": ["blue", None, "red"], "synthetic": ["a blue square", "a red one", "red"],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "tables/00000.parquet")
    both, shown = "columns.text=[caption, synthetic]", ("url", "text", "text_source", "problem")
    rows, _ = rows_of(source_at(tmp_path / "tables", "source=shards", both))
    assert short(rows, *shown) == [
        ("http://x/0.jpg", "blue", "caption", None), ("http://x/0.jpg", "a blue square", "synthetic", None),
        ("http://x/1.jpg", "a red one", "synthetic", None), ("http://x/2.jpg", "red", "caption", None),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"no column 'alt'.*it has url, key, status, caption, synthetic"):
        rows_of(source_at(tmp_path / "tables", "source=shards", "columns.text=[alt]"))
    members = {
        "0.jpg": BLUE, "0.txt": b"blue", "0.json": b'{"synthetic": ["a blue square", "it is blue"], "caption": "blue"}',
        "1.jpg": RED, "1.json": b'{"synthetic": {"a": 1}}', "2.jpg": RED, "2.txt": b"red",
    }  # fmt: skip
    (tmp_path / "set").mkdir()
    tar(tmp_path / "set/plain.tar", members)
    rows, _ = rows_of(source_at(tmp_path / "set/plain.tar", "source=shards", "columns.text=[txt, synthetic]"))
    assert short(rows, *shown) == [
        ("set/plain/0", "blue", "txt", None), ("set/plain/0", "a blue square", "synthetic", None),
        ("set/plain/0", "it is blue", "synthetic", None),
        ("set/plain/1", "", None, "an object or a list where a text is expected"), ("set/plain/2", "red", "txt", None),
    ]  # fmt: skip
