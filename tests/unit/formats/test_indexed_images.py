"""items.parquet: words as RE2 finds them, addresses of each pair, conditions, bounded memory, and damage."""

import os
import sys
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import CorruptError
from align.formats import indexed_images
from align.formats.indexed_images import ITEMS, IndexedImages, PairAddress
from tests.support import indexed

HOSTILE = [
    "javascript:alert(1)", "data:text/html,<script>x</script>", "https://a.example/\u202egpj.exe", "",
    "\"'><img src=x>", "https://a.example/" + "x" * 10_000, "\0\n", "赤い/ä",
]  # fmt: skip
PICTURES = [f"https://p.example/{number}" for number in range(len(HOSTILE))]
#: Pairs of each image.
NUMS = [1, 3, 2, 2]


def lists(values):
    ends = np.cumsum(NUMS)
    return [values[end - number : end] for end, number in zip(ends, NUMS, strict=True)]


def write(folder):
    texts = lists([f"a text of {number}" for number in range(len(HOSTILE))])
    return indexed.write(folder, 4, texts=texts, page_urls=lists(HOSTILE), urls=lists(PICTURES))


def with_word(folder, texts, *words, **others):
    images = IndexedImages.load(indexed.write(folder, len(texts), texts=texts))
    return np.flatnonzero(images.matching(words=words, **others)).tolist()


@pytest.mark.parametrize(("text", "word"), [
    ("a Heart", "hEART"), ("a\nheart", "heart"), ("heart-shaped", "heart"), ("(heart)", "heart"), ("C++ (c)", "c++"),
    ("100%", "100%"), ("100%", "100"), ("Ein ÄRGER", "ärger"), ("ΟΔΟΣ", "οδος"), ("ﬅ", "ﬆ"), ("Straße", "STRAẞE"),
    ("\u212a", "k"), ("赤い heart", "赤い"), ("x\u3000y", "y"), ("don't", "don't"), ("a.b", "a.b"),
])  # fmt: skip
def test_whole_words_are_found_in_upper_and_lower_case(tmp_path, text, word):
    texts = [["other", f"so {text} is"], [f"so {text}"], [f"{text} is"], [text]]
    assert with_word(tmp_path, texts, word) == [0, 1, 2, 3]


@pytest.mark.parametrize(("text", "word"), [
    ("hearts", "heart"), ("sweetheart", "heart"), ("heart_1", "heart"), ("heart١", "heart"), ("hearté", "heart"),
    ("e\u0301", "e"), ("c+++", "c++1"), ("axb", "a.b"), ("a text", "(?:)"), ("a text", "."), ("", "a"),
])  # fmt: skip
def test_parts_of_words_and_patterns_are_not(tmp_path, text, word):
    assert with_word(tmp_path, [[text], []], word) == []


def test_each_of_several_words_is_in_some_text_of_the_image(tmp_path):
    texts = [[f"picture {number}", "of somebody (else)"] if number % 3 else ["a picture"] for number in range(100)]
    assert with_word(tmp_path, texts, "picture", "else", "17") == [17]
    assert with_word(tmp_path, texts, "(else)", "PICTURE") == [number for number in range(100) if number % 3]
    assert with_word(tmp_path, texts, "17", "18") == [] == with_word(tmp_path, texts, "17", splits=["val"])
    assert with_word(tmp_path, texts, "17", splits=["val", "train"]) == [17]


@pytest.mark.usefixtures("any_blocks")
def test_every_image_gets_the_addresses_of_its_own_pairs(tmp_path):
    images = IndexedImages.load(write(tmp_path))
    found = [images.addresses(position) for position in range(4)]
    assert [[one.page_url for one in some] for some in found] == lists(HOSTILE)
    assert [[one.url for one in some] for some in found] == lists(PICTURES)
    asked = list[tuple[str, str]]()
    assert not images.listed([], lambda *one: bool(asked.append(one))).any()
    assert asked == list(zip(PICTURES, HOSTILE, strict=True))
    listed = images.listed(["1".zfill(64)], lambda url, page: page == "\0\n" or url.endswith("/0"))
    assert listed.tolist() == [True, True, False, True]


