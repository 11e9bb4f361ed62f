"""data/raw: what we write reads back, and so does a folder that stock img2dataset wrote."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError, FormatError
from align.pairs.layout import SCHEMA, RawWriter, iter_images, raw_shards, read_table


def row(key: str, image_key: str | None, caption: str = "a text") -> dict[str, object]:
    found = dict.fromkeys(SCHEMA.names) | {"url": "http://x/y", "caption": caption, "key": key}
    return found | {"status": "success" if image_key else "failed_to_download", "image_key": image_key}


def write(directory: Path) -> Path:
    directory.mkdir()
    with RawWriter(directory, 2) as writer:
        writer.add(row(writer.next_key(), "000000000"), b"bytes one")
        writer.add(row(writer.next_key(), "000000000", "second text"), None)
        writer.add(row(writer.next_key(), None), None)
    return directory


def stock_folder(directory: Path, columns: dict[str, list[object]], images: dict[str, bytes]) -> Path:
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


def test_written_shards_read_back(tmp_path: Path) -> None:
    shards = raw_shards(write(tmp_path / "raw"))
    assert [shard.name for shard in shards] == ["00000", "00001"]
    assert read_table(shards[0])["key"].to_pylist() == ["000000000", "000000001"]
    assert read_table(shards[1])["key"].to_pylist() == ["000010000"]
    assert list(iter_images(shards[0])) == [("000000000", b"bytes one")]  # stored once
    assert list(iter_images(shards[1])) == []
    stats = json.loads((tmp_path / "raw/00001_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["failed_to_download"]) == (1, 0, 1)


def test_equal_pairs_are_equal_bytes(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    for path in sorted(one.iterdir()):
        assert path.read_bytes() == (two / path.name).read_bytes()


def test_stock_img2dataset_folder_gets_image_key_and_hash(tmp_path: Path) -> None:
    columns = {
        "url": ["http://a", "http://b"],
        "caption": ["one", None],
        "key": ["000000000", "000000001"],
        "status": ["success", "failed_to_download"],
        "width": [256, None],
    }
    [shard] = raw_shards(stock_folder(tmp_path / "raw", columns, {"000000000": b"pixels"}))
    table = read_table(shard)
    assert table.schema == SCHEMA
    assert table["image_key"].to_pylist() == ["000000000", None]
    assert table["sha256"].to_pylist() == [hashlib.sha256(b"pixels").hexdigest(), None]
    assert table["page_url"].to_pylist() == [None, None]


def test_missing_column_names_it(tmp_path: Path) -> None:
    folder = stock_folder(tmp_path / "raw", {"url": ["u"], "key": ["000000000"], "status": ["success"]}, {})
    with pytest.raises(FormatError, match="no column 'caption'"):
        read_table(raw_shards(folder)[0])


def test_missing_half_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="align ingest"):
        raw_shards(tmp_path)
    folder = write(tmp_path / "raw")
    (folder / "00001.parquet").unlink()
    with pytest.raises(DataError, match=r"00001\.parquet: missing"):
        raw_shards(folder)


def test_truncated_tar_and_table(tmp_path: Path) -> None:
    folder = write(tmp_path / "raw")
    shard = raw_shards(folder)[0]
    shard.tar.write_bytes(shard.tar.read_bytes()[:520])
    with pytest.raises(DataError, match="not a readable tar"):
        list(iter_images(shard))
    shard.table.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="not a readable parquet"):
        read_table(shard)
