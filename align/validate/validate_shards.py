"""validate_shards: the quality gate over data/shards, between `align shard` and everything that trains on it.

Every tar is read once, in worker processes: its bytes are hashed, every picture in it is decoded, and its samples are
compared with the manifest; then the engine joins its pairs with the filter's decisions. Memory holds the pairs of one
shard a worker. Great Expectations judges the counts: each must be 0, so there are no thresholds. What it costs is the
decoding, about 0.2 ms a picture at 72 px and 2 ms at 346 px; `runtime/validate_shards.json` has the rate.

A failure can be accepted as in `align validate`, whose `--accept` looks at both gates.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from align import html
from align.config import Params
from align.config.engine import EngineConfig
from align.config.paths import PathsConfig
from align.config.store import StoreConfig
from align.console import say, track
from align.errors import DataError
from align.formats.shards import Manifest, read_manifest
from align.formats.verdict import SHARDS
from align.protocols.store import FetchTar
from align.report import record_runtime
from align.services.engine import open_engine
from align.services.expectations import check, statistic
from align.services.store import fetcher
from align.validate.quality import QualityReport, judge, publish, read_accepted, summary
from align.validate.shard_check import FAULTS, JOINS, Faults, check_folder, check_shard, tasks
from align.work import in_processes


def validate_shards(
    engine_config: EngineConfig,
    *,
    shards: Path,
    filtered: Path,
    policy: Path,
    reports: Path,
    fetch: FetchTar | None = None,
) -> QualityReport:
    """Judges the shards and writes report.json, metrics.json, verdict.json and report.html, whatever the verdict.

    Args:
        engine_config: bounds of the SQL engine, and how many worker processes there are.
        shards: data/shards.
        filtered: data/filtered, for the decisions.
        policy: data/policy, with what people accepted.
        reports: reports/quality_shards.
        fetch: for tars that lie in an object store, see `align.services.store.fetcher`.

    Raises:
        GateError: an expectation failed; the message names it.
        DataError: there is no manifest, or no decisions.
        FormatError: the manifest or the policy has another layout.
    """
    manifest = read_manifest(shards)
    if not (filtered / "decisions.parquet").exists():
        raise DataError(f"{filtered / 'decisions.parquet'}: no such file; run `align filter` first")
    faults = check_folder(shards, manifest)
    numbers: dict[str, Any] = {}
    with open_engine(engine_config, reports) as engine:
        folder = engine.scratch / "pairs"
        folder.mkdir()
        todo = tasks(shards, manifest, folder, fetch)
        found = in_processes(
            check_shard, todo, max(1, min(engine_config.num_workers or os.cpu_count() or 1, len(todo)))
        )
        for one in track(found, what="validate_shards: shards", total=len(todo)):
            faults.merge(one)
        if todo:
            engine.view("pairs", folder / "*.parquet")
            engine.view("decisions", filtered / "decisions.parquet")
            numbers |= {name: engine.rows(query)[0][0] for name, (_, query) in JOINS.items()}
    numbers |= faults.counts
    wanted = FAULTS | {name: what for name, (what, _) in JOINS.items()}
    expectations = [statistic(what, name, 0, 0) for name, what in wanted.items()]
    outcomes = check({"statistics": pd.DataFrame([dict.fromkeys(wanted) | numbers], dtype=object)}, expectations)
    report = judge(
        map(asdict, outcomes),
        data=manifest.digest,
        accepted=read_accepted(policy),
        prefix="quality_shards",
        metrics={"quality_shards/num_images": faults.num_images, "quality_shards/num_shards": len(todo)},
    )
    publish(report, reports, "Quality of the shards", _blocks(manifest, faults))
    return report


def _blocks(manifest: Manifest, faults: Faults) -> list[str]:
    splits = [(name, len(part.shards), part.num_images, part.num_pairs) for name, part in manifest.splits.items()]
    blocks = [html.heading("What the manifest says"), html.table(("split", "shards", "images", "pairs"), splits)]
    blocks.append(
        html.paragraph(f"{faults.num_images:,} pictures of {manifest.image_px} x {manifest.image_px} px were decoded.")
    )
    if faults.examples:
        rows = [(kind.replace("_", "-"), place) for kind, places in faults.examples.items() for place in places]
        blocks += [html.heading("Where, the first few of each"), html.table(("fault", "where"), rows)]
    return blocks


def main(params: Params, args: argparse.Namespace) -> None:
    """`align validate_shards`."""
    del args
    paths = params.section(PathsConfig)
    with record_runtime("validate_shards", paths.runtime) as runtime:
        start = time.monotonic()
        report = validate_shards(
            params.section(EngineConfig), shards=paths.shards, filtered=paths.filtered, policy=paths.policy,
            reports=paths.reports / SHARDS, fetch=fetcher(params.section(StoreConfig)),
        )  # fmt: skip
        num_images = report.metrics["quality_shards/num_images"]
        runtime["images_per_s"] = round(num_images / (time.monotonic() - start), 1)
    say(f"validate_shards: {summary(report)}; {num_images:,} pictures decoded")
