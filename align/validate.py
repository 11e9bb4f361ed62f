"""validate: the quality gate. Great Expectations judges data/raw and data/filtered; training starts on "passed" only.

Counts, shares and keys are judged over the whole tables: DuckDB computes one row of statistics. Values of single rows
(formats, ranges) are judged on a bounded sample, drawn by a hash of the key so that it is the same rows each time.
Thresholds stand in params.yaml. The paper describes no such gate.

`reports/quality/report.json` holds the verdict (`passed`, and the first `failure`), `report.html` shows every
expectation with the observed value and the threshold. Both are written before a failure is raised.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
from pydantic import BaseModel, ConfigDict

from align import html
from align.config import Params
from align.config.engine import EngineConfig
from align.config.paths import PathsConfig
from align.config.validate import ValidateConfig
from align.errors import DataError, GateError
from align.pairs.layout import raw_shards
from align.services.engine import Engine, open_engine
from align.services.expectations import Expectation, Outcome, check
from align.stage import Report, record_runtime, say, write_report, write_text

#: Statistics over the whole data: name -> SQL that gives one number. Views: raw, decisions, images.
STATISTICS = {
    "raw_pairs": "SELECT count(*) FROM raw",
    "raw_duplicate_keys": "SELECT count(key) - count(DISTINCT key) FROM raw",
    "raw_null_keys": "SELECT count(*) - count(key) FROM raw",
    "raw_null_urls": "SELECT count(*) - count(url) FROM raw",
    "raw_null_statuses": "SELECT count(*) - count(status) FROM raw",
    "raw_success_share": "SELECT count(*) FILTER (status = 'success') / nullif(count(*), 0) FROM raw",
    "raw_success_without_size": (
        "SELECT count(*) FROM raw WHERE status = 'success' AND (coalesce(width, 0) < 1 OR coalesce(height, 0) < 1)"
    ),
    "decisions_duplicate_keys": "SELECT count(key) - count(DISTINCT key) FROM decisions",
    "rows_without_decision": "SELECT count(*) FROM raw ANTI JOIN decisions USING (key)",
    "decisions_without_row": "SELECT count(*) FROM decisions ANTI JOIN raw USING (key)",
    "decisions_null_keep": "SELECT count(*) - count(keep) FROM decisions",
    "decisions_against_reason": "SELECT count(*) FROM decisions WHERE keep <> (reason IS NULL)",
    "decisions_reason_not_first": "SELECT count(*) FROM decisions WHERE reason IS DISTINCT FROM reasons[1]",
    "keep_rate": "SELECT count(*) FILTER (keep) / nullif(count(*), 0) FROM decisions",
    "kept_without_image_or_text": (
        "SELECT count(*) FROM decisions "
        "WHERE keep AND (image_id IS NULL OR image_key IS NULL OR coalesce(text, '') = '')"
    ),
    "kept_unknown_images": "SELECT count(*) FROM decisions ANTI JOIN images USING (image_id) WHERE keep",
    "kept_unmeasured_images": (
        "SELECT count(*) FROM decisions JOIN images USING (image_id) "
        "WHERE keep AND (phash IS NULL OR nsfw_score IS NULL)"
    ),
    "images_duplicate_ids": "SELECT count(image_id) - count(DISTINCT image_id) FROM images",
    "kept_evaluation_images": (
        "SELECT count(*) FROM decisions JOIN images USING (image_id) WHERE keep AND len(evaluation_sets) > 0"
    ),
}  # fmt: skip
#: What must be 0, in the order of the report.
_ZERO = {
    "kept_evaluation_images": "kept pairs that show an evaluation image",
    "raw_duplicate_keys": "keys that occur again",
    "raw_null_keys": "rows without a key",
    "raw_null_urls": "rows without an image URL",
    "raw_null_statuses": "rows without a status",
    "raw_success_without_size": "images without a width and height",
    "decisions_duplicate_keys": "pairs decided on twice",
    "rows_without_decision": "pairs without a decision",
    "decisions_without_row": "decisions about no pair",
    "decisions_null_keep": "decisions that say neither keep nor drop",
    "decisions_against_reason": "pairs kept with a reason, or dropped without one",
    "decisions_reason_not_first": "decisions whose reason is not the first of their reasons",
    "kept_without_image_or_text": "kept pairs without an image or a text",
    "kept_unknown_images": "kept pairs whose image is not in images.parquet",
    "kept_unmeasured_images": "kept pairs whose image was not hashed or not scored",
    "images_duplicate_ids": "images listed twice",
    "unlisted_reasons": "dropped for a reason that has no band",
}

_RAW_COLUMNS = ("url", "caption", "key", "status", "width", "height")
_DECISIONS_COLUMNS = ("key", "keep", "reason", "reasons", "image_id", "image_key", "text")
_IMAGES_COLUMNS = (
    "image_id",
    "image_key",
    "width_px",
    "height_px",
    "nsfw_score",
    "phash",
    "num_texts",
    "evaluation_sets",
)
_STATUSES = ("success", "failed_to_download", "failed_to_resize")


class Judged(BaseModel):
    """One expectation and what came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    what: str
    expectation: str
    observed: str
    threshold: str
    passed: bool


