"""Whether an index or a filter's output shows what somebody asked to forget."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.errors import DataError
from align.lineage.shard_samples import filtered_shows, index_shows

SHA_A, SHA_B, SHA_C = ("a" * 64, "b" * 64, "c" * 64)


def test_an_index_is_looked_into(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image_id": [SHA_A, SHA_B]}), tmp_path / "items.parquet")
    assert index_shows(tmp_path, frozenset({SHA_B, SHA_C}))
    assert not index_shows(tmp_path, frozenset({SHA_C}))


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
