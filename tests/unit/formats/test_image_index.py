"""data/index: rows on demand, thumbnails, filters, and what becomes of files that are damaged or old."""

import json
from dataclasses import asdict
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.durable.files import replace_directory
from align.errors import CorruptError, DataError, FormatError
from align.formats.image_index import ImageIndex, IndexFacts, write_index
from align.formats.indexed_images import IndexedImage
from align.services.vector_index import VectorIndex
from tests.support import indexed

TEXTS = [
    ("a red  Heart", "two words"), ("red", "heart"), ("hearts",), ("Ein ÄRGER",), ("C++ (c) 100%",), ("赤い heart_1",),
    ("a\nHEART",), ("redheart",),
]  # fmt: skip
ITEMS = [
    IndexedImage(
        f"{7 * number % 8:09d}", f"{number:064d}", texts, "test" if number % 3 == 0 else "train", "train/00000.tar",
        number, 10 + number, tuple(f"{number}-{place}" for place in range(len(texts))),
    )
    for number, texts in enumerate(TEXTS)
]  # fmt: skip
VECTORS = np.eye(8, dtype=np.float32)


def write(folder, *, thumbnail_px=160, exact_below=100):
    def images():
        for rows, vectors in ((ITEMS[:3], VECTORS[:3]), (ITEMS[3:], VECTORS[3:])):
            given = {name: [asdict(item)[name] for item in rows] for name in asdict(ITEMS[0]) if name != "columns"}
            given["page_urls"] = [[f"https://{key}.example/{item.image_id}" for key in item.keys] for item in rows]
            given["thumbnail"] = [f"jpeg of {item.key}".encode() if thumbnail_px else b"" for item in rows]
            yield indexed.rows(len(rows), **given), vectors

    rules, build = (
        {"a_rule": "x < 3", "another": None},
        partial(VectorIndex.build, num_vectors=8, exact_below=exact_below),
    )
    with replace_directory(folder, "index") as part:
        facts = IndexFacts(model_digest="m", shards_digest="s", thumbnail_px=thumbnail_px, rules=rules)
        write_index(part, images(), build, facts)
    return folder


def load(folder):
    return ImageIndex.load(folder, VectorIndex.load)


@pytest.fixture(scope="module", params=[100, 1], ids=["exact", "approximate"])
def index(request, tmp_path_factory):
    return load(write(tmp_path_factory.mktemp("index") / "index", exact_below=request.param))


def keys(index, k=8, splits=(), words=(), exclude=()):
    allowed = index.allowed(splits, words)
    return {hit.item.key for hit in index.search(VECTORS[0], k, allowed=allowed, exclude=exclude)}


def test_rows_are_what_was_written(index):
    assert list(index.items) == ITEMS
    assert [tuple(texts) for texts in index.items.texts()] == TEXTS
    for row, item in enumerate(ITEMS):
        assert index.item(item.key) == item
        assert index.thumbnail(item.key) == f"jpeg of {item.key}".encode()
        assert np.array_equal(index.vector(item.key), VECTORS[row])
        pages = [f"https://{key}.example/{item.image_id}" for key in item.keys]
        assert [one.page_url for one in index.addresses(item.key)] == pages
    assert index.header.rules == {"a_rule": "x < 3", "another": None}


@pytest.mark.parametrize("key", ["", "000000008", "00000000", "999999999", "é"])
def test_a_key_that_no_image_has(index, key):
    for ask in (index.item, index.vector, index.thumbnail, index.addresses):
        with pytest.raises(DataError, match=r"no image with key .*align search"):
            ask(key)


def test_splits_exclusions_and_fewer_than_k(index):
    tests = {item.key for item in ITEMS if item.split == "test"}
    assert keys(index, splits=["test"]) == tests and keys(index, splits=["test", "train"]) == {i.key for i in ITEMS}
    assert keys(index, splits=["test"], words=["heart"]) == {ITEMS[0].key, ITEMS[6].key}
    assert keys(index, splits=["nope"]) == set()
    assert len(keys(index, 2, splits=["test"])) == 2
    assert keys(index, 3, splits=["test"], exclude=[ITEMS[0].key]) == tests - {ITEMS[0].key}
    assert keys(index, 100) == {item.key for item in ITEMS}
    assert [hit.item.key for hit in index.search(VECTORS[2], 1)] == [ITEMS[2].key]


def test_without_thumbnails(tmp_path):
    index = load(write(tmp_path / "index", thumbnail_px=0))
    assert not index.has_thumbnails and not (tmp_path / "index/thumbnails.jpegs").exists()
    with pytest.raises(DataError, match=r"no thumbnails; set index.thumbnail_px"):
        index.thumbnail(ITEMS[0].key)


def test_an_open_index_stays_what_it_was_when_the_folder_is_replaced(tmp_path):
    index = load(write(tmp_path / "index", exact_below=1))
    write(tmp_path / "index", thumbnail_px=0)
    assert index.thumbnail(ITEMS[3].key) == f"jpeg of {ITEMS[3].key}".encode()
    assert [hit.item for hit in index.search(VECTORS[5], 1)] == [ITEMS[5]]


def test_an_index_of_an_earlier_version(tmp_path):
    folder = write(tmp_path / "index")
    header = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(header | {"schema_version": 4}))
    with pytest.raises(FormatError, match=r"schema_version 4, but this code reads 5; run `align index` again"):
        load(folder)


@pytest.mark.parametrize("name", ["items.parquet", "thumbnails.jpegs", "vectors.faiss", "vectors.npy"])
def test_a_file_that_is_cut_off_longer_or_missing(tmp_path, name):
    file = write(tmp_path / "index", exact_below=1) / name
    good = file.read_bytes()
    for bad in (good[:-1], good + b"x", b""):
        file.write_bytes(bad)
        with pytest.raises(CorruptError, match=rf"{name}: .* bytes, not the .*run `align index` again"):
            load(tmp_path / "index")
    file.unlink()
    with pytest.raises(CorruptError, match=f"{name}: missing"):
        load(tmp_path / "index")


def _other_number(table):
    return table.slice(1)


def _far_thumbnails(table):
    field = table.schema.field("thumbnail_offset_bytes")
    return table.set_column(table.schema.get_field_index(field.name), field, pa.array([1 << 40] * 8, pa.int64()))


@pytest.mark.parametrize("change", [_other_number, _far_thumbnails])
def test_a_table_that_does_not_belong_to_the_rest(tmp_path, change):
    file = write(tmp_path / "index") / "items.parquet"
    pq.write_table(change(pq.read_table(file, read_dictionary=["split", "shard"])), file)
    _say_size(tmp_path / "index", "items.parquet")
    with pytest.raises(CorruptError, match=r"run `align index` again"):
        load(tmp_path / "index").thumbnail(ITEMS[0].key)


def _say_size(folder, name):
    header = json.loads((folder / "index.json").read_text())
    header["files"][name] = (folder / name).stat().st_size
    (folder / "index.json").write_text(json.dumps(header))


def test_vectors_without_a_digest_of_their_own_are_refused(tmp_path):
    folder = write(tmp_path / "index")
    good = (folder / "index.json").read_text()
    for bad in (
        good.replace('"vectors.faiss": "', '"vectors.faisz": "'),
        good.replace('"vectors.faiss": "', '"../x": "'),
    ):
        assert bad != good
        (folder / "index.json").write_text(bad)
        with pytest.raises(CorruptError, match=r"vectors\.faiss: damaged"):
            load(folder)
