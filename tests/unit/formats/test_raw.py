"""data/raw: what we write reads back, and so does a folder that stock img2dataset wrote."""

import hashlib
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError, FormatError
from align.formats.raw import SCHEMA, image_spans, iter_images, raw_shards, read_raw_manifest, read_table
from align.ingest.writer import RawShardWriter, write_raw_manifest
from tests.support.bombs import parquet_bomb, with_little_memory


def row(key, image_key, caption="a text"):
    values = dict.fromkeys(SCHEMA.names) | {"url": "http://x/y", "caption": caption, "key": key}
    good = {"status": "success", "sha256": hashlib.sha256(b"bytes one").hexdigest(), "image_key": image_key}
    return values | (good if image_key else {"status": "failed_to_download"})


def write(directory, keep_tar=lambda path, sha256: None):
    directory.mkdir()
    with RawShardWriter(directory, "00000", 4, keep_tar) as writer:
        writer.add(row(writer.next_key, "000000000"), b"bytes one")
        writer.add(row(writer.next_key, "000000000", "second text"), None)
    with RawShardWriter(directory, "00001", 4, keep_tar) as writer:
        writer.add(row(writer.next_key, None), None)
    write_raw_manifest(directory, ["00000", "00001"])
    return directory


def stock_folder(directory, columns, images):
    """As img2dataset writes it: no page_url, no image_key."""
    directory.mkdir()
    pq.write_table(pa.table(columns), directory / "00000.parquet")
    with tarfile.open(directory / "00000.tar", "w") as tar:
        for key, data in images.items():
            for name, content in ((f"{key}.jpg", data), (f"{key}.txt", b"t"), (f"{key}.json", b"{}")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return directory


def test_written_shards_read_back(tmp_path):
    shards = raw_shards(write(tmp_path / "raw"))
    assert [shard.name for shard in shards] == ["00000", "00001"]
    assert read_table(shards[0])["key"].to_pylist() == ["000000000", "000000001"]
    assert read_table(shards[1])["key"].to_pylist() == ["000010000"]
    assert list(iter_images(shards[0])) == [("000000000", b"bytes one")]  # stored once
    assert list(iter_images(shards[1])) == []
    stats = json.loads((tmp_path / "raw/00001_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (1, 0, 1)


def test_image_spans_are_where_the_bytes_are(tmp_path):
    shard = raw_shards(write(tmp_path / "raw"))[0]
    with shard.tar.open("rb") as file:
        [(key, offset, size)] = image_spans(file, "a tar")
    assert (key, shard.tar.read_bytes()[offset : offset + size]) == ("000000000", b"bytes one")
    with pytest.raises(DataError, match="a tar: not a readable tar"):
        list(image_spans(io.BytesIO(b"no tar" * 200), "a tar"))


def test_image_spans_in_a_tar_of_other_software(tmp_path):
    """Folders, long names, capital extensions: as real data sets have them."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        directory = tarfile.TarInfo("deep")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for name in ("deep/000.JPG", "deep/000.TXT", f"{'long/' * 30}001.webp", "002.json", "000.cls"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("003.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "000.jpg"
        tar.addfile(link)
    data = (tmp_path / "x.tar").read_bytes()
    spans = list(image_spans(io.BytesIO(data), "x"))
    assert [key for key, _, _ in spans] == ["000", "001"]
    assert [data[offset : offset + size] for _, offset, size in spans] == [b"abc", b"abc"]


def test_tars_may_be_in_the_store(tmp_path):
    """Tars that the manifest names are fetched when they are read; tables stay in the folder."""
    (tmp_path / "store").mkdir()

    def take(path, sha256):
        path.rename(tmp_path / "store" / sha256)

    folder = write(tmp_path / "raw", take)
    assert list(folder.glob("*.tar")) == []
    asked = []

    def fetch(sha256, num_bytes):
        asked.append((sha256, num_bytes))
        return tmp_path / "store" / sha256

    shards = raw_shards(folder, fetch)
    assert read_table(shards[0]).num_rows == 2
    assert asked == []
    assert list(iter_images(shards[0])) == [("000000000", b"bytes one")]
    assert asked == [(shards[0].sha256, shards[0].num_bytes)]
    assert (tmp_path / "store" / str(shards[0].sha256)).stat().st_size == shards[0].num_bytes
    with pytest.raises(DataError, match=r"00000\.tar: missing; run `dvc pull`, or set store\.objects"):
        list(iter_images(raw_shards(folder)[0]))
    (folder / "00001.parquet").unlink()
    with pytest.raises(DataError, match=r"00001\.parquet: missing"):
        raw_shards(folder, fetch)


@pytest.mark.parametrize(("change", "says"), [
    ({"schema_version": 2}, "schema_version 2, but this code reads 1"),
    ({"more": 1}, "more: Extra inputs"),
    ({"digest": None}, "digest: Input should be a valid string"),
    ({"shards": [{"name": "00000"}]}, r"shards\.0\.num_pairs: Field required"),
])  # fmt: skip
def test_a_manifest_of_another_layout_is_refused(tmp_path, change, says):
    folder = write(tmp_path / "raw")
    manifest = read_raw_manifest(folder)
    assert [(shard.name, shard.num_pairs) for shard in manifest.shards] == [("00000", 2), ("00001", 1)]
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    with pytest.raises(FormatError, match=rf"manifest\.json: {says}.*; run `align ingest` again"):
        raw_shards(folder)
    path.write_text("{half")
    with pytest.raises(FormatError, match="not valid JSON"):
        raw_shards(folder)
    path.unlink()
    assert read_raw_manifest(folder) is None
    assert raw_shards(folder)[0].sha256 is None


def test_equal_pairs_are_equal_bytes(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    for path in sorted(one.iterdir()):
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_stock_img2dataset_folder_gets_image_key_and_hash(tmp_path):
    columns = {
        "url": ["http://a", "http://b"], "caption": ["one", None], "key": ["000000000", "000000001"],
        "status": ["success", "failed_to_download"], "width": [256, None],
    }  # fmt: skip
    [shard] = raw_shards(stock_folder(tmp_path / "raw", columns, {"000000000": b"pixels"}))
    table = read_table(shard)
    assert table.schema == SCHEMA
    assert table["image_key"].to_pylist() == ["000000000", None]
    assert table["sha256"].to_pylist() == [hashlib.sha256(b"pixels").hexdigest(), None]
    assert table["page_url"].to_pylist() == [None, None]


def test_missing_column_names_it(tmp_path):
    folder = stock_folder(tmp_path / "raw", {"url": ["u"], "key": ["000000000"], "status": ["success"]}, {})
    with pytest.raises(FormatError, match="no column 'caption'"):
        read_table(raw_shards(folder)[0])


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="align ingest"):
        raw_shards(tmp_path)


def test_truncated_tar_and_table(tmp_path):
    folder = write(tmp_path / "raw")
    shard = raw_shards(folder)[0]
    shard.tar.write_bytes(shard.tar.read_bytes()[:520])
    with pytest.raises(DataError, match="not a readable tar"):
        list(iter_images(shard))
    shard.table.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable parquet"):
        read_table(shard)


def test_a_small_folder_that_unpacks_to_gigabytes_takes_little_memory(tmp_path):
    raw = write(tmp_path / "raw")
    parquet_bomb(raw / "00000.parquet", 1000)
    code = """
from pathlib import Path
from align.formats.raw import raw_shards, read_table
table = read_table(raw_shards(Path(sys.argv[1]))[0], ["key", "caption"])
print(len(table), max(map(len, table["caption"].to_pylist())))
"""
    assert with_little_memory(code, raw, mib=500) == "1000 8192"
