"""The work folder of `align shard`, in which a killed run resumes: index of the raw tars, plan, finished shards.

    .index/NNNNN.npy   where the images of a raw tar are
    .plan/             which image goes to which output shard (`align.shard.assignment`)
    train/NNNNN.tar    output shards, each with its index NNNNN.npy, also in val/ and test/
    .done/NNNNN.json   the manifest's row of an output shard, written when its tar is complete and stored

Each index file and each output shard is a separate task, which depends on no other task of its kind.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from align.config.infrastructure import StoreConfig
from align.config.shard import ShardConfig
from align.display.console import track
from align.durable.files import replaced, write_bytes
from align.durable.pieces import Piece, Pieces
from align.durable.processes import in_threads
from align.formats.raw import RawShard, image_spans
from align.formats.shards import SPLITS, Manifest, Sample, SplitName
from align.interfaces.executor import Executor
from align.services.files.files import StoreFiles
from align.services.s3.store import Objects, keep_tar
from align.shard.assignment import ShardPlan, make_plan, read_plan, rows_file
from align.shard.gather import RawTars, gather
from align.shard.image_spans import span_rows
from align.shard.writer import join_manifest, write_entry, write_shard

#: Removed at the end.
_PLAN, _INDEX, _DONE = ".plan", ".index", ".done"
#: In the plan, once the rows of all shards are where other machines find them.
_SHARED = "shared"
#: Samples of each split that the page shows.
_SHOWN = 16


@dataclass(frozen=True)
class ShardWork:
    """The work folder, and what every task needs. Can be pickled.

    Attributes:
        pieces: the work folder, and who shares it.
        raw: data/raw.
        tars: path or URI of each raw tar, by its number.
        store: where tars go, and where raw ones are that are not in `raw`.
        config: section `shard`.
    """

    pieces: Pieces
    raw: Path
    tars: Sequence[str]
    store: StoreConfig
    config: ShardConfig

    def here(self, scratch: Path | None) -> ShardWork:
        """The same in the folder of this machine. A task begins with this."""
        return replace(self, pieces=self.pieces.here(scratch))

    @property
    def folder(self) -> Path:
        """The work folder."""
        return self.pieces.folder

    @property
    def plan_folder(self) -> Path:
        """The plan; missing until it is made."""
        return self.folder / _PLAN

    def index(self, tar: int) -> Path:
        """Where the images of a raw tar are; missing until the tar is indexed."""
        return self.folder / _INDEX / f"{tar:05d}.npy"

    def entry(self, number: int) -> Path:
        """The manifest's row of an output shard; missing until the shard is done."""
        return self.folder / _DONE / f"{number:05d}.json"

    def index_of(self, tar: int) -> Piece:
        """The index of a raw tar, as a piece."""
        return Piece(f"index-{tar:05d}", self.index(tar).relative_to(self.folder).as_posix())

    def shard(self, number: int, plan: ShardPlan) -> Piece:
        """An output shard: its tar, unless that is in the store, its index, and last its entry."""
        path = plan.path(number)
        last = self.entry(number).relative_to(self.folder).as_posix()
        files = (path, f"{path.rpartition('.')[0]}.npy")
        return Piece(f"{number:05d}", last, lambda: [file for file in files if (self.folder / file).exists()])

    @property
    def plan(self) -> Piece:
        """The plan without its rows, as a piece; its last file says that the rows of all shards are shared."""
        return Piece("plan", f"{_PLAN}/{_SHARED}", lambda: [f"{_PLAN}/plan.json"])

    def rows_of(self, number: int) -> Piece:
        """The rows of an output shard in the plan, as a piece."""
        return Piece(f"rows-{number:05d}", f"{_PLAN}/{rows_file(number)}")


def plan_once(work: ShardWork, executor: Executor, filtered: Path) -> ShardPlan:
    """The plan of the work folder, made if it is missing.

    Raises:
        DataError: nothing is kept, a split would be empty, or an image of a kept pair is missing.
        ServiceError: the object store is unavailable.
    """

    def make() -> None:
        plan = read_plan(work.plan_folder)
        if plan is None:
            shutil.rmtree(work.plan_folder, ignore_errors=True)  # `finish` was killed while it removed it
            tars = range(len(work.tars))
            indexes = {work.index_of(tar): tar for tar in tars}
            work.pieces.fill(executor, partial(_index_tar, work), indexes, "shard: raw tars indexed")
            spans = (np.load(work.index(tar)) for tar in tars)
            plan = make_plan(work.plan_folder, filtered, spans, work.raw, work.config)
        if work.pieces.shared is not None:
            rows = map(work.rows_of, range(plan.num_shards))
            here = [one for one in rows if (work.folder / one.last).exists()]
            for _ in track(
                in_threads(work.pieces.share, here, work.store.num_connections),
                what="shard: rows of shards stored",
                total=len(here),
            ):
                pass
        write_bytes(work.folder / work.plan.last, b"")

    work.pieces.make(work.plan, make)
    work.pieces.bring([work.plan])
    plan = read_plan(work.plan_folder)
    assert plan is not None
    return plan