class QualityReport(Report):
    """The verdict. `failure` is the first failed expectation, in the words of the error; null when all passed."""

    passed: bool
    failure: str | None
    expectations: tuple[Judged, ...]


def validate(
    config: ValidateConfig,
    engine_config: EngineConfig,
    *,
    raw: Path,
    filtered: Path,
    checked_sets: Sequence[str],
    reports: Path,
) -> QualityReport:
    """Judges the data and writes report.json, metrics.json and report.html, whatever the verdict.

    Args:
        config: section `validate`.
        engine_config: bounds of the SQL engine.
        raw: data/raw.
        filtered: data/filtered.
        checked_sets: the evaluation sets whose images the filter looked for among the training images.
        reports: reports/quality.

    Raises:
        GateError: an expectation failed; the message has the observed value and the threshold.
        DataError: a table is missing or unreadable.
    """
    with open_engine(engine_config) as engine:
        tables = _tables(config, engine, raw, filtered, len(checked_sets))
    outcomes = check(tables, expectations(config))
    failed = [outcome for outcome in outcomes if not outcome.passed]
    failure = None
    if failed:
        first = failed[0]
        failure = f"{first.expectation.what}: observed {first.observed}, expected {first.expectation.threshold}"
    statistics = {name: value for name, value in tables["statistics"].iloc[0].items() if value is not None}
    report = QualityReport(
        metrics={
            "quality/num_expectations": len(outcomes),
            "quality/num_failed": len(failed),
            "quality/num_pairs": int(statistics.get("raw_pairs", 0)),
            "quality/keep_rate": round(float(statistics.get("keep_rate", 0.0)), 6),
        },
        passed=not failed,
        failure=failure,
        expectations=tuple(_judged(outcome) for outcome in outcomes),
    )
    write_report(report, reports)
    write_text(reports / "report.html", render(report, checked_sets))
    if failure is not None:
        more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
        raise GateError(f"quality gate: {failure}{more}; see {reports / 'report.html'}")
    return report


def expectations(config: ValidateConfig) -> list[Expectation]:
    """The gate, in the order of the report. After the schema comes leakage: it would spoil every later figure."""

    def statistic(what: str, name: str, low: float | None, high: float | None) -> Expectation:
        threshold = f"at least {low:g}" if high is None else f"{low:g} to {high:g}" if low != high else f"{low:g}"
        arguments = {"column": name, "min_value": low, "max_value": high}
        return Expectation(what, "statistics", "expect_column_max_to_be_between", arguments, threshold)

    def columns(table: str, names: Sequence[str]) -> Expectation:
        arguments = {"column_set": list(names), "exact_match": False}
        return Expectation(
            f"columns of {table}", table, "expect_table_columns_to_match_set", arguments, ", ".join(names)
        )

    def values(what: str, table: str, kind: str, threshold: str, **arguments: Any) -> Expectation:
        return Expectation(what, table, kind, arguments, threshold)

    between, matches = "expect_column_values_to_be_between", "expect_column_values_to_match_regex"
    hexadecimal = r"^[0-9a-f]{64}$"
    return [
        columns("raw", _RAW_COLUMNS),
        columns("decisions", _DECISIONS_COLUMNS),
        columns("images", _IMAGES_COLUMNS),
        statistic("pairs", "raw_pairs", config.min_pairs, None),
        statistic(
            "evaluation sets looked for in the training images", "checked_sets", config.min_evaluation_sets, None
        ),
        *(statistic(what, name, 0, 0) for name, what in _ZERO.items()),
        statistic("share of pairs with an image", "raw_success_share", config.min_success_share, 1),
        statistic("keep rate", "keep_rate", *config.keep_rate),
        *(
            statistic(f"share dropped as {reason}", f"dropped_share/{reason}", *band)
            for reason, band in config.dropped_share.items()
        ),
        values("key", "raw", matches, "digits", column="key", regex=r"^\d+$"),
        values(
            "status",
            "raw",
            "expect_column_values_to_be_in_set",
            ", ".join(_STATUSES),
            column="status",
            value_set=list(_STATUSES),
        ),
        values("image_id", "decisions", matches, "64 hexadecimal digits", column="image_id", regex=hexadecimal),
        values("width_px", "images", between, "at least 1", column="width_px", min_value=1),
        values("height_px", "images", between, "at least 1", column="height_px", min_value=1),
        values("nsfw_score", "images", between, "0 to 1", column="nsfw_score", min_value=0, max_value=1),
        values("num_texts", "images", between, "at least 0", column="num_texts", min_value=0),
    ]