def test_what_is_open_stays_when_the_file_is_replaced(tmp_path):
    images = IndexedImages.load(write(tmp_path))
    (tmp_path / "new").write_bytes(b"other")
    os.replace(tmp_path / "new", tmp_path / ITEMS)
    assert images.addresses(0) == (PairAddress(HOSTILE[0], PICTURES[0]),)


@pytest.mark.parametrize("change", [
    {"key": pa.array([None] * 4, pa.string())}, {"texts": [["x", None]] * 4}, {"keys": [[None]] * 4},
    {"split": ["train", None, "val", "val"]}, {"columns": pa.array([None, {"a": 1.0}, None, None])},
    {"columns": pa.array([{"a": 1}] * 4)}, {"columns": [1] * 4},
])  # fmt: skip
def test_a_table_that_does_not_belong_to_the_rest(tmp_path, change):
    with pytest.raises(CorruptError, match=r"items\.parquet: damaged .*run `align index` again"):
        IndexedImages.load(indexed.write(tmp_path, 4, **change))


def test_other_columns_and_other_rows_are_refused(tmp_path):
    table = pq.read_table(write(tmp_path) / ITEMS, read_dictionary=["split", "shard"])
    with pytest.raises(CorruptError, match=r"damaged .*4 rows, not 5"):
        IndexedImages.load(tmp_path, 5)
    for other in (table.drop_columns(["keys"]), table.append_column("more", table["key"])):
        pq.write_table(other, tmp_path / ITEMS)
        with pytest.raises(CorruptError, match=r"damaged .*other columns"):
            IndexedImages.load(tmp_path)


def test_an_image_with_fewer_addresses_than_pairs_is_damaged(tmp_path):
    for addresses in ([[""]] * 2, [[None]] * 2, [None] * 2):
        images = IndexedImages.load(indexed.write(tmp_path, 2, texts=[["a", "b"]] * 2, page_urls=pa.array(addresses)))
        with pytest.raises(CorruptError, match="damaged"):
            images.addresses(1)


def test_damage_is_one_line_or_changes_nothing(tmp_path):
    def read():
        images = IndexedImages.load(tmp_path)
        return list(images), [images.addresses(place) for place in range(4)], images.matching(words=["7"]).tolist()

    good, whole = (write(tmp_path) / ITEMS).read_bytes(), read()
    num_found = 0
    for place in range(0, len(good), max(1, len(good) // 400)):
        (tmp_path / ITEMS).write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :])
        try:
            assert read() == whole, place
        except CorruptError as error:
            num_found += 1
            assert "\n" not in str(error)
    assert num_found > 100


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a process's memory")
def test_a_small_table_of_much_memory_is_refused(tmp_path):
    table = pq.read_table(indexed.write(tmp_path, 96) / ITEMS)
    keys = pa.DictionaryArray.from_arrays(pa.array([0] * 96, pa.int32()), pa.array(["x" * (16 << 20)]))
    options = {"store_schema": False, "write_statistics": False, "dictionary_pagesize_limit": 1 << 30}
    pq.write_table(table.set_column(0, "key", keys), tmp_path / ITEMS, compression="zstd", **options)
    assert (tmp_path / ITEMS).stat().st_size < 100_000
    with pytest.raises(CorruptError, match=r"items\.parquet: damaged"):
        IndexedImages.load(tmp_path, 96)


def test_the_table_is_read_in_bounded_memory(tmp_path, monkeypatch):
    bounds = []

    @contextmanager
    def at_most(num_bytes):
        bounds.append(num_bytes)
        yield

    monkeypatch.setattr(indexed_images, "allocating_at_most", at_most)
    images = IndexedImages.load(write(tmp_path), 4)
    images.addresses(0)
    images.listed([], lambda url, page: False)
    assert len(bounds) >= 4 and all(256 << 20 <= bound < 512 << 20 for bound in bounds)
