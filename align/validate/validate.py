"""validate: the quality gate over tables. Great Expectations judges data/raw and data/filtered.

Counts, shares and keys are judged over the whole tables: the engine computes one row of statistics. Values of single
rows (formats, ranges) are judged on a bounded sample, drawn by a hash of the key so that it is the same rows each time.
Evaluation images are looked for once more, apart from the filter: by their bytes and by their perceptual hashes.
Against the reference dataset, where people set one, drift is measured (`align.validate.drift`). Thresholds stand
in params.yaml; the paper describes no such gate. The shards have one of their own, `align validate_shards`.

`--accept NAME --reason WHY` and `--set-reference` record what people decide about the last run, in data/policy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from align import html
from align.config import Params
from align.config.engine import EngineConfig
from align.config.paths import PathsConfig
from align.config.validate import ValidateConfig
from align.console import say
from align.errors import ConfigError, DataError, GateError
from align.figure import png
from align.files import sha256_file, sha256_folder, write_bytes
from align.formats.evaluation_set import EvaluationSet, load_sets
from align.formats.raw import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, SUCCESS, raw_shards
from align.formats.verdict import SHARDS, TABLES
from align.pairs.perceptual_hash import image_signals
from align.protocols.sql import Engine
from align.report import record_runtime
from align.services.engine import open_engine
from align.services.expectations import Expectation, check, statistic
from align.validate import drift
from align.validate.figures import drift_figure
from align.validate.quality import (
    QualityReport,
    accept,
    git_user,
    judge,
    publish,
    read_accepted,
    read_report,
    summary,
)
from align.validate.statistics import COLUMNS, ZERO, manifest_faults, measure
from align.work import in_threads

_STATUSES = (SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE)
_MANIFEST = {
    "raw_shards_unlisted_or_missing": "raw shards that manifest.json lacks, or that are not there",
    "raw_shards_of_another_count": "raw shards with another number of rows than manifest.json says",
    "raw_shards_changed": "raw shards whose bytes differ from manifest.json",
}
_DRIFT = {
    "keep_rate": "drift of the keep rate",
    "text_length": "drift of text lengths",
    "image_size": "drift of image sizes",
    "language": "drift of languages",
}


def validate(
    config: ValidateConfig,
    engine_config: EngineConfig,
    *,
    raw: Path,
    filtered: Path,
    evaluation: Path,
    checked_sets: Mapping[str, str],
    policy: Path,
    reports: Path,
) -> QualityReport:
    """Judges the data and writes report.json, metrics.json, verdict.json and report.html, whatever the verdict.

    Args:
        config: section `validate`.
        engine_config: bounds of the SQL engine.
        raw: data/raw.
        filtered: data/filtered.
        evaluation: the evaluation sets; may be absent.
        checked_sets: the evaluation sets whose images the filter looked for, name -> sha256 of its tar.
        policy: data/policy, with what people accepted and the reference for drift.
        reports: reports/quality.

    Raises:
        GateError: an expectation failed; the message has the observed value and the threshold.
        DataError: a table is missing or unreadable.
        FormatError: a file of the policy has another layout.
    """
    sets, reference = load_sets(evaluation), drift.read_reference(policy)
    with open_engine(engine_config, reports) as engine:
        incomplete = _views(engine, raw, filtered, sets)
        numbers: dict[str, Any] = dict(measure(engine.rows, config.dropped_share, incomplete))
        languages = "language" in _columns(filtered / "decisions.parquet")
        now = {} if incomplete else drift.distributions(engine.rows, languages=languages)
        frames = _samples(engine, config.sample_rows, incomplete)
    numbers["checked_sets"] = len(checked_sets)
    numbers["unchecked_sets"] = sum(checked_sets.get(one.name) != one.sha256 for one in sets)
    numbers |= manifest_faults(raw) or {}
    moved = drift.drift(numbers["keep_rate"] or 0.0, now, reference) if reference and now else {}
    numbers |= {f"drift_{name}": value for name, value in moved.items()}
    frames["statistics"] = pd.DataFrame([numbers], dtype=object)
    outcomes = check(frames, expectations(config, numbers))
    report = judge(
        map(asdict, outcomes),
        data=digest_of(filtered),
        accepted=read_accepted(policy),
        prefix="quality",
        metrics={
            "quality/num_pairs": numbers["raw_pairs"] or 0,
            "quality/keep_rate": round(numbers["keep_rate"] or 0.0, 6),
            **{f"quality/drift/{name}": value for name, value in moved.items()},
        },
        distributions=now,
    )
    picture = png(drift_figure(now, reference.distributions if reference else {})) if now else None
    if picture:
        write_bytes(reports / "distributions.png", picture)
    publish(report, reports, "Data quality", _blocks(picture, reference, moved, checked_sets, numbers))
    return report


def expectations(config: ValidateConfig, measured: Mapping[str, Any]) -> list[Expectation]:
    """The gate, in the order of the report; of manifest and drift only what was `measured`."""

    def columns(table: str) -> Expectation:
        arguments = {"column_set": list(COLUMNS[table]), "exact_match": False}
        kind, threshold = "expect_table_columns_to_match_set", ", ".join(COLUMNS[table])
        return Expectation(f"{table}-columns", f"columns of {table}", table, kind, arguments, threshold)

    def values(table: str, column: str, kind: str, threshold: str, **arguments: Any) -> Expectation:
        name = f"{table}-{column.replace('_', '-')}"
        what, kind = f"{column} of each row of {table}", f"expect_column_values_to_{kind}"
        return Expectation(name, what, table, kind, {"column": column, **arguments}, threshold)

    limits = config.max_drift.model_dump()
    digest = {"threshold": "64 hexadecimal digits", "regex": r"^[0-9a-f]{64}$"}
    return [
        *(columns(table) for table in COLUMNS),
        statistic("pairs", "raw_pairs", config.min_pairs, None),
        statistic("evaluation sets looked for in training images", "checked_sets", config.min_evaluation_sets, None),
        statistic("evaluation sets that the filter did not look for as they are now", "unchecked_sets", 0, 0),
        statistic(
            "share of kept pairs with the perceptual hash of an evaluation image",
            "kept_evaluation_hashes", 0, config.max_evaluation_hash_share,
        ),
        *(statistic(what, name, 0, 0) for name, (what, _) in ZERO.items()),
        *(statistic(what, name, 0, 0) for name, what in _MANIFEST.items() if name in measured),
        statistic("pairs dropped for a reason that has no band", "unlisted_reasons", 0, 0),
        statistic("share of pairs with an image", "raw_success_share", config.min_success_share, 1),
        statistic("keep rate", "keep_rate", *config.keep_rate),
        *(
            statistic(f"share dropped as {reason}", f"dropped_{reason}", *band)
            for reason, band in config.dropped_share.items()
        ),
        *(
            statistic(what, f"drift_{name}", 0, limits[name])
            for name, what in _DRIFT.items()
            if f"drift_{name}" in measured
        ),
        values("raw", "key", "match_regex", "digits", regex=r"^\d+$"),
        values("raw", "status", "be_in_set", ", ".join(_STATUSES), value_set=list(_STATUSES)),
        values("decisions", "image_id", "match_regex", **digest),
        values("images", "width_px", "be_between", "at least 1", min_value=1),
        values("images", "height_px", "be_between", "at least 1", min_value=1),
        values("images", "nsfw_score", "be_between", "0 to 1", min_value=0, max_value=1),
        values("images", "num_texts", "be_between", "at least 0", min_value=0),
    ]  # fmt: skip


def digest_of(filtered: Path) -> str:
    """What names the data that this gate judges: sha256 of the decisions, which hold every key, image and text."""
    path = filtered / "decisions.parquet"
    return sha256_folder(path) if path.is_dir() else sha256_file(path)


def _views(engine: Engine, raw: Path, filtered: Path, sets: Sequence[EvaluationSet]) -> list[str]:
    """Makes the views of `align.validate.statistics`; returns those that lack a column."""
    files = {"raw": raw / "*.parquet"} | {name: filtered / f"{name}.parquet" for name in ("decisions", "images")}
    first = {"raw": raw_shards(raw)[0].table} | {name: files[name] for name in ("decisions", "images")}
    for name, path in files.items():
        if not first[name].exists():
            raise DataError(f"{path}: no such file; run `align filter` first")
        engine.view(name, path)
    ids = sorted({hashlib.sha256(image.image).hexdigest() for one in sets for image in one.images})
    pictures = (image.image for one in sets for image in one.images)
    found = {signals.phash for signals in in_threads(_signals, pictures, engine.num_threads)}
    hashes = sorted(phash for phash in found if phash is not None)
    for name, column, values, kind in (
        ("evaluation_ids", "image_id", ids, pa.string()),
        ("evaluation_hashes", "phash", hashes, pa.uint64()),
    ):
        path = engine.scratch / f"{name}.parquet"
        pq.write_table(pa.table({column: pa.array(values, kind)}), path)
        engine.view(name, path)
    return [name for name, columns in COLUMNS.items() if not set(columns) <= _columns(first[name])]


def _signals(data: bytes) -> Any:
    return image_signals(data, sys.maxsize)  # our own sets: no limit is needed


def _columns(path: Path) -> set[str]:
    return set(pq.ParquetDataset(path).schema.names)


def _samples(engine: Engine, num_rows: int, incomplete: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Some rows of each table, the same ones each time."""
    frames = {}
    for name, key in {"raw": "key", "decisions": "key", "images": "image_id"}.items():
        order = "" if name in incomplete else f"ORDER BY md5({key}), {key}"
        path = engine.scratch / f"sample_{name}.parquet"
        engine.write(f"SELECT * FROM {name} {order} LIMIT {num_rows}", path)
        frames[name] = pd.read_parquet(path)
    return frames


