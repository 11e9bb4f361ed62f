"""Pairs of data/raw, and samples of data/shards."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import CorruptError, DataError
from align.formats.policy import Entry, OptedOut
from align.formats.raw import iter_images, raw_shards
from align.lineage.take_down.opted_out_pairs import opted_out_pairs
from align.lineage.take_down.purge_raw import purge_raw
from align.lineage.versions.raw_pairs import find_pairs, iter_tables
from align.lineage.versions.shard_samples import count_pairs, counted, iter_stored_samples
from tests.support import small_data
from tests.support.small_data import Pair


@pytest.fixture
def shards(tmp_path):
    """Twenty pictures of a pair each, and two more pairs of the first; the last five are the split val."""
    pairs = [Pair(f"fox {number}", number) for number in range(20)]
    small_data.write(tmp_path, [*pairs, Pair("a", 0), Pair("fox 0", 0)])
    return small_data.write_shards(tmp_path, num_val=5)


def test_the_samples_of_some_pictures_are_found(shards):
    samples = list(iter_stored_samples(shards))
    assert len(samples) == 20
    for number in (3, 15):
        chosen = frozenset(sample.image_id for sample in samples[-number:])
        assert list(iter_stored_samples(shards, None, chosen)) == samples[-number:]
        assert count_pairs(shards, chosen) == {"val": 5, "train": number - 5} if number > 5 else {"val": number}
    first = samples[0]
    assert count_pairs(shards, frozenset({first.image_id})) == {"train": 3}
    assert counted(iter_stored_samples(shards, None, frozenset({first.image_id})), "fox 0") == {"train": 2}
    with (shards / first.tar).open("rb") as file:
        file.seek(first.offset_bytes)
        assert file.read(first.size_bytes)[:2] == b"\xff\xd8"


def test_a_tar_that_is_cut_off_is_no_answer(shards):
    chosen = frozenset(sample.image_id for sample in list(iter_stored_samples(shards))[-1:])
    tar = shards / "train/00000.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    with pytest.raises(CorruptError, match=r"00000\.tar: cut off or damaged"):
        count_pairs(shards, chosen)


PAIRS = [Pair("a red fox", 1), Pair("the same fox", 1), Pair("an owl at night", 2), Pair("a dead link", None)]


@pytest.fixture
def raw(tmp_path):
    return small_data.write(tmp_path, PAIRS, pairs_per_shard=2)[0]


def test_pairs_are_found_by_key_and_by_address(raw):
    (row,) = find_pairs(raw, "key", ["000010000"])
    assert (row["caption"], row["raw_shard"], row["text_source"]) == ("an owl at night", "00001", None)
    assert {row["key"] for row in find_pairs(raw, "key", ["000010000", "000000001"])} == {"000010000", "000000001"}
    assert [row["key"] for row in find_pairs(raw, "url", ["https://example.org/1.jpg"])] == ["000000000", "000000001"]
    assert list(find_pairs(raw, "key", [])) == list(find_pairs(raw, "key", ["no such key"])) == []


def test_a_key_is_looked_up_in_the_table_of_its_name_alone(raw):
    (raw / "00000.parquet").write_bytes(b"no table")
    assert [row["key"] for row in find_pairs(raw, "key", ["000010000"])] == ["000010000"]


def test_a_stock_folder_gets_its_image_keys_and_hashes(raw):
    table = pq.read_table(raw / "00001.parquet").drop_columns(["image_key", "sha256", "page_url"])
    pq.write_table(table, raw / "00001.parquet")
    stored, dead = (next(find_pairs(raw, "key", [key])) for key in ("000010000", "000010001"))
    assert (stored["image_key"], dead["image_key"], dead["sha256"]) == ("000010000", None, None)
    assert stored["sha256"] == hashlib.sha256(small_data.jpeg(2)).hexdigest()
    rows = {name: list(rows) for name, rows in iter_tables(raw)}
    assert [row["image_key"] for row in rows["00001"]] == ["000010000", None]


def test_what_a_stock_folder_states_as_sha256_names_no_picture(raw):
    table = pq.read_table(raw / "00001.parquet").drop_columns(["image_key"])
    index = table.column_names.index("sha256")
    pq.write_table(table.set_column(index, "sha256", pa.array(["0" * 64, None])), raw / "00001.parquet")
    image_id = hashlib.sha256(small_data.jpeg(2)).hexdigest()
    (row,) = find_pairs(raw, "sha256", [image_id])
    assert (row["key"], row["sha256"], row["image_key"]) == ("000010000", image_id, "000010000")
    assert list(find_pairs(raw, "sha256", ["0" * 64])) == []
    rows = {name: list(rows) for name, rows in iter_tables(raw)}
    assert [(row["sha256"], row["stated_sha256"]) for row in rows["00001"]] == [(image_id, "0" * 64), (None, None)]


@pytest.mark.parametrize("kind", ["stored", "stated"])
def test_a_stock_folder_is_purged_by_the_stored_bytes_and_by_those_before_they_were_resized(tmp_path, kind):
    raw, _ = small_data.write(tmp_path, [Pair("a red fox", 1), Pair("a blue fox", 2)])
    table = pq.read_table(raw / "00000.parquet").drop_columns(["image_key", "page_url"])
    index = table.column_names.index("sha256")
    pq.write_table(table.set_column(index, "sha256", pa.array(["f" * 64, "0" * 64])), raw / "00000.parquet")
    image_ids = {"stored": hashlib.sha256(small_data.jpeg(2)).hexdigest(), "stated": "0" * 64}
    opted_out = OptedOut([Entry("image_id", image_ids[kind], "", "2026-01-02")])
    pairs = opted_out_pairs(raw, opted_out)
    assert (pairs.num_pairs, pairs.image_ids, pairs.gone) == (1, set(image_ids.values()), {"000000001"})
    assert purge_raw(raw, opted_out, pairs) == ["00000"]
    assert [key for key, _ in iter_images(*raw_shards(raw))] == ["000000000"]
    assert pq.read_table(raw / "00000.parquet")["caption"].to_pylist() == ["a red fox", ""]


def test_an_unreadable_table_is_one_clear_error(raw):
    (raw / "00001.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match=r"00001\.parquet: not a readable parquet file"):
        for _, rows in iter_tables(raw):
            list(rows)
    with pytest.raises(DataError, match=r"00001\.parquet: not a readable parquet file"):
        list(find_pairs(raw, "url", ["https://example.org/2.jpg"]))
