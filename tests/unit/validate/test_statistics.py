"""What the quality gate measures, by a real engine over hand-made tables: every fault has its own number."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.engine import EngineConfig
from align.errors import FormatError
from align.services.engine import open_engine
from align.validate.statistics import MEASURED, ZERO, manifest_faults, measure
from tests.support import small_data
from tests.support.small_data import Pair

ENGINE = EngineConfig(
    runner="duckdb", spark_master="local[*]", num_workers=1, memory_limit="300MB", num_threads=1, temp_directory=None
)
REASONS = ("image_too_small", "text_too_short")


def pairs() -> list[Pair]:
    """20 pairs: 14 kept (0.7), 3 too small (0.15), 3 too short (0.15)."""
    rows = [Pair(f"picture number {index}", index) for index in range(14)]
    rows += [Pair(f"small picture {index}", 20 + index, reason="image_too_small") for index in range(3)]
    return rows + [Pair("short", 30 + index, reason="text_too_short") for index in range(3)]


def measured(
    root: Path, *, ids: tuple[str, ...] = (), hashes: tuple[int, ...] = (), incomplete: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The statistics that are not what good data has."""
    with open_engine(ENGINE) as engine:
        engine.view("raw", root / "raw" / "*.parquet")
        for name in ("decisions", "images"):
            engine.view(name, root / "filtered" / f"{name}.parquet")
        for name, column, values, kind in (
            ("evaluation_ids", "image_id", ids, pa.string()),
            ("evaluation_hashes", "phash", hashes, pa.uint64()),
        ):
            pq.write_table(pa.table({column: pa.array(values, kind)}), engine.scratch / f"{name}.parquet")
            engine.view(name, engine.scratch / f"{name}.parquet")
        return measure(engine.rows, REASONS, incomplete)


GOOD = {
    **dict.fromkeys(ZERO, 0), "raw_pairs": 20, "raw_success_share": 1.0, "keep_rate": 0.7,
    "kept_evaluation_hashes": 0.0,
    "unlisted_reasons": 0, "dropped_image_too_small": 0.15, "dropped_text_too_short": 0.15,
}  # fmt: skip


def changed(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if value != GOOD[name]}


def rewrite(path: Path, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)


def edit(path: str, **values: object) -> Callable[[Path], None]:
    """Changes the first row of a table."""
    return lambda root: rewrite(root / path, lambda rows: [rows[0] | values, *rows[1:]])


def edit_all_images(**values: object) -> Callable[[Path], None]:
    return lambda root: rewrite(root / IMAGES, lambda rows: [row | values for row in rows])


def leak(root: Path) -> None:
    kept = pq.read_table(root / DECISIONS).to_pylist()[0]["image_id"]
    sets = {True: ["concepts"], False: []}
    rewrite(root / IMAGES, lambda rows: [row | {"evaluation_sets": sets[row["image_id"] == kept]} for row in rows])


RAW, DECISIONS, IMAGES = "raw/00000.parquet", "filtered/decisions.parquet", "filtered/images.parquet"


def test_good_data_has_no_fault(tmp_path: Path) -> None:
    small_data.write(tmp_path, pairs(), pairs_per_shard=7)
    assert measured(tmp_path) == GOOD
    assert set(GOOD) >= set(ZERO) | set(MEASURED)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (leak, {"kept_evaluation_images": 1}),
        (edit(RAW, status=None), {"raw_null_statuses": 1, "raw_success_share": 0.95}),
        (edit(RAW, url=None), {"raw_null_urls": 1}),
        (edit(RAW, width=0), {"raw_success_without_size": 1}),
        (edit(RAW, key=None), {"raw_null_keys": 1, "rows_without_decision": 1, "decisions_without_row": 1}),
        (
            edit(RAW, key="000000001"),
            {"raw_duplicate_keys": 1, "decisions_without_row": 1},
        ),
        (
            edit(DECISIONS, key="000000001"),
            {"decisions_duplicate_keys": 1, "rows_without_decision": 1},
        ),
        (edit(DECISIONS, keep=None), {"decisions_null_keep": 1, "keep_rate": 0.65}),
        (edit(DECISIONS, keep=False), {"decisions_against_reason": 1, "keep_rate": 0.65}),
        (
            edit(DECISIONS, keep=False, reason="text_too_short", reasons=["a", "text_too_short"]),
            {"decisions_reason_not_first": 1, "keep_rate": 0.65, "dropped_text_too_short": 0.2},
        ),
        (  # a reason that only begins like the first one
            edit(DECISIONS, keep=False, reason="text_too_short", reasons=["text_too_short_"]),
            {"decisions_reason_not_first": 1, "keep_rate": 0.65, "dropped_text_too_short": 0.2},
        ),
        (edit(DECISIONS, reasons=["a"]), {"decisions_reason_not_first": 1}),
        (edit(DECISIONS, keep=False, reason="b", reasons=["b", "a"]), {"unlisted_reasons": 1, "keep_rate": 0.65}),
        (edit(DECISIONS, text=""), {"kept_without_image_or_text": 1}),
        (edit(DECISIONS, image_key=None), {"kept_without_image_or_text": 1}),
        (edit(DECISIONS, image_id="f" * 64), {"kept_unknown_images": 1}),
        (edit_all_images(phash=None), {"kept_unmeasured_images": 14}),
        (edit_all_images(nsfw_score=None), {"kept_unmeasured_images": 14}),
        (lambda root: rewrite(root / IMAGES, lambda rows: [*rows, rows[-1]]), {"images_duplicate_ids": 1}),
    ],
)  # fmt: skip
def test_each_fault_has_a_number_of_its_own(
    tmp_path: Path, spoil: Callable[[Path], None], expected: dict[str, object]
) -> None:
    small_data.write(tmp_path, pairs())
    spoil(tmp_path)
    assert changed(measured(tmp_path)) == expected