def _blocks(
    picture: bytes | None,
    reference: drift.Reference | None,
    moved: Mapping[str, float],
    checked_sets: Mapping[str, str],
    numbers: Mapping[str, Any],
) -> list[str]:
    blocks = [html.heading("The kept pairs, and how far they moved")]
    if picture is not None:
        blocks.append(html.picture(picture, alt="text lengths, image sizes and languages of the kept pairs"))
    if reference is None:
        blocks.append(
            html.paragraph(
                "No reference: drift was not measured. Where this data is good, `align validate --set-reference` makes "
                f"it the reference ({drift.REFERENCE} in data/policy, to be committed)."
            )
        )
    else:
        blocks.append(
            html.paragraph(
                f"The reference was set on {reference.on} by {reference.by}, data {reference.data[:12]}. Of the keep "
                "rate the change is shown, of distributions the total variation distance: the share of pairs that "
                "would have to move to another bucket for the two to be equal."
            )
        )
        blocks.append(html.table(("figure", "moved by"), [(_DRIFT[name], value) for name, value in moved.items()]))
    names = ", ".join(sorted(checked_sets)) or "none"
    blocks.append(html.paragraph(f"Evaluation sets that the filter looked for among the training images: {names}."))
    if not any(name in numbers for name in _MANIFEST):
        blocks.append(html.paragraph("The raw folder has no manifest.json: its bytes were compared with nothing."))
    return blocks


