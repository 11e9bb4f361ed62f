"""`align ingest` of parquet files with pictures of data/sample inside, as Hugging Face's hub stores them."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from align.ingest.sources.folder import Folder
from align.ingest.sources.inside import PicturesInside
from tests.support.reading import ingested, short, source_at

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def files(sample, tmp_path_factory):
    """Two files with 24 pictures, in row groups of five, one of them without bytes."""
    source, pictures = source_at(sample / "archive.warc.gz"), {}
    for batch in source.scan(source.files[0], Counter()):
        for row in batch.to_pylist() if "text" not in batch.schema.names else ():
            if row["url"].endswith((".jpg", ".png", ".webp")) and len(pictures) < 24:
                pictures.setdefault(source.read(row["file"], row["offset"]) or b"")
    root, rows = tmp_path_factory.mktemp("inside"), [{"bytes": one, "path": None} for one in pictures]
    for number, some in enumerate((rows[:12], [*rows[12:], None])):
        texts = [f"photograph {number} and {row}" for row in range(len(some))]
        table = pa.table({"image": pa.array(some, HUB), "caption": texts})
        pq.write_table(table, root / f"train-{number}.parquet", row_group_size=5)
    return root, list(pictures)


def contents(raw):
    """Name and bytes of all files that a shard has."""
    return {file.name: file.read_bytes() for file in raw.iterdir() if file.suffix in (".tar", ".parquet", ".json")}


@pytest.mark.parametrize("source", ["folder", "url_table"])
def test_pictures_become_pairs_whoever_reads_them(tmp_path, files, source):
    folder, _ = files
    values = (f"ingest.source={source}", "ingest.shard_size=6")
    rows = ingested(tmp_path / "one", folder, *values)
    assert len(rows) == 25
    good = {row["url"]: row["sha256"] for row in rows if row["status"] == "success"}
    assert len(set(good.values())) == len(good) == 24
    (bad,) = [row for row in rows if row["status"] != "success"]
    assert short([bad], "url", "error_message") == [("train-1.parquet#12", "bytes cannot be read")]
    again = ingested(tmp_path / "two", folder, *values, "engine.num_workers=2")
    assert rows == again
    assert contents(tmp_path / "one/raw") == contents(tmp_path / "two/raw")


def test_an_interrupted_run_scans_no_part_twice_and_gives_the_same_bytes(tmp_path, files, monkeypatch):
    folder, _ = files
    values = ("ingest.source=folder", "ingest.shard_size=6")
    ingested(tmp_path / "whole", folder, *values)
    scanned, scan, read = Counter(), Folder.scan, PicturesInside.read

    def scan_until(self, file, counts):
        if len(scanned) == 3 and not scanned["ended"]:
            scanned["ended"] = 1
            raise DataError("the machine is switched off")
        scanned[file] += 1
        yield from scan(self, file, counts)

    def read_until(self, file, row):
        if row == 11 and not scanned["ended again"]:
            scanned["ended again"] = 1
            raise DataError("the machine is switched off")
        return read(self, file, row)

    monkeypatch.setattr(Folder, "scan", scan_until)
    monkeypatch.setattr(PicturesInside, "read", read_until)
    for code in (1, 1, 0):
        ingested(tmp_path / "parts", folder, *values, code=code)
    del scanned["ended"], scanned["ended again"]
    assert len(scanned) == 7  # the folder, and three parts of each file
    assert set(scanned.values()) == {1}
    assert contents(tmp_path / "parts/raw") == contents(tmp_path / "whole/raw")
