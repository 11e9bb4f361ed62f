"""What differs between data/raw and its manifest."""

import hashlib
import json

import pyarrow.parquet as pq
import pytest

from align.errors import FormatError
from align.validate.expectations import manifest_faults
from tests.support import small_data
from tests.support.gates import pairs


def write_raw_manifest(root, **changes):
    shards = [
        {"name": table.stem, "num_pairs": pq.read_metadata(table).num_rows, "tar_sha256": "",
         "tar_bytes": table.with_suffix(".tar").stat().st_size,
         "table_sha256": hashlib.sha256(table.read_bytes()).hexdigest()}
        for table in sorted((root / "raw").glob("*.parquet"))
    ]  # fmt: skip
    shards[0] |= changes
    (root / "raw" / "manifest.json").write_text(json.dumps({"schema_version": 1, "digest": "", "shards": shards}))


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, {}),
    ({"table_sha256": "0" * 64}, {"raw_shards_changed": 1}),
    ({"tar_bytes": 1}, {"raw_shards_changed": 1}),
    ({"num_pairs": 6}, {"raw_shards_of_another_count": 1}),
    ({"name": "00007"}, {"raw_shards_unlisted_or_missing": 2}),  # 00007 is missing, 00000 is not listed
])  # fmt: skip
def test_raw_shards_are_compared_with_their_manifest(tmp_path, changes, expected):
    small_data.write(tmp_path, pairs(), pairs_per_shard=7)
    write_raw_manifest(tmp_path, **changes)
    faults = manifest_faults(tmp_path / "raw")
    assert {name: num for name, num in faults.items() if num} == expected


def test_a_tar_in_an_object_store_is_not_read(tmp_path):
    small_data.write(tmp_path, pairs())
    write_raw_manifest(tmp_path)
    (tmp_path / "raw" / "00000.tar").unlink()
    assert set((manifest_faults(tmp_path / "raw") or {"no manifest": 1}).values()) == {0}


def test_without_a_manifest_there_is_nothing_to_compare_with(tmp_path):
    small_data.write(tmp_path, pairs())
    assert manifest_faults(tmp_path / "raw") is None
    (tmp_path / "raw" / "manifest.json").write_text(
        '{"schema_version": 1, "digest": "", "shards": [{"name": "00000"}]}'
    )
    with pytest.raises(FormatError, match=r"manifest\.json: .*: Field required; run `align ingest` again"):
        manifest_faults(tmp_path / "raw")
