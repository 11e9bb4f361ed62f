"""validate_shards: the quality gate over data/shards, between `align shard` and everything that trains on it.

Each tar is a task for `engine.runner`: its bytes are hashed, every picture in it is decoded, and its samples are
compared with the manifest and the filter's decisions (`align.validate.shard_check`). A killed run resumes at the tar.
Great Expectations judges the counts: each must be 0, so there are no thresholds. Most of the time is decoding, about
0.2 ms per picture at 72 px and 2 ms at 346 px; `runtime/validate_shards.json` has the rate.

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
from align.durable.steps import Work
from align.durable.work import SCRATCH, key_of, work_directory
from align.formats.acceptances import read_acceptances
from align.formats.filtered import decisions_digest
from align.formats.shards import Manifest, read_manifest
from align.formats.verdict import SHARDS
from align.interfaces.expectations import STATISTICS, Check, statistic
from align.project import provenance
from align.services import expectations
from align.services.executors.executors import LocalExecutor, open_executor
from align.services.s3.store import fetcher
from align.services.store_work import open_work
from align.validate.page import shards_page
from align.validate.report import QualityReport, judge, require_holds, summary, write_gate
from align.validate.shard_check import FAULTS, RESULTS, ShardsWork, check_shards, kept_pairs

#: What must be 0: statistic -> what it counts, in the order of the gate.
_ZERO = FAULTS | {
    "kept_pairs_differ": "whether the shards hold other pairs than the filter kept; run `align shard` again",
    "images_in_two_splits": "images that are in more than one split",
}


def validate_shards(
    engine_config: EngineConfig,
    *,
    shards: Path,
    filtered: Path,
    policy: Path,
    reports: Path,
    store: StoreConfig | None = None,
    check: Check = expectations.check,
) -> QualityReport:
    """Judges the shards and replaces the folder of its report, even when the gate fails.

    Args:
        engine_config: who does the tasks, and their bounds.
        shards: data/shards.
        filtered: data/filtered, for the decisions.
        policy: data/policy, with what people accepted.
        reports: reports/quality_shards.
        store: where tars are that are not in `shards`, and where the machines of a cluster share their work.
        check: checks the expectations.

    Raises:
        GateError: an expectation failed; the message names it.
        DataError: there is no manifest, or there are no decisions.
        FormatError: the manifest or the policy has another layout.
        ServiceError: the object store is unavailable.
    """
    manifest = read_manifest(shards)
    key = _key(shards, manifest, decisions_digest(filtered))
    shared = open_work(store, engine_config.runner, "validate_shards", key) if store else None
    with (
        work_directory(reports, "validate_shards", key) as folder,
        open_executor(engine_config, folder / SCRATCH) as executor,
    ):
        work = ShardsWork(Work(folder, shared), shards, manifest.image_px, fetcher(store) if store else None)
        faults = check_shards(work, executor, manifest)
        num_shards = sum(len(split.shards) for split in manifest.splits.values())
        of_decisions = executor if shared is None else LocalExecutor(engine_config.num_workers)
        joined: tuple[int | None, int | None] = (None, None)
        if num_shards:
            joined = int(faults.pairs != kept_pairs(filtered, of_decisions)), faults.num_leaked
        numbers = dict(zip(_ZERO, (*faults.counts.values(), *joined), strict=True))
        outcomes = check(
            {STATISTICS: pd.DataFrame([numbers], dtype=object)},
            [statistic(what, name, 0, 0) for name, what in _ZERO.items()],
        )
        report = judge(
            outcomes,
            data=manifest.digest,
            accepted=read_acceptances(policy),
            prefix="quality_shards",
            metrics={"quality_shards/num_images": faults.num_images, "quality_shards/num_shards": num_shards},
        )
        work.work.drop(RESULTS)
        write_gate(report, shards_page(report, manifest, faults), folder)
    require_holds(report, reports)
    return report


def _key(shards: Path, manifest: Manifest, decisions: str) -> str:
    """A digest of what was checked: a tar that was replaced since a killed run is checked again."""
    tars = [shards / shard.path for split in manifest.splits.values() for shard in split.shards]
    states = [(file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None for file in tars]
    return key_of(manifest, decisions, states, provenance.digest(__name__))


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
            store=params.section(StoreConfig),
        )
        num_images = report.metrics["quality_shards/num_images"]
        runtime["images_per_s"] = round(num_images / (time.monotonic() - start), 1)
    say(f"validate_shards: {summary(report)}; {num_images:,} pictures decoded")
