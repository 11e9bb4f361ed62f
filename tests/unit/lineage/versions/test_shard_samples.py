"""Whether an index or a filter's output shows what somebody asked to forget."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import CorruptError, DataError
from align.formats.pair_addresses import write_addresses
from align.formats.policy import Entry, OptedOut
from align.lineage.versions.shard_samples import count_pairs, filtered_shows, index_shows, iter_stored_samples
from tests.support import small_data
from tests.support.small_data import Pair

SHA_A, SHA_B, SHA_C = ("a" * 64, "b" * 64, "c" * 64)


def test_an_index_is_looked_into(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": [SHA_A, SHA_B]}), tmp_path / "items.parquet")
    assert index_shows(tmp_path, frozenset({SHA_B, SHA_C}), OptedOut())
    nobody = OptedOut([Entry("host", "other.example", "", "")])
    assert not index_shows(tmp_path, frozenset({SHA_C}), nobody)  # an older index has no addresses
    pages, pictures = pa.array(["https://a.example/page", "", ""]), pa.array(["", "https://b.example/1.jpg", ""])
    write_addresses(tmp_path, np.array([1, 2]), pages, pictures)
    assert not index_shows(tmp_path, frozenset({SHA_C}), nobody)
    for kind, value in (("host", "b.example"), ("url", "https://a.example/page")):
        assert index_shows(tmp_path, frozenset(), OptedOut([Entry(kind, value, "", "")]))
    (tmp_path / "addresses.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CorruptError, match=r"addresses.parquet: damaged .*align index"):
        index_shows(tmp_path, frozenset(), nobody)


def test_a_filter_that_knew_of_the_request_may_have_kept_the_text(tmp_path: Path) -> None:
    def shows(text: str, entry: str | None, *texts: tuple[str | None, str]) -> bool:
        pq.write_table(pa.table({"image_id": [SHA_A], "text": [text]}), tmp_path / "decisions.parquet")
        pq.write_table(pa.table({"opted_out": pa.array([entry], pa.string())}), tmp_path / "facts.parquet")
        return filtered_shows(tmp_path, frozenset(texts))

    assert shows("a fox", "host:host.org")
    assert not shows("", "host:host.org")
    assert shows("a fox", None, (SHA_A, "a fox"))
    assert not shows("a fox", None, (SHA_B, "a fox"), (SHA_A, "an owl"))
    (tmp_path / "facts.parquet").unlink()
    with pytest.raises(DataError, match="unreadable"):
        filtered_shows(tmp_path, frozenset())


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twenty pictures of a pair each, and two more pairs of the first; the last five are the split val."""
    pairs = [Pair(f"fox {number}", number) for number in range(20)]
    small_data.write(tmp_path, [*pairs, Pair("a", 0), Pair("fox 0", 0)])
    return small_data.write_shards(tmp_path, num_val=5)


def test_few_pictures_are_found_as_many_are(shards: Path) -> None:
    samples = list(iter_stored_samples(shards))
    assert len(samples) == 20
    for number in (1, 3, 15):  # above eight, every sample is parsed
        chosen = frozenset(sample.image_id for sample in samples[-number:])
        assert list(iter_stored_samples(shards, None, chosen)) == samples[-number:]
        assert count_pairs(shards, chosen) == {"val": 5, "train": number - 5} if number > 5 else {"val": number}
    first = samples[0]
    assert count_pairs(shards, frozenset({first.image_id})) == {"train": 3}
    assert count_pairs(shards, frozenset({first.image_id}), text="fox 0") == {"train": 2}
    with (shards / first.tar).open("rb") as file:
        file.seek(first.offset_bytes)
        assert file.read(first.size_bytes)[:2] == b"\xff\xd8"


@pytest.mark.parametrize("number", [1, 12], ids=["few", "many"])
def test_a_tar_that_is_cut_off_is_no_answer(shards: Path, number: int) -> None:
    chosen = frozenset(sample.image_id for sample in list(iter_stored_samples(shards))[-number:])
    tar = shards / "train/00000.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    with pytest.raises(CorruptError, match=r"00000\.tar: cut off or damaged"):
        count_pairs(shards, chosen)
