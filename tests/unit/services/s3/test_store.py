"""Files and the content-addressed store on this machine; the same on a server: tests/integration/test_store.py."""

import gzip
import hashlib
import json
import pickle
from pathlib import Path

import pytest

from align.durable.files import sha256_file
from align.errors import ConfigError, CorruptError, DataError
from align.formats.shards import Shard, local_tar
from align.lineage.take_down.purge_raw import stored_tars
from align.services.files.files import StoreFiles
from align.services.s3.store import Objects, fetcher, keep_tar
from tests.support.local_store import config, touch


def listed(root, location, *suffixes):
    found = StoreFiles(config(root)).list(f"{root}/{location}", suffixes)
    return [name.removeprefix(f"{root}/") for name in found]


def test_a_location_is_a_file_a_folder_or_a_pattern(tmp_path):
    touch(tmp_path, "b.warc.gz", "a.warc", "deep/er/c.WARC.GZ", "deep/notes.md", "dx/e.warc.gz")
    assert listed(tmp_path, "b.warc.gz", ".warc") == ["b.warc.gz"]  # a file that is named counts, with any suffix
    assert listed(tmp_path, "", ".warc", ".warc.gz") == ["a.warc", "b.warc.gz", "deep/er/c.WARC.GZ", "dx/e.warc.gz"]
    assert listed(tmp_path, "deep") == ["deep/er/c.WARC.GZ", "deep/notes.md"]
    assert listed(tmp_path, "*.gz", ".warc") == ["b.warc.gz"]
    assert listed(tmp_path, "d*/*.gz") == ["dx/e.warc.gz"]
    assert listed(tmp_path, "**/*.warc*") == ["a.warc", "b.warc.gz", "dx/e.warc.gz"]
    for nothing in ("none", "*.zip", "deep/er"):
        with pytest.raises(DataError, match="check the path"):
            listed(tmp_path, nothing, ".zip")


def test_a_list_names_locations_relative_to_itself(tmp_path):
    touch(tmp_path, "x/a.warc", "x/b.warc", "y/c.warc", "y/d.txt")
    lines = f"\ufeff# two folders\n\nx/b.warc\r\ny\n{tmp_path}/x/*.warc\ns3://bucket/z.warc\n"
    (tmp_path / "list.txt").write_text(lines)
    (tmp_path / "all.paths.gz").write_bytes(gzip.compress(lines.encode()))
    expected = ["s3://bucket/z.warc", "x/a.warc", "x/b.warc", "y/c.warc"]  # sorted as absolute names, then shortened
    for name in ("list.txt", "all.paths.gz"):
        assert sorted(listed(tmp_path, name, ".warc")) == expected
    assert listed(tmp_path, "list.txt", ".txt") == ["list.txt"]  # a table of URLs, where sources read .txt


def test_files_are_opened_and_stamped_and_travel_to_workers(tmp_path):
    touch(tmp_path, "a")
    files = pickle.loads(pickle.dumps(StoreFiles(config(tmp_path))))
    with files.open(f"{tmp_path}/a") as stream:
        assert (stream.read(), stream.seek(0), stream.read(1)) == (b"a", 0, b"a")
    before = files.stamp(f"{tmp_path}/a")
    (tmp_path / "a").write_text("another")
    assert files.stamp(f"{tmp_path}/a") != before
    assert files.read(f"{tmp_path}/a", 2, 3) == b"oth"
    for missing in ("none", ""):
        with pytest.raises(DataError, match="cannot be read"):
            files.open(f"{tmp_path}/{missing}")
    with pytest.raises(DataError, match="cannot be read"):
        files.stamp(f"{tmp_path}/none")


def tar(root, data=b"a tar"):
    path = root / "a.tar"
    path.write_bytes(data)
    return path, hashlib.sha256(data).hexdigest()


def test_an_object_is_written_once_and_read_once(tmp_path):
    objects, (path, sha256) = Objects(config(tmp_path)), tar(tmp_path)
    assert not objects.exists(sha256)
    objects.put(path, sha256)
    objects.put(path, sha256)
    assert objects.exists(sha256)
    cached = objects.get(sha256, 5)
    assert cached.read_bytes() == b"a tar"
    Path(objects.uri(sha256)).unlink()
    assert objects.get(sha256, 5) == cached  # no second read
    objects.delete(sha256)
    objects.delete(sha256)
    assert not cached.exists()
    with pytest.raises(DataError, match="no such object"):
        objects.get(sha256, 5)


