"""How time, memory and disk of ingest, filter and shard grow, and what the paper's number of pairs would take.

Each runs over synthesised pairs at several sizes, in a process of its own. Its tasks run in that process, too,
one after another, so that CPU seconds and peaks can be told apart: whatever happens inside `map` is a task's, the rest
is the driver's. Prints the table of docs/scale.md. Sizes as arguments: `python -m benchmarks.scale 100000`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from align.cli import silence_telemetry
from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.config.params import Params, load_params
from align.config.shard import ShardConfig
from align.display.console import say
from align.durable.steps import Work
from align.formats.policy import OptedOut
from align.formats.raw import raw_shards
from align.interfaces.executor import In, Kept, Out, Task
from benchmarks.filtering_tables import SHARD_SIZE, synthesise
from tests.support import ROOT, local_store
from tests.support.own_process import forget_peak, peak_bytes

if TYPE_CHECKING:
    from align.ingest.writing import OpenShards, Shards

SIZES = (100_000, 1_000_000, 10_000_000)
#: Of pairs with pictures.
TIMES_FEWER = 10
#: What is reckoned: the paper's 1.8 billion pairs, rounded up.
TARGET = 2_000_000_000
#: Of a cluster, and a price that clouds ask.
MACHINES, CORES, PRICE = 10, 16, 0.05


@dataclass
class Watch:
    """What a stage has taken: CPU seconds and peak memory of its driver and of its tasks.

    Attributes:
        above: bytes of the process before it began, which are taken off both peaks.
    """

    driver_s: float = 0.0
    tasks_s: float = 0.0
    driver_bytes: int = 0
    task_bytes: int = 0
    num_tasks: int = 0
    above: int = 0
    _since: float = field(default_factory=time.process_time)

    def start(self) -> None:
        forget_peak()
        self.above, self._since = peak_bytes(), time.process_time()

    def driver(self) -> None:
        """The driver has worked until now."""
        self.driver_s += self._spent()
        self.driver_bytes = max(self.driver_bytes, peak_bytes() - self.above)
        forget_peak()

    def task(self) -> None:
        """A task has worked until now."""
        self.tasks_s += self._spent()
        self.num_tasks += 1
        self.task_bytes = max(self.task_bytes, peak_bytes() - self.above)
        forget_peak()

    def _spent(self) -> float:
        now = time.process_time()
        spent, self._since = now - self._since, now
        return spent


@dataclass(frozen=True)
class WatchedExecutor:
    """See `align.interfaces.executor.Executor`: this process, which tells its tasks from the rest."""

    watch: Watch
    num_at_once = 1
    is_cluster = False

    def map(self, task: Task[Kept, In, Out], items: Sequence[In]) -> Iterator[Out]:
        """See `Executor`."""
        with task.resource(None) as kept:
            for item in items:
                self.watch.driver()
                result = task.function(kept, item)
                self.watch.task()
                yield result


def params() -> Params:
    """The project's values, on one thread, where the cuts keep most of what is synthesised."""
    return load_params(
        ROOT / "params.yaml",
        [
            "engine.num_threads=1", "engine.num_workers=1", "ingest.source=url_table", "ingest.max_pages=null",
            f"ingest.shard_size={SHARD_SIZE}", "shard.images_per_shard=10000", "filter.max_texts_per_image=20",
        ],
    )  # fmt: skip


def plan_ingest(folder: Path, watch: Watch) -> None:
    """A table of addresses for each 10,000 pairs: scanned, sorted into shards, and each shard's rows read."""
    executor = WatchedExecutor(watch)
    work, shards = _planned(folder, executor)

    def read(opened: OpenShards, shard: int) -> int:
        return sum(1 for _ in opened.pairs.rows(shard))

    every = range(shards.plan.end)
    assert sum(executor.map(Task(lambda _: shards.opened(work), read), every)) == shards.plan.num_pairs