def _tables(
    config: ValidateConfig, engine: Engine, raw: Path, filtered: Path, num_checked_sets: int
) -> dict[str, pd.DataFrame]:
    raw_shards(raw)  # refuses a folder with half of its files
    engine.view("raw", raw / "*.parquet")
    for name in ("decisions", "images"):
        path = filtered / f"{name}.parquet"
        if not path.is_file():
            raise DataError(f"{path}: no such file; run `align filter` first")
        engine.view(name, path)
    numbers: dict[str, Any] = {"checked_sets": num_checked_sets}
    numbers |= {name: _number(engine, query) for name, query in STATISTICS.items()}
    numbers["unlisted_reasons"] = _number(engine, _unlisted_reasons(config.dropped_share))
    for reason in config.dropped_share:
        numbers[f"dropped_share/{reason}"] = _number(engine, _dropped_share(reason))
    frames = {"statistics": pd.DataFrame([numbers], dtype=object)}
    for name, key in {"raw": "key", "decisions": "key", "images": "image_id"}.items():
        path = engine.scratch / f"{name}.parquet"
        try:
            engine.write(f"SELECT * FROM {name} ORDER BY md5({key}), {key} LIMIT {config.sample_rows}", path)
        except duckdb.BinderException:  # no such column, as the expectation on the schema will say
            engine.write(f"SELECT * FROM {name} LIMIT {config.sample_rows}", path)
        frames[name] = pd.read_parquet(path)
    return frames


def _dropped_share(reason: str) -> str:
    return f"SELECT count(*) FILTER (reason = '{reason}') / nullif(count(*), 0) FROM decisions"


def _unlisted_reasons(reasons: Iterable[str]) -> str:
    listed = ", ".join(f"'{reason}'" for reason in reasons)
    return f"SELECT count(*) FROM decisions WHERE reason NOT IN ({listed})"


def _number(engine: Engine, query: str) -> float | int | None:
    """None where a column is missing or has another type: its expectation then fails, beside the one on the schema."""
    try:
        value: float | int | None = engine.rows(query)[0][0]
    except (duckdb.BinderException, duckdb.ConversionException):
        return None
    return value


def _judged(outcome: Outcome) -> Judged:
    item = outcome.expectation
    return Judged(
        what=item.what, expectation=f"{item.kind}({item.arguments.get('column', '')})", observed=outcome.observed,
        threshold=item.threshold, passed=outcome.passed,
    )  # fmt: skip


def render(report: QualityReport, checked_sets: Sequence[str]) -> str:
    """The verdict as a page that reads well with no network."""
    count = len(report.expectations)
    lead = f"Passed: all {count} expectations hold." if report.passed else f"Failed. {report.failure}"
    rows = [(item.what, item.observed, item.threshold, item.passed) for item in report.expectations]
    columns = ("expectation", "observed", "threshold", "verdict")
    sets = ", ".join(checked_sets) or "none"
    blocks = []
    if not report.passed:
        failed = [row for row in rows if not row[3]]
        blocks += [html.heading("What failed"), html.table(columns, failed, verdict=3)]
    blocks += [html.heading("All expectations"), html.table(columns, rows, verdict=3)]
    blocks.append(html.paragraph(f"Evaluation sets that the filter looked for among the training images: {sets}."))
    return html.page("Data quality", lead, blocks)


def read_checked_sets(filter_report: Path) -> list[str]:
    """The evaluation sets that `align filter` compared with, from its report.

    Raises:
        DataError: there is no such report.
    """
    path = filter_report / "report.json"
    try:
        report = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `align filter` first") from None
    return sorted(report["evaluation_matches"])


def main(params: Params, args: argparse.Namespace) -> None:
    """`align validate`."""
    config, paths = params.section(ValidateConfig), params.section(PathsConfig)
    with record_runtime("validate", paths.runtime):
        checked_sets = read_checked_sets(paths.reports / "filter")
        report = validate(
            config,
            params.section(EngineConfig),
            raw=paths.raw,
            filtered=paths.filtered,
            checked_sets=checked_sets,
            reports=paths.reports / "quality",
        )
    say(f"validate: passed, all {len(report.expectations)} expectations hold")