def write_shards(work: ShardWork, executor: Executor, plan: ShardPlan) -> None:
    """Writes the output shards that are not complete.

    Raises:
        DataError: an image of a kept pair does not decode.
        CorruptError: a raw tar is cut off, or bytes in the object store are damaged.
        ServiceError: the object store is unavailable.
    """
    shards = {work.shard(number, plan): number for number in range(plan.num_shards)}
    work.pieces.fill(executor, partial(_write_shard, work), shards, "shard: shards")


def examples(work: ShardWork, plan: ShardPlan) -> dict[SplitName, list[Sample]]:
    """The first samples of each split that has some; the seed has shuffled them. Raises as `write_shards`."""
    first: dict[SplitName, int] = {}
    for number in range(plan.num_shards):
        first.setdefault(_split_of(plan.path(number)), number)
    work.pieces.bring([work.rows_of(number) for number in first.values()])
    tables = {split: plan.rows(number) for split, number in first.items()}
    return {split: [*_samples(work, rows.filter(pc.less(rows["rank"], _SHOWN)))] for split, rows in tables.items()}


def finish(work: ShardWork, plan: ShardPlan) -> Manifest:
    """Writes the manifest and removes everything else but the tars and their indexes."""
    entries: dict[SplitName, list[Path]] = {name: [] for name in SPLITS}
    for number in range(plan.num_shards):
        entries[_split_of(plan.path(number))].append(work.entry(number))
    manifest = join_manifest(work.folder, work.config.image_px, entries)
    for file in (work.plan.last, *work.plan.others()):  # first: without them, no part of a plan counts
        (work.folder / file).unlink(missing_ok=True)
    for leftover in work.folder.glob("*/.*.part"):
        leftover.unlink(missing_ok=True)
    for name in (_INDEX, _PLAN, _DONE):
        shutil.rmtree(work.folder / name, ignore_errors=True)  # the index may be on another machine
    return manifest


def _split_of(path: str) -> SplitName:
    return next(name for name in SPLITS if path.startswith(f"{name}/"))


def tar_locations(shards: Iterable[RawShard], store: StoreConfig) -> list[str]:
    """Of every raw tar, by its number. Local tars are opened as files; of the others, images are read by range."""
    return [
        str(shard.local_tar())
        if shard.sha256 is None or shard.tar.is_file() or store.objects is None
        else Objects(store).uri(shard.sha256)
        for shard in shards
    ]


def _index_tar(work: ShardWork, scratch: Path | None, tar: int) -> None:
    """Indexes a raw tar from its headers, which are read once."""
    work = work.here(scratch)

    def make() -> None:
        uri = work.tars[tar]
        with StoreFiles(work.store).open(uri) as file:
            rows = span_rows(image_spans(file, uri), tar)
        work.index(tar).parent.mkdir(exist_ok=True)
        with replaced(work.index(tar)) as beside, beside.open("wb") as index:
            np.save(index, rows)

    work.pieces.make(work.index_of(tar), make)


def _write_shard(work: ShardWork, scratch: Path | None, number: int) -> None:
    work = work.here(scratch)
    work.pieces.bring([work.plan, work.rows_of(number)])
    plan = read_plan(work.plan_folder)
    assert plan is not None
    work.pieces.make(work.shard(number, plan), partial(_make_shard, work, plan, number))


def _make_shard(work: ShardWork, plan: ShardPlan, number: int) -> None:
    """Writes an output shard, uploads it if there is a store, and then writes its entry."""
    shard = write_shard(work.folder, plan.path(number), _samples(work, plan.rows(number)))
    keep_tar(work.folder / shard.path, shard.sha256, work.store)
    write_entry(shard, work.entry(number))


def _samples(work: ShardWork, rows: pa.Table) -> Iterator[Sample]:
    """The samples of these rows of a plan."""
    tars, files = work.tars, StoreFiles(work.store)
    local_tars = [None if "://" in tar else tar for tar in tars]
    with RawTars(
        local_tars, lambda tar, offset, size: files.read(tars[tar], offset, size), work.store.num_connections
    ) as images:
        yield from gather(rows, images, work.config.image_px, work.config.jpeg_quality)
