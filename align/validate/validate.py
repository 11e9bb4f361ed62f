"""validate: the quality gate over tables. Great Expectations judges data/raw and data/filtered.

Counts, shares and keys are judged over whole tables: the engine computes one row of statistics. Values of single rows
(formats, ranges) are judged on a bounded sample, chosen by a hash of the key so that it is the same rows each time. The
gate searches for evaluation images itself, by their bytes and by perceptual hashes, independent of the filter. Where
people set a reference dataset, drift from it is measured. Thresholds are in params.yaml; the paper describes no such
gate. The shards have a gate of their own, `align validate_shards`.

`--accept NAMES --reason WHY` and `--set-reference` record in data/policy what people decide about the last run, or with
`--from FOLDER` about another one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from align.config import Params
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.paths import PathsConfig
from align.config.validate import ValidateConfig
from align.display.console import say
from align.display.figure import png
from align.display.report import record_runtime
from align.durable.files import replace_directory
from align.durable.processes import in_threads
from align.errors import ConfigError, DataError, GateError
from align.formats.acceptances import read_acceptances, write_acceptances
from align.formats.drift_reference import DriftReference, read_reference, write_reference
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.named import named_sets
from align.formats.filtered import decisions_digest
from align.formats.verdict import SHARDS, TABLES
from align.interfaces.expectations import STATISTICS, Acceptance, Check
from align.interfaces.sql import Engine
from align.interfaces.store import Files
from align.pairs.perceptual_hash import image_signals
from align.services import expectations
from align.services.engine import open_engine
from align.services.files.files import StoreFiles
from align.services.git import git_if_any
from align.validate import tables
from align.validate.drift import distributions, drift
from align.validate.expectations import gate, manifest_faults
from align.validate.figures import drift_figure
from align.validate.page import tables_page
from align.validate.report import REPORT, QualityReport, judge, read_report, require_holds, summary, write_gate
from align.validate.statistics import KEPT_FROM, by_source, measure, suggested_bands
from align.validate.tables import JudgedData, sample_rows


def make_views_of_sets(engine: Engine, sets: Sequence[EvaluationSet]) -> None:
    """Makes the views `evaluation_ids` (column image_id) and `evaluation_hashes` (phash), without duplicates."""
    pictures = (picture for one in sets for _, picture in one.read(fault=lambda position, why: None))
    ids: set[str] = set()
    hashes: set[int] = set()
    for image_id, phash in in_threads(_identity, pictures, engine.num_threads):
        ids.add(image_id)
        hashes |= set() if phash is None else {phash}
    view_values(engine, "evaluation_ids", "image_id", pa.array(sorted(ids), pa.string()))
    view_values(engine, "evaluation_hashes", "phash", pa.array(sorted(hashes), pa.uint64()))


def view_values(engine: Engine, name: str, column: str, values: pa.Array) -> None:
    """Makes a view with one column."""
    path = engine.scratch / f"{name}.parquet"
    pq.write_table(pa.table({column: values}), path)
    engine.view(name, path)


def _identity(image: bytes) -> tuple[str, int | None]:
    """sha256, and the perceptual hash of 64 bits; None if the image does not decode."""
    phash = image_signals(image, sys.maxsize).phash  # our own sets need no limit of pixels
    return hashlib.sha256(image).hexdigest(), phash


def checked_counts(sets: Iterable[EvaluationSet], checked: Mapping[str, str]) -> dict[str, int]:
    """How many sets the filter searched for, and how many sets on disk are not among them.

    Args:
        sets: those on disk.
        checked: those that the filter searched for, name -> its identity (`EvaluationSet.identity`).
    """
    return {
        "checked_sets": len(checked),
        "unchecked_sets": sum(checked.get(one.name) != one.identity for one in sets),
    }


def read_checked_sets(filter_report: Path) -> dict[str, str]:
    """The evaluation sets that `align filter` searched for, name -> its identity, from its report.

    Raises:
        DataError: there is no such report.
    """
    path = filter_report / "report.json"
    try:
        sets: dict[str, str] = json.loads(path.read_bytes())["evaluation_sets"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `align filter` first") from None
    return sets


def accept(names: Sequence[str], reason: str, by: str, on: str, *, reports: Sequence[Path], policy: Path) -> None:
    """Accepts failures of the last run, for the data that it judged: all of them or none.

    A second acceptance of a failure replaces the first.

    Args:
        names: of the expectations.
        reason: why the data may be used; shown in the report and in the lineage of models.
        by: who decides.
        on: the day, such as 2026-01-31.
        reports: the gates' folders.
        policy: data/policy.

    Raises:
        ConfigError: `reason` or `by` is blank.
        DataError: no gate has run, or none has a failure of one of these names.
    """
    if not reason.strip() or not by.strip():
        raise ConfigError('--accept NAMES: say why, --reason "...", and by whom, --by "..." (default: git\'s user)')
    last_reports = [report for folder in reports if (report := read_report(folder)) is not None]
    if not last_reports:
        raise DataError(f"{reports[0] / REPORT}: no such file; run `align validate` first")
    failures = {
        outcome.name: (report.data, outcome)
        for report in reversed(last_reports)
        for outcome in report.expectations
        if not outcome.passed
    }
    if unknown := [name for name in names if name not in failures]:
        raise DataError(
            f"--accept {','.join(unknown)}: no failure of this name in the last run "
            f"(failed: {', '.join(failures) or 'none'})"
        )
    new = [
        Acceptance(
            expectation=name,
            data=data,
            observed=outcome.observed,
            threshold=outcome.threshold,
            reason=reason.strip(),
            by=by.strip(),
            on=on,
        )
        for name in dict.fromkeys(names)
        for data, outcome in [failures[name]]
    ]
    replaced = {(one.expectation, one.data) for one in new}
    others = [one for one in read_acceptances(policy) if (one.expectation, one.data) not in replaced]
    write_acceptances([*others, *new], policy)


def set_reference(reports: Path, policy: Path, by: str, on: str) -> DriftReference:
    """Makes the data of the last run the reference for drift.

    Args:
        reports: the folder of the gate over tables.
        policy: data/policy.
        by: who decides.
        on: the day, such as 2026-01-31.

    Raises:
        ConfigError: nobody is named.
        DataError: the gate has not run yet.
        GateError: the gate failed, and nobody accepted it.
    """
    report = read_report(reports)
    if report is None:
        raise DataError(f"{reports / REPORT}: no verdict yet; run `align validate` first")
    if not report.passed:
        raise GateError(f"--set-reference: the gate failed ({report.failure}); fix or accept it first")
    if not by:
        raise ConfigError('--set-reference: say who decides, --by "..." (git has no user here)')
    metrics = json.loads((reports / "metrics.json").read_bytes())
    reference = DriftReference(
        data=report.data, keep_rate=metrics["quality/keep_rate"], distributions=report.distributions, by=by, on=on
    )
    write_reference(reference, policy)
    return reference


def git_user() -> str:
    """The user that git is configured with, as `Name <email>`; empty without one."""
    name, email = ((git_if_any(Path(), "config", key) or "").strip() for key in ("user.name", "user.email"))
    return f"{name} <{email}>" if name and email else name or email


def validate(
    config: ValidateConfig,
    engine_config: EngineConfig,
    data: JudgedData,
    *,
    policy: Path,
    reports: Path,
    check: Check = expectations.check,
    files: Files | None = None,
) -> QualityReport:
    """Judges the data and replaces the folder of its report, even when the gate fails.

    Args:
        config: section `validate`.
        engine_config: bounds of the SQL engine.
        data: what is judged.
        policy: data/policy, with what people accepted and the reference for drift.
        reports: reports/quality.
        check: checks the expectations.
        files: reads evaluation sets that a suite names.

    Raises:
        GateError: an expectation failed; the message has the observed value and the threshold.
        DataError: a table is missing or unreadable.
        FormatError: a file of the policy has another layout.
    """
    sets, reference = named_sets(data.evaluation, files), read_reference(policy)
    with open_engine(engine_config, reports) as engine:
        incomplete = tables.make_views(engine, data)
        make_views_of_sets(engine, sets)
        numbers: dict[str, Any] = dict(measure(engine.rows, config.dropped_share, incomplete))
        now = {} if incomplete else distributions(engine.rows)
        samples = sample_rows(engine, data, config.sample_rows, incomplete)
        kept, lost = ({}, []) if incomplete else by_source(engine, has_text_sources=data.has_text_sources())
    for one in lost:  # before the verdict: bands on all pairs may hold although a whole source went
        say(f"validate: {one}; what each rule drops: reports/filter/report.html")
    keep_rate, raw_faults = numbers["keep_rate"] or 0.0, manifest_faults(data.raw)
    moved = drift(keep_rate, now, reference) if reference and now else {}
    numbers |= checked_counts(sets, data.checked_sets) | (raw_faults or {})
    numbers |= {name: kept.get(name) for name in map(f"{KEPT_FROM}{{}}".format, config.keep_rate_by_source)}
    numbers |= {f"drift_{name}": value for name, value in moved.items()}

    outcomes = check(
        samples | {STATISTICS: pd.DataFrame([numbers], dtype=object)},
        gate(config, numbers),
    )
    report = judge(
        outcomes,
        data=decisions_digest(data.filtered),
        accepted=read_acceptances(policy),
        prefix="quality",
        metrics={
            "quality/num_pairs": numbers["raw_pairs"] or 0,
            "quality/keep_rate": round(keep_rate, 6),
            **{f"quality/drift/{name}": value for name, value in moved.items()},
        },
        distributions=now,
        bands=suggested_bands(config, numbers),
    )
    figure = drift_figure(now, reference.distributions if reference else {}) if now else None
    page = tables_page(
        report, figure, moved, reference, data.checked_sets, lost=lost, has_manifest=raw_faults is not None
    )
    with replace_directory(reports, "validate") as part:
        write_gate(report, page, part, {"distributions.png": png(figure)} if figure else {})
    require_holds(report, reports)
    return report


def main(params: Params, args: argparse.Namespace) -> None:
    """`align validate`."""
    paths = params.section(PathsConfig)
    quality = paths.reports / TABLES
    by, today = args.by or git_user(), time.strftime("%Y-%m-%d", time.gmtime())
    if args.reports and args.accept is None:
        raise ConfigError("--from FOLDER: say what to accept there, --accept NAMES")
    if args.accept is not None:
        reports = args.reports or paths.reports
        gates = (reports / TABLES, reports / SHARDS)
        if args.reports and not any(gate.is_dir() for gate in gates):
            raise DataError(f"--from {reports}: no folder with reports of a gate; a failed run names its own")
        names = [name.strip() for name in args.accept.split(",") if name.strip()]
        accept(names, args.reason, by, today, reports=gates, policy=paths.policy)
        say(f"validate: {', '.join(names)} accepted for this data; commit {paths.policy}, then run the gate again")
    elif args.set_reference:
        set_reference(quality, paths.policy, by, today)
        say(f"validate: this data is the reference for drift; commit {paths.policy}")
    else:
        with record_runtime("validate", paths.runtime):
            store = params.section(StoreConfig)
            checked_sets = read_checked_sets(paths.reports / "filter")
            report = validate(
                params.section(ValidateConfig),
                params.section(EngineConfig).for_sql(store),
                JudgedData(paths.raw, paths.filtered, paths.evaluation, checked_sets),
                policy=paths.policy,
                reports=quality,
                files=StoreFiles(store),
            )
        say(f"validate: {summary(report)}")