@pytest.mark.parametrize("damage", [b"a tor", b"a t", b"a tar and more"])
def test_a_damaged_object_is_found_out_and_never_cached(tmp_path, damage):
    objects, (path, sha256) = Objects(config(tmp_path)), tar(tmp_path)
    objects.put(path, sha256)
    Path(objects.uri(sha256)).write_bytes(damage)
    with pytest.raises(CorruptError, match=rf"{sha256}\.tar: {len(damage)} bytes.*, but it should have 5 bytes"):
        objects.get(sha256, 5)
    assert [file for file in (tmp_path / "cache").rglob("*") if file.is_file()] == []
    if len(damage) != 5:
        with pytest.raises(CorruptError, match="remove the object and run again"):
            objects.put(path, sha256)


def test_a_tar_is_handed_over_once_and_a_lost_one_is_named(tmp_path):
    path, sha256 = tar(tmp_path)
    keep_tar(path, sha256, config(tmp_path, None))
    assert path.exists()
    keep_tar(path, sha256, config(tmp_path))
    assert not path.exists()
    keep_tar(path, sha256, config(tmp_path))  # killed after the removal, it is asked again
    Objects(config(tmp_path)).delete(sha256)
    with pytest.raises(DataError, match=r"a\.tar: neither here nor at"):
        keep_tar(path, sha256, config(tmp_path))


def test_without_objects_there_is_nothing_to_ask(tmp_path):
    assert fetcher(config(tmp_path, None)) is None
    with pytest.raises(ConfigError, match=r"store\.objects is not set"):
        Objects(config(tmp_path, None))
    with pytest.raises(ConfigError, match="expected s3://bucket/key"):
        Objects(config(tmp_path).model_copy(update={"objects": "s3:///prefix"}))


def dataset(root, kind):
    """A folder with one tar at its root or below, and its manifest."""
    folder = root / "data"
    folder.mkdir()
    path, sha256 = tar(root)
    (folder / "00000.parquet").write_bytes(b"rows")
    name = "00000.tar" if kind == "raw" else "train/00000.tar"
    (folder / name).parent.mkdir(exist_ok=True)
    path.rename(folder / name)
    shard = {"path": name, "sha256": sha256, "num_bytes": 5}
    values = (
        {"shards": [{"name": "00000", "tar_sha256": sha256, "tar_bytes": 5}]}
        if kind == "raw"
        else {"splits": {"train": {"shards": [shard]}}}
    )
    (folder / "manifest.json").write_text(json.dumps({"schema_version": 1} | values))
    return folder


@pytest.mark.parametrize("kind", ["raw", "shards"])
def test_a_manifest_names_the_tars_of_its_folder(tmp_path, kind):
    folder = dataset(tmp_path, kind)
    (path,) = folder.rglob("*.tar")
    assert stored_tars(folder) == {path.relative_to(folder).as_posix(): (sha256_file(path), 5)}
    assert stored_tars(tmp_path) == {}


def test_a_tar_that_is_not_in_its_folder_is_read_from_the_store(tmp_path):
    folder = dataset(tmp_path, "shards")
    (path,) = folder.rglob("*.tar")
    row = Shard(
        path=path.relative_to(folder).as_posix(), sha256=sha256_file(path), num_bytes=5, num_images=1, num_pairs=1,
        offsets_sha256="",
    )  # fmt: skip
    assert local_tar(folder, row, None) == local_tar(folder, row, fetcher(config(tmp_path))) == path
    keep_tar(path, row.sha256, config(tmp_path))
    with pytest.raises(DataError, match=r"00000\.tar: named in .* but missing.*or `dvc pull`, or set store\.objects"):
        local_tar(folder, row, fetcher(config(tmp_path, None)))
    assert local_tar(folder, row, fetcher(config(tmp_path))).read_bytes() == b"a tar"
    assert list(folder.rglob("*.tar")) == []


@pytest.mark.parametrize("text", ["[]", '{"shards": [{}]}', "{}"])
def test_a_strange_manifest_is_one_clear_error(tmp_path, text):
    touch(tmp_path, "raw/manifest.json")
    (tmp_path / "raw" / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="no manifest that this code reads"):
        stored_tars(tmp_path / "raw")
