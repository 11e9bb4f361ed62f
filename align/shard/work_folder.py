"""The work folder of `align shard`, in which a killed run resumes: tables for the SQL, plan, finished shards.

    .kept/NNNNN.parquet    the kept pairs of a raw shard, and where its tar has their images (`align.shard.plan`)
    .hashes/N.parquet      the perceptual hashes of a row group of images.parquet
    .plan/                 which image goes to which output shard
    train/NNNNN.tar        output shards, each with its index NNNNN.npy, also in val/ and test/
    .done/train-NNNNN.json the manifest's row of an output shard, written when its tar is complete and stored

Each table and each output shard is a separate task, which depends on no other task of its kind. For machines that do
not see data/filtered (`store.work`), its files come to the work folder, too (`.given/`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.infrastructure import StoreConfig
from align.config.shard import ShardConfig
from align.durable.files import link, replaced
from align.durable.pieces import Piece, Pieces
from align.formats.filtered import DECISIONS, IMAGES, decision_parts
from align.formats.raw import RawShard, image_spans
from align.formats.shards import SPLITS, Manifest, Sample, SplitName
from align.interfaces.executor import Executor
from align.interfaces.sql import Engine
from align.services.files.files import StoreFiles
from align.services.s3.store import Objects, keep_tar
from align.shard.gather import gather
from align.shard.plan import PLAN, ROWS, ShardPlan, image_hashes, kept_pairs, make_plan, read_plan
from align.shard.writer import join_manifest, write_entry, write_shard

#: Removed at the end.
_GIVEN, _KEPT, _HASHES, _PLAN, _DONE, _ENGINE = ".given", ".kept", ".hashes", ".plan", ".done", ".engine"
#: Samples of each split that the page shows.
_SHOWN = 16
_PLAN_PIECE = Piece("plan", f"{_PLAN}/{PLAN}", lambda: [f"{_PLAN}/{ROWS}"])


@dataclass(frozen=True)
class ShardWork:
    """The work folder, and what every task needs. Can be pickled.

    Attributes:
        pieces: the work folder, and who shares it.
        filtered: data/filtered.
        tars: path or URI of each raw tar, by its name.
        store: where tars go, and where raw ones are that are not in data/raw.
        config: section `shard`.
    """

    pieces: Pieces
    filtered: Path
    tars: Mapping[str, str]
    store: StoreConfig
    config: ShardConfig

    def here(self) -> ShardWork:
        """The same in the folder of this machine. A task begins with this."""
        return replace(self, pieces=self.pieces.here())

    @property
    def folder(self) -> Path:
        """The work folder."""
        return self.pieces.folder

    @property
    def engine_folder(self) -> Path:
        """For scratch files of the SQL, which all machines see that see the work folder."""
        return self.folder / _ENGINE

    def plan(self) -> ShardPlan | None:
        """The plan; None until it is made."""
        return read_plan(self.folder / _PLAN)

    def rows(self, plan: ShardPlan, split: SplitName, number: int) -> pa.Table:
        """`ShardPlan.rows` of an output shard."""
        return plan.rows(self.folder / _PLAN, split, number)

    def give(self, path: Path) -> None:
        """Gives a file of data/filtered to machines that do not see it."""
        piece = _given(path)
        (self.folder / _GIVEN).mkdir(exist_ok=True)
        if not (self.folder / piece.last).exists():
            with replaced(self.folder / piece.last) as beside:
                link(path, beside)
        self.pieces.share(piece)

    def given(self, path: Path) -> Path:
        """A file of data/filtered on this machine."""
        if self.pieces.shared is None:
            return path
        piece = _given(path)
        self.pieces.bring([piece])
        return self.folder / piece.last


def _given(path: Path) -> Piece:
    return Piece(f"given-{path.stem}", f"{_GIVEN}/{path.name}")


def _table(folder: str, name: str) -> Piece:
    return Piece(f"{folder[1:]}-{name}", f"{folder}/{name}.parquet")


def _shard(folder: Path, split: SplitName, number: int) -> Piece:
    """An output shard: its tar, unless that is in the store, its index, and last its entry."""
    files = [f"{split}/{number:05d}.{ending}" for ending in ("tar", "npy")]
    return Piece(
        f"{split}-{number:05d}",
        f"{_DONE}/{split}-{number:05d}.json",
        lambda: [file for file in files if (folder / file).exists()],
    )


def plan_once(work: ShardWork, executor: Executor, open_sql: Callable[[], AbstractContextManager[Engine]]) -> ShardPlan:
    """The plan of the work folder, made if it is missing.

    Args:
        work: the folder.
        executor: makes the tables of the SQL.
        open_sql: opens the engine.

    Raises:
        DataError: nothing is kept, a split would be empty, or an image of a kept pair is missing.
        CorruptError: a file of data/filtered is damaged.
        ServiceError: the object store or the cluster is unavailable.
    """

    def make() -> None:
        fill_tables(work, executor)
        (work.folder / _PLAN).mkdir(exist_ok=True)
        kept, hashes = (work.folder / name / "*.parquet" for name in (_KEPT, _HASHES))
        with open_sql() as engine:
            make_plan(engine, kept, hashes, work.filtered, work.config, work.folder / _PLAN)

    work.pieces.make(_PLAN_PIECE, make)
    work.pieces.bring([_PLAN_PIECE])
    plan = work.plan()
    assert plan is not None
    return plan


def fill_tables(work: ShardWork, executor: Executor) -> None:
    """Makes the tables of the SQL."""
    parts, images = decision_parts(work.filtered), work.filtered / IMAGES
    if work.pieces.shared is not None:
        for path in (*parts, images):
            work.give(path)
    tables = [(_KEPT, part.stem) for part in parts]
    num_groups = max(1, pq.read_metadata(images).num_row_groups)  # an engine reads at least one file
    tables += [(_HASHES, str(group)) for group in range(num_groups)]
    pieces = {_table(*table): table for table in tables}
    work.pieces.fill(executor, partial(_write_table, work), pieces, "shard: tables of kept pairs and images")


def write_shards(work: ShardWork, executor: Executor, plan: ShardPlan) -> None:
    """Writes the output shards that are not complete.

    Raises:
        DataError: an image of a kept pair does not decode.
        CorruptError: a raw tar is cut off, or bytes in the object store are damaged.
        ServiceError: the object store is unavailable.
    """
    shards = {_shard(work.folder, *shard): shard for shard in plan.shards}
    work.pieces.fill(executor, partial(_write_shard, work), shards, "shard: shards")


def examples(work: ShardWork, plan: ShardPlan) -> dict[SplitName, list[Sample]]:
    """The first samples of each split that has some; the seed has shuffled them. Raises as `write_shards`."""
    splits = [split for split, number in plan.shards if number == 0]
    tables = {split: work.rows(plan, split, 0) for split in splits}
    return {split: [*islice(_samples(work, rows), _SHOWN)] for split, rows in tables.items()}


def finish(work: ShardWork, plan: ShardPlan) -> Manifest:
    """Writes the manifest and removes everything else but the tars and their indexes."""
    entries: dict[SplitName, list[Path]] = {name: [] for name in SPLITS}
    for split, number in plan.shards:
        entries[split].append(work.folder / _shard(work.folder, split, number).last)
    manifest = join_manifest(work.folder, work.config.image_px, entries)
    for file in (_PLAN_PIECE.last, *_PLAN_PIECE.others()):  # first: without them, no part of a plan counts
        (work.folder / file).unlink(missing_ok=True)
    for leftover in work.folder.glob("*/.*.part"):
        leftover.unlink(missing_ok=True)
    for name in (_GIVEN, _KEPT, _HASHES, _PLAN, _DONE, _ENGINE):
        shutil.rmtree(work.folder / name, ignore_errors=True)  # tables may be on other machines
    return manifest


def tar_locations(shards: Iterable[RawShard], store: StoreConfig) -> dict[str, str]:
    """Of every raw tar, by its name. Local tars are opened as files; of the others, images are read by range."""
    return {
        shard.name: str(shard.local_tar())
        if shard.sha256 is None or shard.tar.is_file() or store.objects is None
        else Objects(store).uri(shard.sha256)
        for shard in shards
    }


def _write_table(work: ShardWork, _: None, table: tuple[str, str]) -> None:
    work, (folder, name) = work.here(), table

    def make() -> None:
        rows = _kept(work, name) if folder == _KEPT else image_hashes(work.given(work.filtered / IMAGES), int(name))
        (work.folder / folder).mkdir(exist_ok=True)
        with replaced(work.folder / _table(folder, name).last, on_disk=False) as beside:
            pq.write_table(rows, beside)

    work.pieces.make(_table(folder, name), make)


def _kept(work: ShardWork, name: str) -> pa.Table:
    """The kept pairs of a raw shard; where its tar has their images, its headers say."""
    spans: dict[str, tuple[int, int]] = {}
    if name in work.tars:
        with StoreFiles(work.store).open(work.tars[name]) as file:
            spans = {key: (start, size) for key, start, size in image_spans(file, work.tars[name])}
    part = work.given(work.filtered / DECISIONS / f"{name}.parquet")
    return kept_pairs(part, name, spans, work.config.seed)


def _write_shard(work: ShardWork, _: None, shard: tuple[SplitName, int]) -> None:
    work, (split, number) = work.here(), shard
    work.pieces.bring([_PLAN_PIECE])
    plan = work.plan()
    assert plan is not None
    piece = _shard(work.folder, split, number)

    def make() -> None:
        """Writes an output shard, uploads it if there is a store, and then writes its entry."""
        made = write_shard(work.folder, f"{split}/{number:05d}.tar", _samples(work, work.rows(plan, split, number)))
        keep_tar(work.folder / made.path, made.sha256, work.store)
        write_entry(made, work.folder / piece.last)

    work.pieces.make(piece, make)


def _samples(work: ShardWork, rows: pa.Table) -> Iterator[Sample]:
    """The samples of these rows of a plan."""
    files = StoreFiles(work.store)

    def read(tar: str, start: int, num_bytes: int) -> bytes:
        return files.read(work.tars[tar], start, num_bytes)

    return gather(rows, read, work.store.num_connections, work.config.image_px, work.config.jpeg_quality)
