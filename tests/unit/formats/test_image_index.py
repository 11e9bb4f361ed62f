"""data/index: rows on demand, thumbnails, filters, and what becomes of files that are damaged or old."""

import json
import sys
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.durable.files import replace_directory
from align.errors import CorruptError, DataError, FormatError
from align.formats import parquet
from align.formats.image_index import ImageIndex, write_index
from align.formats.indexed_columns import IndexedColumns
from align.formats.indexed_images import IndexedImage
from align.formats.pair_addresses import PairAddress
from align.services.vector_index import VectorIndex
from tests.support.bombs import parquet_bomb

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
    def build(path, images):
        for item in ITEMS:
            images.add(item, f"jpeg of {item.key}".encode() if thumbnail_px else b"")
        return VectorIndex.build([VECTORS], path, num_vectors=8, exact_below=exact_below)

    def find(pairs):
        for pair in [pair for table in pairs for pair in table.to_pylist()]:
            page = f"https://{pair['key']}.example/{pair['image_id']}"
            yield pa.table({"page_urls": [page], "urls": ["https://p.example/"]})

    rules = {"a_rule": "x < 3", "another": None}
    with replace_directory(folder, "index") as part:
        write_index(part, build, find, model_digest="m", shards_digest="s", thumbnail_px=thumbnail_px, rules=rules)
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
    assert list(index.items) == ITEMS == index.items[:] and index.items[-1] == ITEMS[-1]
    assert [tuple(texts) for texts in index.items.texts()] == TEXTS
    with pytest.raises(IndexError):
        index.items[8]
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


@pytest.mark.parametrize(("words", "rows"), [
    (["heart"], {0, 1, 6}), (["RED"], {0, 1}), (["red heart"], {0}), (["heart", "red"], {0, 1}),
    (["ärger"], {3}), (["c++"], {4}), (["100%"], {4}), (["(c)"], {4}), (["."], set()), (["赤い"], {5}),
    (["a heart"], {6}), (["absent"], set()),
])  # fmt: skip
def test_words_of_the_texts(index, words, rows):
    assert keys(index, words=words) == {ITEMS[row].key for row in rows}


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
    (folder / "words.parquet").unlink()
    header = json.loads((folder / "index.json").read_text())
    del header["files"]["words.parquet"]
    for version in (1, 2, 3):
        (folder / "index.json").write_text(json.dumps(header | {"schema_version": version}))
        with pytest.raises(FormatError, match=f"schema_version {version}, but this code reads 4; run `align index`"):
            load(folder)


def test_an_index_whose_addresses_nobody_gave(tmp_path):
    def build(path, images):
        images.add(ITEMS[0], b"jpeg")
        return VectorIndex.build([VECTORS[:1]], path, num_vectors=1, exact_below=100)

    nothing = pa.table({name: pa.array([""] * 2) for name in ("page_urls", "urls")})
    write_index(tmp_path, build, lambda *_: [nothing], model_digest="m", shards_digest="s", thumbnail_px=160)
    assert load(tmp_path).addresses(ITEMS[0].key) == (PairAddress("", ""),) * 2
    assert load(tmp_path).header.rules == {}


@pytest.mark.parametrize(
    "name", ["items.parquet", "words.parquet", "addresses.parquet", "thumbnails.jpegs", "vectors.faiss", "vectors.npy"]
)
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


def _missing_values(table):
    return table.set_column(0, table.schema.field("key"), pa.array([None] * 8, pa.string()))


def _other_columns(table):
    return table.drop_columns(["keys"])


def _far_thumbnails(table):
    field = table.schema.field("thumbnail_offset_bytes")
    return table.set_column(table.schema.get_field_index(field.name), field, pa.array([1 << 40] * 8, pa.int64()))


@pytest.mark.parametrize("change", [_other_number, _missing_values, _other_columns, _far_thumbnails])
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's memory")
def test_a_small_table_of_much_memory_is_refused(tmp_path):
    parquet_bomb(tmp_path / "columns.parquet", 96, num_bytes=16 << 20)
    with pytest.raises(CorruptError, match=r"columns\.parquet: damaged"):
        IndexedColumns.load(tmp_path, 96)


def test_every_table_is_read_in_bounded_memory(tmp_path, monkeypatch):
    bounds = []

    @contextmanager
    def at_most(num_bytes):
        bounds.append(num_bytes)
        yield

    monkeypatch.setattr(parquet, "allocating_at_most", at_most)
    write(tmp_path / "index")
    pq.write_table(pa.table({"price": [1.0] * 8}), tmp_path / "index/columns.parquet")
    index = load(tmp_path / "index")
    assert len(bounds) == 4 and all(256 << 20 <= bound < 512 << 20 for bound in bounds)
    index.addresses(ITEMS[0].key)
    index.without([], lambda url, page: False)
    assert len(bounds) == 6


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


def test_a_table_whose_bytes_are_damaged(tmp_path):
    file = write(tmp_path / "index") / "items.parquet"
    good = file.read_bytes()
    for place in range(0, len(good), max(1, len(good) // 200)):
        file.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            index = load(tmp_path / "index")
        except CorruptError:
            continue
        assert len(list(index.items)) == 8
