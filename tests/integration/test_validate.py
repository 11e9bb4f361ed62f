"""The gate on a real Great Expectations."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config import load_params
from align.config.engine import EngineConfig
from align.config.validate import ValidateConfig
from align.errors import GateError
from align.validate import QualityReport, validate
from tests import small_data
from tests.small_data import Pair

CONFIG = ValidateConfig(
    min_pairs=10, min_success_share=0.9, keep_rate=(0.5, 0.8),
    dropped_share={"image_too_small": (0.0, 0.2), "text_too_short": (0.1, 0.5), "image_missing": (0.0, 0.05)},
    min_evaluation_sets=1, sample_rows=15,
)  # fmt: skip
ENGINE = EngineConfig(memory_limit="300MB", num_threads=1, temp_directory=None)


def pairs() -> list[Pair]:
    """20 pairs: 14 kept (0.7), 3 too small (0.15), 3 too short (0.15)."""
    rows = [Pair(f"picture number {index}", index) for index in range(14)]
    rows += [Pair(f"small picture {index}", 20 + index, reason="image_too_small") for index in range(3)]
    return rows + [Pair("short", 30 + index, reason="text_too_short") for index in range(3)]


def judge(root: Path, config: ValidateConfig = CONFIG, checked_sets: tuple[str, ...] = ("concepts",)) -> QualityReport:
    return validate(
        config,
        ENGINE,
        raw=root / "raw",
        filtered=root / "filtered",
        checked_sets=checked_sets,
        reports=root / "quality",
    )


def test_good_data_passes_and_equal_data_gives_equal_reports(tmp_path: Path) -> None:
    small_data.write(tmp_path, pairs(), pairs_per_shard=7)
    report = judge(tmp_path)
    assert report.passed
    assert all(item.passed for item in report.expectations)
    assert report.metrics["quality/keep_rate"] == 0.7
    first = {path.name: path.read_bytes() for path in (tmp_path / "quality").iterdir()}
    judge(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "quality").iterdir()} == first
    assert set(first) == {"report.json", "metrics.json", "report.html"}
    page = first["report.html"].decode()
    assert "share dropped as image_too_small" in page
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)


def test_params_of_the_project_are_a_valid_gate() -> None:
    config = load_params(Path(__file__).parents[2] / "params.yaml").section(ValidateConfig)
    assert config.keep_rate[0] < config.keep_rate[1]


def rewrite(path: Path, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)


def edit_decisions(**values: object) -> Callable[[Path], None]:
    return lambda root: rewrite(root / "filtered" / "decisions.parquet", lambda rows: [rows[0] | values, *rows[1:]])


def edit_images(**values: object) -> Callable[[Path], None]:
    return lambda root: rewrite(root / "filtered" / "images.parquet", lambda rows: [row | values for row in rows])


def leak(root: Path) -> None:
    kept = pq.read_table(root / "filtered" / "decisions.parquet").to_pylist()[0]["image_id"]
    rewrite(
        root / "filtered" / "images.parquet",
        lambda rows: [row | {"evaluation_sets": ["concepts"] if row["image_id"] == kept else []} for row in rows],
    )


def drop_column(root: Path) -> None:
    path = root / "filtered" / "decisions.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["reasons"]), path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (leak, "kept pairs that show an evaluation image: observed 1, expected 0"),
        (edit_decisions(key="000000001"), "pairs decided on twice: observed 1, expected 0"),
        (edit_decisions(keep=None), "decisions that say neither keep nor drop: observed 1, expected 0"),
        (edit_decisions(keep=False), "pairs kept with a reason, or dropped without one: observed 1, expected 0"),
        (edit_decisions(keep=False, reason="b", reasons=["a", "b"]), "not the first of their reasons: observed 1"),
        (edit_decisions(keep=False, reason="b", reasons=["b"]), "a reason that has no band: observed 1"),
        (edit_decisions(text=""), "kept pairs without an image or a text: observed 1, expected 0"),
        (edit_decisions(image_id="f" * 64), r"kept pairs whose image is not in images.parquet: observed 1, expected 0"),
        (edit_images(nsfw_score=1.5), r"nsfw_score: observed 15 of 15 rows are otherwise, such as 1\.5"),
        (edit_images(phash=None), "kept pairs whose image was not hashed or not scored: observed 14, expected 0"),
        (drop_column, "columns of decisions: observed .*, expected key, keep, reason, reasons, image_id"),
    ],
)  # fmt: skip
def test_each_fault_is_named_with_observed_and_threshold(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    small_data.write(tmp_path, pairs())
    spoil(tmp_path)
    with pytest.raises(GateError, match=message):
        judge(tmp_path)
    verdict = json.loads((tmp_path / "quality" / "report.json").read_text())
    assert verdict["passed"] is False
    assert re.search(message, verdict["failure"])
    assert "What failed" in (tmp_path / "quality" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep_rate": (0.71, 0.9)}, "keep rate: observed 0.7, expected 0.71 to 0.9"),
        ({"keep_rate": (0.2, 0.69)}, "keep rate: observed 0.7, expected 0.2 to 0.69"),
        ({"min_pairs": 21}, "pairs: observed 20, expected at least 21"),
        (
            {"dropped_share": {"image_too_small": (0.0, 0.14), "text_too_short": (0.1, 0.5)}},
            "share dropped as image_too_small: observed 0.15, expected 0 to 0.14",
        ),
        (
            {"dropped_share": {"image_too_small": (0.0, 0.2), "text_too_short": (0.16, 0.5)}},
            "share dropped as text_too_short: observed 0.15, expected 0.16 to 0.5",
        ),
    ],
)
def test_bands_hold_at_their_boundary(tmp_path: Path, change: dict[str, object], message: str) -> None:
    small_data.write(tmp_path, pairs())
    exact = {
        "keep_rate": (0.7, 0.7),
        "min_pairs": 20,
        "dropped_share": {"image_too_small": (0.15, 0.15), "text_too_short": (0.15, 0.15)},
    }
    assert judge(tmp_path, CONFIG.model_copy(update=exact)).passed
    with pytest.raises(GateError, match=message):
        judge(tmp_path, CONFIG.model_copy(update=change))


def test_too_few_images_stop_it(tmp_path: Path) -> None:
    small_data.write(tmp_path, [*pairs(), *(Pair("gone", None, reason="image_missing") for _ in range(3))])
    config = CONFIG.model_copy(update={"dropped_share": {**CONFIG.dropped_share, "image_missing": (0.0, 1.0)}})
    with pytest.raises(GateError, match=r"share of pairs with an image: observed 0.869565, expected 0.9 to 1"):
        judge(tmp_path, config)


def test_a_filter_that_checked_no_evaluation_set_is_stopped(tmp_path: Path) -> None:
    small_data.write(tmp_path, pairs())
    with pytest.raises(
        GateError, match="evaluation sets looked for in the training images: observed 0, expected at least 1"
    ):
        judge(tmp_path, checked_sets=())