def fetch_pictures(folder: Path, watch: Watch) -> None:
    """After the plan: addresses in lanes of hosts, answered at once with one picture, and written as shards."""
    from align.ingest import fetching
    from align.ingest.download import Ask, Fetched
    from align.ingest.lanes import write_from_web

    work, shards = _planned(folder, WatchedExecutor(Watch()))
    picture = tiny_picture(0)

    class Answering(nullcontext[Any]):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(self)

        def fetch(self, asks: Iterable[Ask]) -> Iterator[Fetched]:
            return (Fetched(ask.url, picture, None, False, 1, 0.0) for ask in asks)

    vars(fetching)["Downloader"] = Answering  # in a process of its own
    watch.start()
    write_from_web(work, shards, WatchedExecutor(watch))


def _planned(folder: Path, executor: WatchedExecutor) -> tuple[Work, Shards]:
    """The shards of an ingest of the tables of addresses."""
    from align.ingest.plan import Planner
    from align.ingest.scan import Scan
    from align.ingest.sources import open_source
    from align.ingest.sources.raw_before import Before
    from align.ingest.writing import Shards
    from align.services.engine import open_engine
    from align.services.files.files import StoreFiles

    values, store = params(), local_store.config(folder, None)
    config, engine, download = (
        values.section(IngestConfig),
        values.section(EngineConfig),
        values.section(DownloadConfig),
    )
    source = open_source(config, str(folder / "tables"), StoreFiles(store))
    work = Work(folder / "ingest")
    work.folder.mkdir()
    Scan(source, OptedOut(), judges_texts=False).run(work, executor, 0, folder / "kept")
    open_sql = partial(open_engine, engine, folder)
    plan = Planner(work, open_sql, config, "web", obeys=True, text_cuts=None, before=Before(work, store)).first()
    return work, Shards(plan, source, 10**8, download, OptedOut(), store)


def filter_pairs(folder: Path, watch: Watch) -> None:
    """Words, SQL, files and report of pairs whose pictures are measured."""
    from align.filter import filter as stage
    from benchmarks.filtering import whole_filter

    num_pairs = sum(pq.read_metadata(table).num_rows for table in (folder / "raw").glob("*.parquet"))
    config = params().section(FilterConfig).model_copy(update={"num_frequent_ngrams": 30 * num_pairs})
    _watched(stage, watch)
    whole_filter(folder, config, params().section(EngineConfig))


def plan_shards(folder: Path, watch: Watch) -> None:
    """Tables of all kept pairs and pictures, clusters, splits and order; headers of tars are made up."""
    from align.services.engine import open_engine
    from align.shard import work_folder

    def spans(_: Any, tar: str) -> Iterator[tuple[str, int, int]]:  # the synthesised tars are empty
        keys = pq.read_table(Path(tar).with_suffix(".parquet"), columns=["image_key"])["image_key"].drop_null()
        return ((key, 1024 * row, 400) for row, key in enumerate(pc.unique(keys).to_pylist()))

    vars(work_folder)["image_spans"] = spans  # in a process of its own
    store = local_store.config(folder, None)
    (folder / "planned").mkdir()
    tars = work_folder.tar_locations(raw_shards(folder / "raw"), store)
    config, engine = params().section(ShardConfig), params().section(EngineConfig)
    work = work_folder.ShardWork(Work(folder / "planned"), folder / "filtered", tars, store, config)
    watch.start()
    work_folder.plan_once(work, WatchedExecutor(watch), partial(open_engine, engine, folder / "engine"))


def write_shards(folder: Path, watch: Watch) -> None:
    """The whole stage, with tiny pictures."""
    from align.formats.filtered import decisions_digest
    from align.shard import shard as stage
    from tests.support.small_data import write_verdict

    _watched(stage, watch)
    folders = stage.ShardFolders(
        folder / "raw", folder / "filtered", folder / "quality", folder / "shards", folder / "reports/shard"
    )
    write_verdict(folders.quality, passed=True, data=decisions_digest(folders.filtered))
    values = params()
    stage.shard(values.section(ShardConfig), local_store.config(folder, None), folders, values.section(EngineConfig))