def read_checked_sets(filter_report: Path) -> dict[str, str]:
    """The evaluation sets that `align filter` compared with, name -> sha256 of the tar, from its report.

    Raises:
        DataError: there is no such report, or one of older code.
    """
    path = filter_report / "report.json"
    try:
        sets: dict[str, str] = json.loads(path.read_bytes())["evaluation_sets"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `align filter` first") from None
    except KeyError:
        raise DataError(f"{path}: it names no evaluation_sets; run `align filter` again") from None
    return sets


def set_reference(reports: Path, policy: Path, by: str, on: str) -> drift.Reference:
    """Makes the data of the last verdict the reference for drift.

    Raises:
        ConfigError: nobody is named.
        DataError: there is no verdict yet.
        GateError: the gate failed, and nobody accepted it.
    """
    report = read_report(reports)
    if report is None:
        raise DataError(f"{reports / 'report.json'}: no verdict yet; run `align validate` first")
    if not report.passed:
        raise GateError(f"--set-reference: the gate failed ({report.failure}); mend it or accept it first")
    if not by:
        raise ConfigError('--set-reference: say who decides, --by "..." (git knows no user here)')
    metrics = json.loads((reports / "metrics.json").read_bytes())
    reference = drift.Reference(
        data=report.data, keep_rate=metrics["quality/keep_rate"], distributions=report.distributions, by=by, on=on
    )
    drift.write_reference(reference, policy)
    return reference


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The stage's own arguments: decisions about the last run, instead of a run."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--accept", metavar="NAME", help="accept a failed expectation of the last run, for its data")
    group.add_argument("--set-reference", action="store_true", help="measure drift against the last run's data")
    parser.add_argument("--reason", default="", help="why, with --accept")
    parser.add_argument("--by", default=None, help="who decides; default: git's user")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align validate`."""
    paths = params.section(PathsConfig)
    quality = paths.reports / TABLES
    by, today = args.by or git_user(), time.strftime("%Y-%m-%d", time.gmtime())
    if args.accept is not None:
        gates = (quality, paths.reports / SHARDS)
        accept(args.accept, args.reason, by, today, reports=gates, policy=paths.policy)
        say(f"validate: {args.accept} accepted for this data; commit {paths.policy}, then run the gate again")
    elif args.set_reference:
        set_reference(quality, paths.policy, by, today)
        say(f"validate: this data is the reference for drift; commit {paths.policy}")
    else:
        with record_runtime("validate", paths.runtime):
            report = validate(
                params.section(ValidateConfig), params.section(EngineConfig), raw=paths.raw, filtered=paths.filtered,
                evaluation=paths.evaluation, checked_sets=read_checked_sets(paths.reports / "filter"),
                policy=paths.policy, reports=quality,
            )  # fmt: skip
        say(f"validate: {summary(report)}")