def test_evaluation_images_are_looked_for_by_bytes_and_by_hash(tmp_path: Path) -> None:
    """Whatever the filter says of them; a dropped pair may show one."""
    small_data.write(tmp_path, pairs())
    sha256 = [hashlib.sha256(small_data.jpeg(image)).hexdigest() for image in (3, 20)]  # one kept, one dropped
    assert changed(measured(tmp_path, ids=tuple(sha256))) == {"kept_evaluation_bytes": 1}
    hashes = (small_data.far_apart(3), small_data.far_apart(20))
    assert changed(measured(tmp_path, hashes=hashes)) == {"kept_evaluation_hashes": 1 / 14}


def test_what_needs_a_column_that_is_not_there_is_not_measured(tmp_path: Path) -> None:
    small_data.write(tmp_path, pairs())
    path = tmp_path / IMAGES
    pq.write_table(pq.read_table(path).drop_columns(["phash"]), path)
    numbers = measured(tmp_path, incomplete=("images",))
    assert numbers["kept_unmeasured_images"] is None and numbers["images_duplicate_ids"] is None
    assert numbers["keep_rate"] == 0.7


def write_manifest(root: Path, **changes: object) -> None:
    shards = []
    for table in sorted((root / "raw").glob("*.parquet")):
        shards.append({
            "name": table.stem, "num_pairs": pq.read_metadata(table).num_rows, "tar_sha256": "",
            "tar_bytes": table.with_suffix(".tar").stat().st_size,
            "table_sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
        })  # fmt: skip
    shards[0] |= changes
    (root / "raw" / "manifest.json").write_text(json.dumps({"schema_version": 1, "shards": shards}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"table_sha256": "0" * 64}, {"raw_shards_changed": 1}),
        ({"tar_bytes": 1}, {"raw_shards_changed": 1}),
        ({"num_pairs": 6}, {"raw_shards_of_another_count": 1}),
        ({"name": "00007"}, {"raw_shards_unlisted_or_missing": 2}),  # 00007 is not there, 00000 not listed
    ],
)
def test_raw_shards_are_held_against_their_manifest(
    tmp_path: Path, changes: dict[str, object], expected: dict[str, int]
) -> None:
    small_data.write(tmp_path, pairs(), pairs_per_shard=7)
    write_manifest(tmp_path, **changes)
    faults = manifest_faults(tmp_path / "raw")
    assert faults is not None
    assert {name: num for name, num in faults.items() if num} == expected


def test_a_tar_that_lies_in_an_object_store_is_not_looked_at(tmp_path: Path) -> None:
    small_data.write(tmp_path, pairs())
    write_manifest(tmp_path)
    (tmp_path / "raw" / "00000.tar").unlink()
    assert set((manifest_faults(tmp_path / "raw") or {"none": 1}).values()) == {0}


def test_without_a_manifest_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    small_data.write(tmp_path, pairs())
    assert manifest_faults(tmp_path / "raw") is None
    (tmp_path / "raw" / "manifest.json").write_text('{"shards": [{"name": "00000"}]}')
    with pytest.raises(FormatError, match=r"manifest\.json: not a manifest of `align ingest`"):
        manifest_faults(tmp_path / "raw")
