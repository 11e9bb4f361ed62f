"""The work folder of `align shard`, in which a killed run resumes (`align.durable.steps`), and its steps.

given/NAME/            a file of data/filtered, for machines that do not see that (`store.work`)
tables/kept-SHARD/     kept.parquet: the kept pairs of a raw shard (`align.shard.plan`)
tables/hashes-N/       hashes.parquet: of a row group of images.parquet
plan/                  which image goes to which output shard
written/train-NNNNN/   train/NNNNN.tar, unless it is in the object store, its index, and its row of the manifest
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from align.config.infrastructure import StoreConfig
from align.config.shard import ShardConfig
from align.durable.files import link, write_text
from align.durable.steps import Step, Work
from align.formats.filtered import DECISIONS, IMAGES, decision_parts
from align.formats.raw import RawShard, image_spans
from align.formats.shards import SPLITS, Manifest, Sample, Shard, SplitName
from align.interfaces.executor import Executor
from align.interfaces.sql import Engine
from align.services.files.files import StoreFiles
from align.services.s3.store import Objects, keep_tar
from align.shard.gather import gather
from align.shard.plan import ROWS, ShardPlan, image_hashes, kept_pairs, make_plan, num_row_groups, read_plan, read_rows
from align.shard.writer import write_manifest, write_shard

_GIVEN, _TABLES, _PLAN, _WRITTEN = "given", "tables", "plan", "written"
#: An output shard's row of the manifest.
_ENTRY = "shard.json"
#: Samples of each split that the page shows.
_SHOWN = 16


@dataclass(frozen=True)
class ShardWork:
    """The work folder, and what every task needs. Can be pickled.

    Attributes:
        work: the results of the steps.
        filtered: data/filtered.
        tars: path or URI of each raw tar, by its name.
        store: where tars go, and where raw ones are that are not in data/raw.
        config: section `shard`.
    """

    work: Work
    filtered: Path
    tars: Mapping[str, str]
    store: StoreConfig
    config: ShardConfig

    @contextmanager
    def opened(self, here: Work) -> Iterator[ShardWork]:
        """The same with the results on the machine of a task."""
        yield replace(self, work=here)

    def give(self, path: Path) -> None:
        """Gives a file of data/filtered to machines that do not see it."""
        self.work.make(f"{_GIVEN}/{path.stem}", lambda out: link(path, out / path.name))

    def given(self, path: Path) -> Path:
        """A file of data/filtered on this machine."""
        if self.work.shared is None:
            return path
        self.work.fetch([f"{_GIVEN}/{path.stem}"])
        return self.work.folder / _GIVEN / path.stem / path.name

    def samples(self, split: SplitName, number: int) -> Iterator[Sample]:
        """The samples of an output shard."""
        files, config = StoreFiles(self.store), self.config
        with self.work.open(_PLAN, ROWS) as stream:
            rows = read_rows(stream, split, number, config.images_per_shard)

        def read(tar: str, start: int, num_bytes: int) -> bytes:
            return files.read(self.tars[tar], start, num_bytes)

        return gather(rows, read, self.store.num_connections, config.image_px, config.jpeg_quality)


def plan_once(work: ShardWork, executor: Executor, open_sql: Callable[[], AbstractContextManager[Engine]]) -> ShardPlan:
    """The plan of the work folder, made if it is missing: the executor makes the tables that the SQL reads."""

    def make(out: Path) -> None:
        parts, images = decision_parts(work.filtered), work.filtered / IMAGES
        if work.work.shared is not None:
            for path in (*parts, images):
                work.give(path)
        tables: dict[str, str | int] = {f"kept-{part.stem}": part.stem for part in parts}
        tables |= {f"hashes-{group}": group for group in range(num_row_groups(images))}
        step = Step(_TABLES, _write_table, "shard: tables of kept pairs and images", resource=work.opened)
        work.work.run(step, tables, executor)
        with open_sql() as engine:
            for name in ("kept", "hashes"):
                engine.view(name, work.work.folder / _TABLES / "*" / f"{name}.parquet")
            make_plan(engine, work.filtered, work.config, out)

    work.work.make(_PLAN, make)
    return read_plan(work.work.folder / _PLAN)


def _write_table(work: ShardWork, out: Path, table: str | int) -> None:
    """Writes the kept pairs of a raw shard, or the hashes of a row group."""
    if isinstance(table, int):
        rows = image_hashes(work.given(work.filtered / IMAGES), table)
        pq.write_table(rows, out / "hashes.parquet")
    else:
        spans: dict[str, tuple[int, int]] = {}
        if table in work.tars:  # its headers say where it has the images
            with StoreFiles(work.store).open(work.tars[table]) as file:
                spans = {key: (start, size) for key, start, size in image_spans(file, work.tars[table])}
        part = work.given(work.filtered / DECISIONS / f"{table}.parquet")
        pq.write_table(kept_pairs(part, table, spans, work.config.seed), out / "kept.parquet")


def write_shards(work: ShardWork, executor: Executor, plan: ShardPlan) -> None:
    """Writes the output shards that are not complete."""
    shards = {f"{split}-{number:05d}": (split, number) for split, number in plan.shards}
    work.work.run(Step(_WRITTEN, _write_shard, "shard: shards", resource=work.opened), shards, executor)


def _write_shard(work: ShardWork, out: Path, shard: tuple[SplitName, int]) -> None:
    split, number = shard
    made = write_shard(out, f"{split}/{number:05d}.tar", work.samples(split, number))
    keep_tar(out / made.path, made.sha256, work.store)
    write_text(out / _ENTRY, made.model_dump_json())


def examples(work: ShardWork, plan: ShardPlan) -> dict[SplitName, list[Sample]]:
    """The first samples of each split that has some; the seed has shuffled them."""
    splits = [split for split, number in plan.shards if number == 0]
    return {split: [*islice(work.samples(split, 0), _SHOWN)] for split in splits}


def finish(work: ShardWork, plan: ShardPlan) -> Manifest:
    """Puts tars and indexes in their places, writes the manifest, and removes everything else."""
    folder = work.work.folder
    shards: dict[SplitName, list[Shard]] = {name: [] for name in SPLITS}
    for split, number in plan.shards:
        written = folder / _WRITTEN / f"{split}-{number:05d}"
        shards[split].append(Shard.model_validate_json((written / _ENTRY).read_bytes()))
        (folder / split).mkdir(exist_ok=True)
        for file in (written / split).iterdir():  # none, if a run was killed here
            os.replace(file, folder / split / file.name)
    manifest = write_manifest(folder, work.config.image_px, shards)
    work.work.drop((_GIVEN, _TABLES, _PLAN, _WRITTEN))
    return manifest


def tar_locations(shards: Iterable[RawShard], store: StoreConfig) -> dict[str, str]:
    """Of every raw tar, by its name. Local tars are opened as files; of the others, images are read by range."""
    return {
        shard.name: str(shard.local_tar())
        if shard.sha256 is None or shard.tar.is_file() or store.objects is None
        else Objects(store).uri(shard.sha256)
        for shard in shards
    }
