"""The work folder of `align shard`, in which a killed run resumes: index of the raw tars, plan, finished shards.

    .index/NNNNN.npy   where the images of a raw tar are
    .plan/             which image goes to which output shard (`align.shard.assignment`)
    train/NNNNN.tar    output shards, also in val/ and test/
    .done/NNNNN.json   the manifest's row of an output shard, written when its tar is complete and stored

Each index file and each output shard is a separate task, which depends on no other task of its kind.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from align.config.infrastructure import StoreConfig
from align.config.shard import ShardConfig
from align.display.console import track
from align.durable.files import is_temporary, write_bytes
from align.durable.processes import in_processes
from align.durable.work import Portion
from align.formats.raw import image_spans, raw_shards
from align.formats.shards import SPLITS, Manifest, SplitName
from align.pieces import Outcome, Piece, Pieces, last_those_of_others
from align.services.files.files import StoreFiles
from align.services.s3.store import Objects, keep_tar
from align.shard.assignment import ShardPlan, make_plan, read_plan
from align.shard.gather import RawTars, gather
from align.shard.image_spans import span_rows
from align.shard.writer import join_manifest, write_entry, write_shard

#: Removed at the end.
_PLAN, _INDEX, _DONE = ".plan", ".index", ".done"


@dataclass(frozen=True)
class ShardWork:
    """The work folder, and what every task needs. Can be pickled.

    Attributes:
        pieces: the work folder, and who shares it.
        raw: data/raw.
        store: where tars go, and where raw ones are that are not in `raw`.
        config: section `shard`.
        portion: of the work; after a range, output shards of other machines stay where they are; `--finish` brings them
            and makes no shard.
    """

    pieces: Pieces
    raw: Path
    store: StoreConfig
    config: ShardConfig
    portion: Portion

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

    def is_done(self, number: int) -> bool:
        """Whether an output shard is complete and stored."""
        return self.entry(number).is_file()


@dataclass(frozen=True)
class _TarLocation:
    """Path or URI of a raw tar, and whether it is a file on this machine."""

    uri: str
    is_local: bool


def plan_once(work: ShardWork, filtered: Path, num_workers: int | None) -> ShardPlan:
    """The plan of the work folder. The first process makes it, while others wait.

    Raises:
        DataError: nothing is kept, a split would be empty, or an image of a kept pair is missing.
        ServiceError: the object store is unavailable.
    """

    def make() -> None:
        shutil.rmtree(work.plan_folder, ignore_errors=True)  # `finish` was killed while it removed it
        tars = range(len(raw_shards(work.raw)))
        done = in_processes(
            partial(_index_tar, work),
            tars,
            _num_processes(num_workers, len(tars)),
            name_of=lambda tar: _tar_locations(work)[tar].uri,
        )
        paths = list(track(done, what="shard: raw tars indexed", total=len(tars)))
        make_plan(work.plan_folder, filtered, map(np.load, paths), work.raw, work.config)

    last = f"{_PLAN}/plan.json"

    def others() -> list[str]:
        names = sorted(f"{_PLAN}/{path.name}" for path in work.plan_folder.iterdir() if not is_temporary(path))
        return [name for name in names if name != last]

    work.pieces.make(Piece("plan", last, others, "plan"), make, may_make=not work.portion.finish)
    plan = read_plan(work.plan_folder)
    assert plan is not None
    return plan


def write_shards(work: ShardWork, numbers: Sequence[int], num_workers: int | None) -> None:
    """Writes the output shards of these numbers, if they are not complete.

    Raises:
        DataError: an image of a kept pair does not decode.
        CorruptError: a raw tar is cut off, or bytes in the object store are damaged.
        ServiceError: the object store is unavailable.
    """

    def do(some: list[int], wait: bool) -> Iterable[Outcome[None]]:
        done = in_processes(
            partial(_write_shard, work, wait),
            some,
            _num_processes(num_workers, len(some)),
            name_of=lambda number: f"shard {number:05d} of {work.folder}",
        )
        return track(done, what="shard: shards", total=len(some))

    for _ in last_those_of_others(numbers, do):
        pass


def finish(work: ShardWork, plan: ShardPlan) -> Manifest:
    """Writes the manifest and removes everything else but the tars.

    Returns:
        The manifest without its offsets.
    """
    entries: dict[SplitName, list[Path]] = {name: [] for name in SPLITS}
    for number, path in enumerate(plan.paths):
        entries[_split_of(path)].append(work.entry(number))
    manifest = join_manifest(work.folder, work.config.image_px, entries)
    for leftover in work.folder.glob("*/.*.part"):
        leftover.unlink(missing_ok=True)
    for name in (_INDEX, _PLAN, _DONE):
        shutil.rmtree(work.folder / name, ignore_errors=True)  # the index may be on another machine
    for folder in (work.folder / name for name in SPLITS):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return manifest


def _split_of(path: str) -> SplitName:
    return next(name for name in SPLITS if path.startswith(f"{name}/"))


def _num_processes(num_workers: int | None, num_tasks: int) -> int | None:
    return 1 if num_tasks <= 1 else num_workers


def _tar_locations(work: ShardWork) -> list[_TarLocation]:
    """Of every raw tar, by its number. Local tars are opened as files; of the others, images are read by range."""
    locations = []
    for shard in raw_shards(work.raw):
        if shard.sha256 is None or shard.tar.is_file() or work.store.objects is None:
            locations.append(_TarLocation(str(shard.local_tar()), is_local=True))
        else:
            locations.append(_TarLocation(Objects(work.store).uri(shard.sha256), is_local=False))
    return locations


def _index_tar(work: ShardWork, tar: int) -> Path:
    """Indexes a raw tar from its headers, which are read once; returns the file."""
    path = work.index(tar)
    if not path.is_file():
        uri = _tar_locations(work)[tar].uri
        with StoreFiles(work.store).open(uri) as file:
            rows = span_rows(image_spans(file, uri), tar)
        buffer = io.BytesIO()
        np.save(buffer, rows)
        write_bytes(path, buffer.getvalue())
    return path


def _write_shard(work: ShardWork, wait: bool, number: int) -> Outcome[None]:
    """Makes an output shard; `wait`: for another process that is making it."""
    plan = read_plan(work.plan_folder)
    assert plan is not None
    tar, last = plan.paths[number], work.entry(number).relative_to(work.folder).as_posix()
    return work.pieces.make(
        Piece(f"{number:05d}", last, lambda: [tar] if (work.folder / tar).exists() else [], f"shard {number}"),
        partial(_make_shard, work, plan, number),
        wait=wait,
        bring=work.portion.shards is None,
        may_make=not work.portion.finish,
    )


def _make_shard(work: ShardWork, plan: ShardPlan, number: int) -> None:
    """Writes the tar of an output shard, uploads it if there is a store, and then writes its entry."""
    tars, files = _tar_locations(work), StoreFiles(work.store)
    local_tars = [tar.uri if tar.is_local else None for tar in tars]
    with RawTars(
        local_tars, lambda tar, offset, size: files.read(tars[tar].uri, offset, size), work.store.num_connections
    ) as images:
        samples = gather(plan.rows(number), images, work.config.image_px, work.config.jpeg_quality)
        shard = write_shard(work.folder, plan.paths[number], samples)
    keep_tar(work.folder / shard.path, shard.sha256, work.store)
    write_entry(shard, work.entry(number))
