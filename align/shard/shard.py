"""shard: kept pairs -> data/shards/{train,val,test}, one tar sample per image, split by cluster and shuffled by seed.

Which image goes to which shard is decided once for all pairs, in SQL (`align.shard.plan`). Then each output shard is a
task of its own (`align.shard.gather`). `engine.runner` does both. A killed run resumes at the shard
(`align.shard.work_folder`).

The paper says nothing about this. Decisions of ours: JPEG as the stored form, and the split by cluster. A cluster
larger than `max_cluster_share` goes to train as a whole, since it would fill a held-out split.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from align.config import Params
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.paths import PathsConfig
from align.config.shard import ShardConfig
from align.display.console import say
from align.display.report import Report, record_runtime, write_report
from align.durable.files import replace_directory, sha256_file, write_text
from align.durable.steps import Work
from align.durable.work import SCRATCH, key_of, work_directory
from align.errors import DataError
from align.formats.filtered import IMAGES, decisions_digest
from align.formats.raw import raw_shards
from align.formats.shards import SPLITS, Manifest
from align.formats.verdict import TABLES, require_passed
from align.project import provenance
from align.services.engine import open_engine
from align.services.executors.executors import open_executor
from align.services.store_work import open_work
from align.shard.page import shard_page
from align.shard.plan import ShardPlan
from align.shard.work_folder import ShardWork, examples, finish, plan_once, tar_locations, write_shards


class ShardReport(Report):
    """Counts per split.

    Attributes:
        digest: names the shards; that of their manifest.
        decisions: names the decisions that they were made from. This is not in the manifest: other decisions on dropped
            pairs give the same shards, and must not start a training again.
    """

    digest: str
    decisions: str


def make_report(plan: ShardPlan, manifest: Manifest, decisions: str) -> ShardReport:
    """The numbers of a finished run."""
    num_images = sum(plan.num_images.values())
    metrics: dict[str, float | int] = {
        "shard/num_images": num_images,
        "shard/num_pairs": sum(split.num_pairs for split in manifest.splits.values()),
        "shard/num_clusters": sum(plan.cluster_sizes),
        "shard/largest_cluster_share": round(plan.largest_cluster / num_images, 6),
        "shard/num_bytes": sum(tar.num_bytes for split in manifest.splits.values() for tar in split.shards),
    }
    for name, split in manifest.splits.items():
        metrics |= {f"shard/{name}/num_images": split.num_images, f"shard/{name}/num_pairs": split.num_pairs}
    return ShardReport(metrics=metrics, digest=manifest.digest, decisions=decisions)


@dataclass(frozen=True)
class ShardFolders:
    """What the stage reads and writes.

    Attributes:
        raw: data/raw, for the images' bytes.
        filtered: data/filtered, for the kept pairs and the perceptual hashes.
        quality: the report of `align validate`, whose verdict on these decisions must be "passed".
        shards: data/shards; replaced as a whole.
        report: of this stage; replaced as a whole.
    """

    raw: Path
    filtered: Path
    quality: Path
    shards: Path
    report: Path


def shard(config: ShardConfig, store: StoreConfig, folders: ShardFolders, engine: EngineConfig) -> ShardReport:
    """Writes the shards of all splits, then the manifest, then the report.

    Args:
        config: section `shard`.
        store: where tars go, and where raw ones are that are not in `folders.raw`.
        folders: what is read and written.
        engine: who makes them, and does the SQL.

    Raises:
        GateError: the quality gate failed.
        DataError: there is no verdict on these decisions, no pair is kept, a split would be empty, an image of a kept
            pair is missing or does not decode.
        CorruptError: a raw tar is cut off, or bytes in the object store are damaged.
        ServiceError: the object store is unavailable.
        LockedError: another run is writing the shards.
    """
    decisions = decisions_digest(folders.filtered)
    require_passed(folders.quality, decisions, folders.filtered)
    key = _key(config, folders, decisions)
    shared = open_work(store, engine.runner, "shard", key)
    with work_directory(folders.shards, "shard", key) as folder, open_executor(engine, folder / SCRATCH) as executor:
        tars = tar_locations(raw_shards(folders.raw), store)
        work = ShardWork(Work(folder, shared), folders.filtered, tars, store, config)
        plan = plan_once(work, executor, partial(open_engine, engine.for_sql(store), folder / SCRATCH / "engine"))
        write_shards(work, executor, plan)
        samples = examples(work, plan)
        manifest = finish(work, plan)
    report = make_report(plan, manifest, decisions)
    with replace_directory(folders.report, "shard") as folder:
        page = shard_page(report.metrics, manifest, plan.cluster_sizes, samples, config)
        write_text(folder / "report.html", page)
        write_report(report, folder)
    return report


def _key(config: ShardConfig, folders: ShardFolders, decisions: str) -> str:
    """A digest of everything that decides the shards' bytes.

    Raw tars count by name and size where their sha256 is unknown, since the decisions hold their images' sha256s.
    """
    images = folders.filtered / IMAGES
    if not images.is_file():
        raise DataError(f"{images}: no such file; run `align filter` first")
    raw = raw_shards(folders.raw)
    tars = [(one.name, one.sha256 or one.tar.stat().st_size) for one in raw]
    return key_of(config, [decisions, sha256_file(images)], tars, provenance.digest(__name__))


def main(params: Params, args: argparse.Namespace) -> None:
    """`align shard`."""
    del args
    paths = params.section(PathsConfig)
    quality, report_folder = paths.reports / TABLES, paths.reports / "shard"
    folders = ShardFolders(paths.raw, paths.filtered, quality, paths.shards, report_folder)
    with record_runtime("shard", paths.runtime) as record:
        report = shard(params.section(ShardConfig), params.section(StoreConfig), folders, params.section(EngineConfig))
        record["num_images"] = report.metrics["shard/num_images"]
    counts = ", ".join(f"{name} {report.metrics[f'shard/{name}/num_pairs']:,}" for name in SPLITS)
    num_pairs, num_images = report.metrics["shard/num_pairs"], report.metrics["shard/num_images"]
    say(f"shard: {num_pairs:,} pairs of {num_images:,} images ({counts})")
