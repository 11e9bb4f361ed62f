"""validate_shards: the quality gate over data/shards, between `align shard` and everything that trains on it.

Worker processes read every tar: its bytes are hashed, every picture in it is decoded, and its samples are compared with
the manifest. Then the engine joins its pairs with the filter's decisions. Memory holds the pairs of one shard per
worker. Great Expectations judges the counts: each must be 0, so there are no thresholds. Most of the time is decoding,
about 0.2 ms per picture at 72 px and 2 ms at 346 px; `runtime/validate_shards.json` has the rate.

A failure can be accepted with `align validate --accept`, which looks at both gates.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd

from align.config import Params
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.paths import PathsConfig
from align.display.console import say
from align.display.report import record_runtime
from align.errors import DataError
from align.formats.acceptances import read_acceptances
from align.formats.filtered import DECISIONS
from align.formats.shards import read_manifest
from align.formats.verdict import SHARDS
from align.interfaces.expectations import STATISTICS, Check, statistic
from align.interfaces.store import FetchTar
from align.services import expectations
from align.services.engine import open_engine
from align.services.s3.store import fetcher
from align.validate.page import shards_page
from align.validate.report import QualityReport, judge, publish, summary
from align.validate.shard_check import FAULTS, JOINS, check_shards, join_decisions

#: What must be 0: statistic -> what it counts, in the order of the gate.
_ZERO = FAULTS | {name: what for name, (what, _) in JOINS.items()}


def validate_shards(
    engine_config: EngineConfig,
    *,
    shards: Path,
    filtered: Path,
    policy: Path,
    reports: Path,
    fetch: FetchTar | None = None,
    check: Check = expectations.check,
) -> QualityReport:
    """Judges the shards and replaces the folder of its report, even when the gate fails.

    Args:
        engine_config: bounds of the SQL engine, and the number of worker processes.
        shards: data/shards.
        filtered: data/filtered, for the decisions.
        policy: data/policy, with what people accepted.
        reports: reports/quality_shards.
        fetch: for tars that are in an object store, see `align.services.s3.store.fetcher`.
        check: checks the expectations.

    Raises:
        GateError: an expectation failed; the message names it.
        DataError: there is no manifest, or there are no decisions.
        FormatError: the manifest or the policy has another layout.
        ServiceError: the object store is unavailable.
    """
    manifest, decisions = read_manifest(shards), filtered / DECISIONS
    if not decisions.exists():
        raise DataError(f"{decisions}: no such file; run `align filter` first")
    with open_engine(engine_config, reports) as engine:
        pairs = engine.scratch / "pairs"
        faults = check_shards(shards, manifest, pairs, fetch, engine_config.num_workers)
        numbers = dict.fromkeys(_ZERO) | faults.counts | join_decisions(engine, pairs, decisions)
    outcomes = check(
        {STATISTICS: pd.DataFrame([numbers], dtype=object)},
        [statistic(what, name, 0, 0) for name, what in _ZERO.items()],
    )
    num_shards = sum(len(split.shards) for split in manifest.splits.values())
    report = judge(
        outcomes,
        data=manifest.digest,
        accepted=read_acceptances(policy),
        prefix="quality_shards",
        metrics={"quality_shards/num_images": faults.num_images, "quality_shards/num_shards": num_shards},
    )
    publish(report, shards_page(report, manifest, faults), reports, "validate_shards")
    return report


def main(params: Params, args: argparse.Namespace) -> None:
    """`align validate_shards`."""
    del args
    paths = params.section(PathsConfig)
    with record_runtime("validate_shards", paths.runtime) as runtime:
        start = time.monotonic()
        report = validate_shards(
            params.section(EngineConfig),
            shards=paths.shards,
            filtered=paths.filtered,
            policy=paths.policy,
            reports=paths.reports / SHARDS,
            fetch=fetcher(params.section(StoreConfig)),
        )
        num_images = report.metrics["quality_shards/num_images"]
        runtime["images_per_s"] = round(num_images / (time.monotonic() - start), 1)
    say(f"validate_shards: {summary(report)}; {num_images:,} pictures decoded")
