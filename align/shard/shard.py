"""shard: kept pairs -> data/shards/{train,val,test}, one tar sample an image, split by cluster and shuffled by seed.

Which image goes where is planned once over all kept pairs (`align.shard.plan`); then each output shard is work of
its own (`align.shard.gather`): in worker processes here, or range by range (`--shards A-B`, then `--finish`) on
machines that share the folder. A killed run goes on at the shard. Decisions of ours, the paper being silent: JPEG as
the stored form, the split by cluster, and that a cluster larger than `max_cluster_share` goes to train whole, since
held out it would swallow the split.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from align import provenance
from align.config import Params
from align.config.engine import EngineConfig
from align.config.paths import PathsConfig
from align.config.shard import ShardConfig
from align.config.store import StoreConfig
from align.console import say, track
from align.errors import DataError
from align.files import sha256_file, write_bytes
from align.formats.raw import RawShard, image_spans, raw_shards
from align.formats.shards import SPLITS, Manifest, SplitName
from align.formats.verdict import require_passed
from align.report import Report, record_runtime, write_report
from align.services.store import Objects, keep_tar, open_files
from align.shard.gather import RawTars, gather
from align.shard.plan import Plan, make_plan, place_rows, read_plan
from align.shard.writer import join_manifest, write_entry, write_shard
from align.work import Portion, add_portion_arguments, in_processes, key_of, portion_of, require_done, work_directory

#: Inside the work folder, gone at the end.
_PLAN, _INDEX, _DONE = ".plan", ".index", ".done"
_ALL = Portion()


class ShardReport(Report):
    """Counts per split and the digest that names the training data."""

    digest: str


@dataclass(frozen=True)
class _Task:
    """One raw tar to index, or one output shard to write: `number` of it. Picklable."""

    number: int
    work: Path
    raw: Path
    store: StoreConfig
    config: ShardConfig


def shard(
    config: ShardConfig, store: StoreConfig, *, raw: Path, filtered: Path, quality: Path, out: Path, reports: Path,
    num_workers: int | None = None, part: Portion = _ALL,
) -> ShardReport | None:  # fmt: skip
    """Writes the shards of all splits, then the manifest, then the report; or only a part of the shards.

    Args:
        config: section `shard`.
        store: where tars go, and where raw ones lie that are not in `raw`.
        raw: data/raw, for the images' bytes.
        filtered: data/filtered, for the kept pairs and the perceptual hashes.
        quality: the folder of `align validate`'s report; its verdict must be "passed".
        out: data/shards; replaced whole.
        reports: the folder of this stage's report.
        num_workers: processes; None takes one per core.
        part: which shards; None is returned where that is a range.

    Raises:
        GateError: the quality gate failed.
        DataError: no verdict, no kept pair, an empty split, an image of a kept pair missing or undecodable, or shards
            missing where it should finish.
        CorruptError: a raw tar is cut off, or bytes in the object store are damaged.
        ServiceError: the object store is away.
        LockedError: another run is at it.
    """
    require_passed(quality)
    key = _key(config, raw_shards(raw), filtered)
    with work_directory(out, key, part) as work:
        task = _Task(0, work, raw, store, config)
        plan = _planned(task, filtered, num_workers)
        numbers = range(len(plan.paths))
        if part.finish:
            require_done("shard", [str(number) for number in numbers], lambda name: _entry(work, int(name)).is_file())
        else:
            _write_shards(
                task, [number for number in numbers if part.shards is None or number in part.shards], num_workers
            )
        if part.shards is not None:
            return None
        manifest = _finish(work, plan, config.image_px)
        report = _report(plan, manifest)
    write_report(report, reports)
    return report


def _key(config: ShardConfig, shards: list[RawShard], filtered: Path) -> str:
    """Of everything that decides about the bytes; raw tars by name and size, as decisions name their images' sha256."""
    for name in ("decisions.parquet", "images.parquet"):
        if not (filtered / name).is_file():
            raise DataError(f"{filtered / name}: no such file; run `align filter` first")
    tables = [sha256_file(filtered / name) for name in ("decisions.parquet", "images.parquet")]
    tars = [(one.name, one.sha256 or one.tar.stat().st_size) for one in shards]
    return key_of(config, tables, tars, provenance.digest(__name__))


