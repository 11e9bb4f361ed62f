"""shard: kept pairs -> data/shards/{train,val,test}, one tar sample per image, split by cluster and shuffled by seed.

Which image goes to which shard is decided once for all pairs (`align.shard.assignment`). Then each output shard is a
task of its own (`align.shard.gather`), for worker processes here, or range by range (`--shards A-B`, then `--finish`)
for machines that share the folder. A killed run resumes at the shard (`align.shard.work_folder`).

The paper says nothing about this. Decisions of ours: JPEG as the stored form, and the split by cluster. A cluster
larger than `max_cluster_share` goes to train as a whole, since it would fill a held-out split.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from align.config import Params
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.paths import PathsConfig
from align.config.shard import ShardConfig
from align.display.console import say
from align.display.report import Report, record_runtime, write_report
from align.durable.files import replace_directory, sha256_file
from align.durable.work import (
    ALL,
    Portion,
    asked,
    key_of,
    portion_of,
    require_done,
    work_directory,
)
from align.errors import DataError
from align.formats.filtered import IMAGES, decisions_digest
from align.formats.raw import raw_shards
from align.formats.shards import SPLITS, Manifest
from align.formats.verdict import TABLES, gate_report, require_passed
from align.pieces import Pieces
from align.project import provenance
from align.services.store_work import open_work
from align.shard.assignment import ShardPlan
from align.shard.work_folder import ShardWork, finish, plan_once, write_shards


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
    num_images = sum(plan.num_images)
    metrics: dict[str, float | int] = {
        "shard/num_images": num_images,
        "shard/num_pairs": sum(split.num_pairs for split in manifest.splits.values()),
        "shard/num_clusters": plan.num_clusters,
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


def shard(
    config: ShardConfig,
    store: StoreConfig,
    folders: ShardFolders,
    *,
    num_workers: int | None = None,
    portion: Portion = ALL,
) -> ShardReport | None:
    """Writes the shards of all splits, then the manifest, then the report; or only a portion of the shards.

    Args:
        config: section `shard`.
        store: where tars go, and where raw ones are that are not in `folders.raw`.
        folders: what is read and written.
        num_workers: processes; None means one per core.
        portion: which shards. After a range of shards the result is None.

    Raises:
        GateError: the quality gate failed.
        DataError: there is no verdict on these decisions, no pair is kept, a split would be empty, an image of a kept
            pair is missing or does not decode, or shards are missing where the run should finish.
        CorruptError: a raw tar is cut off, or bytes in the object store are damaged.
        ServiceError: the object store is unavailable.
        LockedError: another run is writing the shards.
    """
    decisions = decisions_digest(folders.filtered)
    require_passed(folders.quality, decisions, folders.filtered)
    key = _key(config, folders, decisions)
    shared = None if portion == ALL else open_work(store, "shard", key)
    with work_directory(folders.shards, "shard", key, portion, elsewhere=shared is not None) as folder:
        work = ShardWork(Pieces(folder, shared), folders.raw, store, config, portion)
        plan = plan_once(work, folders.filtered, num_workers)
        names = [f"{number:05d}" for number in range(len(plan.paths))]
        finished = shared.finished() if shared else frozenset()
        if portion.finish:
            require_done("shard", names, lambda name: name in finished or work.is_done(int(name)))
        mine = asked("shard", portion, range(len(names)))
        if portion.shards is not None:
            mine = [number for number in mine if names[number] not in finished]
        write_shards(work, mine, num_workers)
        if portion.shards is not None:
            return None
        manifest = finish(work, plan)
    report = make_report(plan, manifest, decisions)
    with replace_directory(folders.report, "shard") as folder:
        write_report(report, folder)
    return report


def _key(config: ShardConfig, folders: ShardFolders, decisions: str) -> str:
    """A digest of everything that decides the shards' bytes.

    Raw tars count by name and size where their sha256 is unknown, since the decisions hold their images' sha256s.
    """
    images = folders.filtered / IMAGES
    if not images.is_file():
        raise DataError(f"{images}: no such file; run `align filter` first")
    tars = [(one.name, one.sha256 or one.tar.stat().st_size) for one in raw_shards(folders.raw)]
    return key_of(config, [decisions, sha256_file(images)], tars, provenance.digest(__name__))


def main(params: Params, args: argparse.Namespace) -> None:
    """`align shard`."""
    paths, portion = params.section(PathsConfig), portion_of(args)
    folders = ShardFolders(
        raw=paths.raw,
        filtered=paths.filtered,
        quality=gate_report(params, TABLES, lambda: decisions_digest(paths.filtered)),
        shards=paths.shards,
        report=paths.reports / "shard",
    )
    with record_runtime("shard", paths.runtime) as record:
        report = shard(
            params.section(ShardConfig),
            params.section(StoreConfig),
            folders,
            num_workers=params.section(EngineConfig).num_workers,
            portion=portion,
        )
        if report is None:
            say(f"shard: shards {args.shards} are done; `align shard --finish` when all are")
            return
        record["num_images"] = report.metrics["shard/num_images"]
    counts = ", ".join(f"{name} {report.metrics[f'shard/{name}/num_pairs']:,}" for name in SPLITS)
    num_pairs, num_images = report.metrics["shard/num_pairs"], report.metrics["shard/num_images"]
    say(f"shard: {num_pairs:,} pairs of {num_images:,} images ({counts})")