def _watched(stage: ModuleType, watch: Watch) -> None:
    setattr(stage, "open_executor", lambda *_: _given(WatchedExecutor(watch)))  # noqa: B010 - mypy lets nobody assign a name that a module imports


@contextmanager
def _given(executor: WatchedExecutor) -> Iterator[WatchedExecutor]:
    yield executor


def tables_of_addresses(folder: Path) -> None:
    """The addresses and texts of the synthesised raw tables as a source of `align ingest`."""
    (folder / "tables").mkdir()
    for table in sorted((folder / "raw").glob("*.parquet")):
        rows = pq.read_table(table, columns=["url", "caption", "page_url"])
        pq.write_table(rows.rename_columns(["url", "text", "page_url"]), folder / "tables" / table.name)


def tiny_picture(number: int) -> bytes:
    """A JPEG of 24 px, another for each number."""
    colours = np.random.default_rng([2, number]).integers(0, 256, (3, 3, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((24, 24)).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@dataclass(frozen=True)
class Measured:
    """A stage at one size.

    Attributes:
        stage: its name.
        num_pairs: of the source.
        wrote: bytes on disk.
    """

    stage: str
    num_pairs: int
    driver_s: float
    tasks_s: float
    driver_bytes: int
    task_bytes: int
    num_tasks: int
    wrote: int


#: Stage -> what does it, and the folder that it writes.
STAGES: dict[str, tuple[Callable[[Path, Watch], None], str]] = {
    "ingest: scan and plan": (plan_ingest, "ingest"),
    "filter": (filter_pairs, "filtered"),
    "shard: plan": (plan_shards, "planned"),
}
#: The same, over pictures of 24 px, a tenth as many: shards of all would fill the disk, and take an hour.
WITH_PICTURES: dict[str, tuple[Callable[[Path, Watch], None], str]] = {
    "ingest: pictures, without the web": (fetch_pictures, "ingest"),
    "shard": (write_shards, "shards"),
}


_EVERY = STAGES | WITH_PICTURES


def measure(stage: str, folder: Path, num_pairs: int) -> Measured:
    """Runs a stage in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, stage, folder))
    process.start()
    sender.close()
    try:
        values: dict[str, Any] = json.loads(receiver.recv())
    except EOFError:
        raise RuntimeError(f"{stage} failed at {num_pairs:,} pairs") from None
    finally:
        process.join()
    wrote = sum(path.stat().st_size for path in (folder / _EVERY[stage][1]).rglob("*") if path.is_file())
    return Measured(stage, num_pairs, wrote=wrote, **values)


def _run(sender: Any, stage: str, folder: Path) -> None:
    os.chdir(folder)
    watch = Watch()
    watch.start()
    _EVERY[stage][0](folder, watch)
    watch.driver()
    names = ("driver_s", "tasks_s", "driver_bytes", "task_bytes", "num_tasks")
    sender.send(json.dumps({name: getattr(watch, name) for name in names}))


def by_stage(rows: list[Measured]) -> dict[str, list[Measured]]:
    stages: dict[str, list[Measured]] = {}
    for row in rows:
        stages.setdefault(row.stage, []).append(row)
    return stages


def slope(rows: list[Measured], value: Callable[[Measured], float]) -> float | None:
    """The exponent between the two largest sizes: 1 is linear; None with one size, or where nothing was measured."""
    if len(rows) < 2:
        return None
    small, large = rows[-2:]
    if min(value(small), value(large)) <= 0:
        return None
    return math.log(value(large) / value(small)) / math.log(large.num_pairs / small.num_pairs)


def at_target(rows: list[Measured], value: Callable[[Measured], float]) -> float:
    """The value at TARGET: by what each pair beyond the last size but one took, or by the exponent if it is above 1."""
    small, large = rows[-2:]
    each = (value(large) - value(small)) / (large.num_pairs - small.num_pairs)
    linear = value(large) + max(each, 0.0) * (TARGET - large.num_pairs)
    exponent = slope(rows, value)
    if exponent is None or exponent <= 1:
        return linear
    growth: float = (TARGET / large.num_pairs) ** exponent
    return value(large) * growth


#: Column of the table -> its value, and whether its exponent is shown.
_COLUMNS: dict[str, tuple[Callable[[Measured], float], bool]] = {
    "driver, CPU s": (lambda one: one.driver_s, True),
    "driver, MiB": (lambda one: one.driver_bytes / 2**20, True),
    "tasks, CPU s": (lambda one: one.tasks_s, True),
    "a task, MiB": (lambda one: one.task_bytes / 2**20, False),
    "on disk, MB": (lambda one: one.wrote / 1e6, True),
}


def table(rows: list[Measured]) -> str:
    """What was measured, and what is reckoned from it, as Markdown. An exponent stands in brackets: 1 is linear."""
    lines = [f"| stage | pairs | {' | '.join(_COLUMNS)} |", "|---|--:|" + "--:|" * len(_COLUMNS)]
    for stage, of_stage in by_stage(rows).items():
        for number, row in enumerate(of_stage, 1):
            cells = []
            for value, with_exponent in _COLUMNS.values():
                found = slope(of_stage[:number], value) if with_exponent else None
                figure = f"{value(row):,.1f}" if value(row) < 10 else f"{value(row):,.0f}"
                cells.append(figure + ("" if found is None else f" [{found:.2f}]"))
            lines.append(f"| {stage} | {row.num_pairs:,} | {' | '.join(cells)} |")
    if all(len(of_stage) < 2 for of_stage in by_stage(rows).values()):
        return "\n".join(lines)
    lines += [
        "",
        f"Reckoned on to {TARGET:,} pairs, from what each pair beyond the last size but one took; hours with "
        f"{MACHINES} machines of {CORES} cores, at {PRICE} dollars for a core and hour:",
        "",
        "| stage | driver, hours on one core | tasks, core hours | hours | dollars |",
        "|---|--:|--:|--:|--:|",
    ]
    for stage, of_stage in by_stage(rows).items():
        driver_h = at_target(of_stage, lambda one: one.driver_s) / 3600
        tasks_h = at_target(of_stage, lambda one: one.tasks_s) / 3600 if of_stage[-1].tasks_s else 0.0
        hours = driver_h + tasks_h / (MACHINES * CORES)
        dollars = (driver_h * CORES + tasks_h) * PRICE
        lines.append(f"| {stage} | {driver_h:,.1f} | {tasks_h:,.0f} | {hours:,.1f} | {dollars:,.0f} |")
    return "\n".join(lines)


def run(num_pairs: int, stages: Iterable[str], *, with_pictures: bool) -> list[Measured]:
    """The stages over synthesised pairs, one after another."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="align-scale-") as name:
        folder, start = Path(name), time.monotonic()
        synthesise(folder, num_pairs, picture=tiny_picture if with_pictures else None)
        tables_of_addresses(folder)
        if with_pictures:
            measure("filter", folder, num_pairs)
        say(f"benchmark: {num_pairs:,} pairs made in {time.monotonic() - start:.0f} s")
        for stage in stages:
            row = measure(stage, folder, num_pairs)
            rows.append(row)
            say(
                f"benchmark: {num_pairs:,} pairs, {stage}: driver {row.driver_s:.1f} s, {row.driver_bytes >> 20:,} "
                f"MiB; {row.num_tasks:,} tasks {row.tasks_s:.1f} s, {row.task_bytes >> 20:,} MiB; {row.wrote:,} bytes"
            )
            shutil.rmtree(folder / "ingest", ignore_errors=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, help="numbers of pairs")
    args = parser.parse_args()
    silence_telemetry()
    rows: list[Measured] = []
    for num_pairs in args.sizes:
        rows += run(num_pairs, STAGES, with_pictures=False)
    for num_pairs in args.sizes:
        rows += run(num_pairs // TIMES_FEWER, WITH_PICTURES, with_pictures=True)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
