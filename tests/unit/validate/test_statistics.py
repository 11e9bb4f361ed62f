"""What the quality gate measures, by a real engine over hand-made tables: every fault has its own number."""

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.services.engine import open_engine
from align.validate.statistics import MEASURED, ZERO, measure
from align.validate.validate import view_values
from tests.support import small_data
from tests.support.gates import ENGINE, pairs, rewrite

REASONS = ("image_too_small", "text_too_short")


def measured(root, *, ids=(), hashes=(), incomplete=()):
    """The statistics that are not what good data has."""
    with open_engine(ENGINE) as engine:
        engine.view("raw", root / "raw/*.parquet")
        engine.view("decisions", root / "filtered/decisions/*.parquet")
        engine.view("images", root / IMAGES)
        view_values(engine, "evaluation_ids", "image_id", pa.array(ids, pa.string()))
        view_values(engine, "evaluation_hashes", "phash", pa.array(hashes, pa.uint64()))
        return measure(engine.rows, REASONS, incomplete)


GOOD = {
    **dict.fromkeys(ZERO, 0),
    "raw_pairs": 20,
    "raw_success_share": 1.0,
    "keep_rate": 0.7,
    "kept_evaluation_hashes": 0.0,
    "dropped_image_too_small": 0.15,
    "dropped_text_too_short": 0.15,
}


def changed(numbers):
    return {name: value for name, value in numbers.items() if value != GOOD[name]}


def edit(path, **values):
    """Changes the first row of a table."""
    return lambda root: rewrite(root / path, lambda rows: [rows[0] | values, *rows[1:]])


def edit_all_images(**values):
    return lambda root: rewrite(root / IMAGES, lambda rows: [row | values for row in rows])


def leak(root):
    kept = pq.read_table(root / DECISIONS).to_pylist()[0]["image_id"]
    sets = {True: ["concepts"], False: []}
    rewrite(root / IMAGES, lambda rows: [row | {"evaluation_sets": sets[row["image_id"] == kept]} for row in rows])


RAW, DECISIONS, IMAGES = "raw/00000.parquet", "filtered/decisions/00000.parquet", "filtered/images.parquet"


def test_good_data_has_no_fault(tmp_path):
    small_data.write(tmp_path, pairs(), pairs_per_shard=7)
    assert measured(tmp_path) == GOOD
    assert set(GOOD) >= set(ZERO) | set(MEASURED)


@pytest.mark.parametrize(("spoil", "expected"), [
    (leak, {"kept_evaluation_images": 1}),
    (edit(RAW, status=None), {"raw_null_statuses": 1, "raw_success_share": 0.95}),
    (edit(RAW, status="failed_to_download"), {"raw_success_share": 0.95}),
    (edit(RAW, status="not_fetched"), {}),  # it was not to be fetched
    (edit(RAW, url=None), {"raw_null_urls": 1}),
    (edit(RAW, width=0), {"raw_success_without_size": 1}),
    (edit(RAW, key=None), {"raw_null_keys": 1, "rows_without_decision": 1, "decisions_without_row": 1}),
    (edit(RAW, key="000000001"), {"raw_duplicate_keys": 1, "decisions_without_row": 1}),
    (edit(DECISIONS, key="000000001"), {"decisions_duplicate_keys": 1, "rows_without_decision": 1}),
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
    (edit(DECISIONS, keep=False, reason="b", reasons=["b", "a"]), {"keep_rate": 0.65}),
    (edit(DECISIONS, text=""), {"kept_without_image_or_text": 1}),
    (edit(DECISIONS, image_key=None), {"kept_without_image_or_text": 1}),
    (edit(DECISIONS, image_id="f" * 64), {"kept_unknown_images": 1}),
    (edit_all_images(phash=None), {"kept_unmeasured_images": 14}),
    (edit_all_images(nsfw_score=None), {"kept_unmeasured_images": 14}),
    (lambda root: rewrite(root / IMAGES, lambda rows: [*rows, rows[-1]]), {"images_duplicate_ids": 1}),
])  # fmt: skip
def test_each_fault_has_a_number_of_its_own(tmp_path, spoil, expected):
    small_data.write(tmp_path, pairs())
    spoil(tmp_path)
    assert changed(measured(tmp_path)) == expected


def test_evaluation_images_are_searched_for_by_bytes_and_by_hash(tmp_path):
    """Independent of what the filter says about them; a dropped pair may show one."""
    small_data.write(tmp_path, pairs())
    sha256 = [hashlib.sha256(small_data.jpeg(image)).hexdigest() for image in (3, 20)]  # one kept, one dropped
    assert changed(measured(tmp_path, ids=tuple(sha256))) == {"kept_evaluation_bytes": 1}
    hashes = (small_data.far_apart(3), small_data.far_apart(20))
    assert changed(measured(tmp_path, hashes=hashes)) == {"kept_evaluation_hashes": 1 / 14}


def test_what_needs_a_missing_column_is_not_measured(tmp_path):
    small_data.write(tmp_path, pairs())
    path = tmp_path / IMAGES
    pq.write_table(pq.read_table(path).drop_columns(["phash"]), path)
    numbers = measured(tmp_path, incomplete=("images",))
    assert numbers["kept_unmeasured_images"] is None and numbers["images_duplicate_ids"] is None
    assert numbers["keep_rate"] == 0.7