def _planned(task: _Task, filtered: Path, num_workers: int | None) -> Plan:
    """The plan of the work folder; made by whoever comes first, while others wait."""
    with (task.work / f"{_PLAN}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        plan = read_plan(task.work / _PLAN)
        if plan is None:
            numbers = range(len(_tars(task.raw, task.store)))
            tasks = [_Task(number, task.work, task.raw, task.store, task.config) for number in numbers]
            done = in_processes(_index_tar, tasks, _processes(num_workers, len(tasks)))
            paths = list(track(done, what="shard: raw tars indexed", total=len(tasks)))
            plan = make_plan(task.work / _PLAN, filtered, map(np.load, paths), task.raw, task.config)
    return plan


def _processes(num_workers: int | None, num_tasks: int) -> int | None:
    return 1 if num_tasks <= 1 else num_workers


def _tars(raw: Path, store: StoreConfig) -> list[tuple[str, bool]]:
    """Path or URI of each raw tar, by number, and whether it is in the folder (its bytes have been seen here)."""
    found = []
    for one in raw_shards(raw):
        here = one.sha256 is None or one.tar.is_file() or store.objects is None
        found.append((str(one.local_tar()) if here or one.sha256 is None else Objects(store).uri(one.sha256), here))
    return found


def _index_tar(task: _Task) -> Path:
    """Where the images of a raw tar lie, as a file in the work folder; from the headers, which are read once."""
    path = task.work / _INDEX / f"{task.number:05d}.npy"
    if not path.is_file():
        uri, _ = _tars(task.raw, task.store)[task.number]
        with open_files(task.store).open(uri) as file:
            rows = place_rows(image_spans(file, uri), task.number)
        buffer = io.BytesIO()
        np.save(buffer, rows)
        write_bytes(path, buffer.getvalue())
    return path


def _write_shards(task: _Task, numbers: list[int], num_workers: int | None) -> None:
    todo = [
        _Task(number, task.work, task.raw, task.store, task.config)
        for number in numbers if not _entry(task.work, number).is_file()
    ]  # fmt: skip
    done = in_processes(_write_one, todo, _processes(num_workers, len(todo)))
    for _ in track(done, what="shard: shards", total=len(todo)):
        pass


def _write_one(task: _Task) -> None:
    """An output shard: the tar, handed over to the store if there is one, and then its entry, which says it is done."""
    plan = read_plan(task.work / _PLAN)
    assert plan is not None
    tars, files = _tars(task.raw, task.store), open_files(task.store)
    local = [uri if here else None for uri, here in tars]
    with RawTars(
        local, lambda tar, offset, size: files.read(tars[tar][0], offset, size), task.store.num_connections
    ) as images:
        samples = gather(plan.rows(task.number), images, task.config.image_px, task.config.jpeg_quality)
        written = write_shard(task.work, plan.paths[task.number], samples)
    keep_tar(task.work / written.path, written.sha256, task.store)
    write_entry(written, _entry(task.work, task.number))


def _entry(work: Path, number: int) -> Path:
    return work / _DONE / f"{number:05d}.json"


def _finish(work: Path, plan: Plan, image_px: int) -> Manifest:
    """The manifest, and nothing else beside the tars."""
    entries: dict[SplitName, list[Path]] = {name: [] for name in SPLITS}
    for number, path in enumerate(plan.paths):
        entries[_split_of(path)].append(_entry(work, number))
    manifest = join_manifest(work, image_px, entries)
    for leftover in (*work.glob("*/.*.part"), work / f"{_PLAN}.lock"):
        leftover.unlink(missing_ok=True)
    for folder in (_INDEX, _PLAN, _DONE):
        shutil.rmtree(work / folder)
    for name in SPLITS:
        if (work / name).is_dir() and not any((work / name).iterdir()):
            (work / name).rmdir()
    return manifest


def _split_of(path: str) -> SplitName:
    return next(name for name in SPLITS if path.startswith(f"{name}/"))


def _report(plan: Plan, manifest: Manifest) -> ShardReport:
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
    return ShardReport(metrics=metrics, digest=manifest.digest)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Ranges of output shards."""
    add_portion_arguments(parser)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align shard`."""
    config, paths, part = params.section(ShardConfig), params.section(PathsConfig), portion_of(args)
    with record_runtime("shard", paths.runtime) as record:
        report = shard(
            config, params.section(StoreConfig), raw=paths.raw, filtered=paths.filtered,
            quality=paths.reports / "quality", out=paths.shards, reports=paths.reports / "shard",
            num_workers=params.section(EngineConfig).num_workers, part=part,
        )  # fmt: skip
        if report is None:
            say(f"shard: shards {args.shards} are done; `align shard --finish` when all are")
            return
        record["num_images"] = report.metrics["shard/num_images"]
    counts = ", ".join(f"{name} {report.metrics[f'shard/{name}/num_pairs']:,}" for name in SPLITS)
    num_pairs, num_images = report.metrics["shard/num_pairs"], report.metrics["shard/num_images"]
    say(f"shard: {num_pairs:,} pairs of {num_images:,} images ({counts})")
