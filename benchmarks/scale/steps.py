"""The stages of the data over synthesised pairs; each in a process of its own, its tasks apart from its driver.

Tasks run in the driver's process, one after another, so that CPU seconds and peaks can be told apart: whatever happens
inside `map` is a task's, the rest is the driver's.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.config.params import Params, load_params
from align.config.shard import ShardConfig
from align.durable.pieces import Pieces
from align.formats.policy import OptedOut
from align.formats.raw import raw_shards
from align.interfaces.executor import In, Kept, Out, Step
from benchmarks.data.filtering_tables import SHARD_SIZE
from benchmarks.peak import forget_peak, peak_bytes
from tests.support import ROOT, local_store


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

    def map(self, step: Step[Kept, In, Out], items: Sequence[In]) -> Iterator[Out]:
        """See `Executor`."""
        with step.resource() as kept:
            for item in items:
                self.watch.driver()
                result = step.function(kept, item)
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


def plan_ingest(folder: Path, num_pairs: int, watch: Watch) -> None:
    """A table of addresses for each 10,000 pairs: scanned, sorted into shards, and each shard's rows read."""
    del num_pairs
    executor = WatchedExecutor(watch)
    names, pieces, open_shard = _planned(folder, executor)

    def read(_: None, name: str) -> int:
        with open_shard(pieces, name) as shard:
            return sum(1 for _ in shard.rows())

    assert sum(executor.map(Step(nullcontext, read), names)) > 0


def fetch_pictures(folder: Path, num_pairs: int, watch: Watch) -> None:
    """After the plan: addresses divided by host, answered at once with one picture, and written as shards."""
    from align.ingest import groups
    from align.ingest.download import Ask, Fetched
    from align.ingest.fetching import Pictures
    from align.ingest.workers import Resources, write_shards

    del num_pairs
    names, pieces, open_shard = _planned(folder, WatchedExecutor(Watch()))
    values, picture = params(), tiny_picture(0)

    class Answering(nullcontext[Any]):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(self)

        def fetch(self, asks: Iterator[Ask]) -> Iterator[Fetched]:
            return (Fetched(ask.url, picture, None, False, 1, 200, "", 0.0) for ask in asks)

    vars(groups)["Downloader"] = Answering  # in a process of its own
    store = local_store.config(folder, None)
    resources = Resources(values.section(DownloadConfig), values.section(EngineConfig), store)
    watch.start()
    pictures = Pictures("web", 10**8, resources.download, "images", OptedOut())
    write_shards(pieces, WatchedExecutor(watch), names, open_shard, pictures, resources)


def _planned(folder: Path, executor: WatchedExecutor) -> tuple[list[str], Pieces, Any]:
    """The shards of an ingest of the tables of addresses, and what opens them."""
    from align.ingest.partition import make_plan, planned_shard
    from align.ingest.sources import source_at
    from align.services.engine import open_engine
    from align.services.files.files import StoreFiles

    values = params()
    config, engine = values.section(IngestConfig), values.section(EngineConfig)
    source = source_at(config, str(folder / "tables"), StoreFiles(local_store.config(folder, None)))
    pieces = Pieces(folder / "ingest")
    pieces.folder.mkdir()
    plan = make_plan(source, pieces, executor, lambda: open_engine(engine, folder), OptedOut(), config)

    return plan.names, pieces, partial(planned_shard, plan.position_digits, plan.has_rights, source)


def filter_pairs(folder: Path, num_pairs: int, watch: Watch) -> None:
    """Words, SQL, files and report of pairs whose pictures are measured."""
    from align.filter import filter as stage
    from benchmarks.data.filtering import _filter

    config = params().section(FilterConfig).model_copy(update={"num_frequent_ngrams": 30 * num_pairs})
    _watched(stage, watch)
    _filter(folder, config, params().section(EngineConfig), ("images", "scored"))


def plan_shards(folder: Path, num_pairs: int, watch: Watch) -> None:
    """Clusters, splits and places of all kept pictures; the tars are indexed."""
    from align.shard.image_spans import span_rows
    from align.shard.work_folder import ShardWork, plan_once, tar_locations

    del num_pairs
    store = local_store.config(folder, None)
    (folder / "planned").mkdir()
    shards = raw_shards(folder / "raw")
    config = params().section(ShardConfig)
    work = ShardWork(Pieces(folder / "planned"), folder / "raw", tar_locations(shards, store), store, config)
    for number, shard in enumerate(shards):  # the synthesised tars are empty
        keys = pc.unique(pq.read_table(shard.table, columns=["image_key"])["image_key"].drop_null()).to_pylist()
        work.index(number).parent.mkdir(exist_ok=True)
        np.save(work.index(number), span_rows([(key, 1024 * row, 400) for row, key in enumerate(keys)], number))
    watch.start()
    plan_once(work, WatchedExecutor(watch), folder / "filtered")


def write_shards(folder: Path, num_pairs: int, watch: Watch) -> None:
    """The whole stage, with tiny pictures."""
    from align.formats.filtered import decisions_digest
    from align.shard import shard as stage
    from tests.support.small_data import write_verdict

    del num_pairs
    _watched(stage, watch)
    folders = stage.ShardFolders(
        folder / "raw", folder / "filtered", folder / "quality", folder / "shards", folder / "reports/shard"
    )
    write_verdict(folders.quality, passed=True, data=decisions_digest(folders.filtered))
    values = params()
    stage.shard(values.section(ShardConfig), local_store.config(folder, None), folders, values.section(EngineConfig))


def check_shards(folder: Path, num_pairs: int, watch: Watch) -> None:
    """The gate over shards; who judges its counts takes a second at any size."""
    from align.validate import validate_shards as stage
    from tests.support.gates import check_that_fails

    del num_pairs
    _watched(stage, watch)
    stage.validate_shards(
        params().section(EngineConfig), shards=folder / "shards", filtered=folder / "filtered", policy=folder / "none",
        reports=folder / "checked", check=check_that_fails(),
    )  # fmt: skip


def learn_tokenizer(folder: Path, num_pairs: int, watch: Watch) -> None:
    """The vocabulary."""
    from align.config.fit_tokenizer import FitTokenizerConfig
    from align.training.fit_tokenizer import fit_tokenizer

    del num_pairs, watch
    config = params().section(FitTokenizerConfig)
    fit_tokenizer(
        config, max_tokens=64, shards=folder / "shards", out=folder / "tokenizer", reports=folder / "reports/tokenizer"
    )


class _Stub:
    """An encoder whose vectors say nothing: what a model takes is known per picture."""

    def embed_images(self, images: Iterable[bytes]) -> NDArray[np.float32]:
        """(N, 64) L2-normalised, from the first bytes of each picture's digest."""
        seeds = [int.from_bytes(hashlib.sha256(image).digest()[:8]) for image in images]
        rows = np.stack([np.random.default_rng(seed).normal(size=64) for seed in seeds]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    embed_texts = embed_images  # type: ignore[assignment]  # nothing is asked


def index_pictures(folder: Path, num_pairs: int, watch: Watch) -> None:
    """Descriptions, thumbnails, vectors, addresses and words; no model."""
    from align.config.search import IndexConfig
    from align.search import index as stage

    del num_pairs
    _watched(stage, watch)
    values = params()
    (folder / "reports/filter").mkdir(parents=True, exist_ok=True)
    (folder / "reports/filter/report.json").write_text('{"funnel": []}')
    stage.index(
        values.section(IndexConfig).model_copy(update={"queries": None}),
        text_weight=1.0,
        model=stage.IndexModel(folder, _Stub(), "0" * 64),
        data=stage.IndexedData(folder / "shards", folder / "raw", folder / "reports/filter", None),
        engine=values.section(EngineConfig),
        out=folder / "index",
        reports=folder / "reports/index",
    )


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
STAGES: dict[str, tuple[Callable[[Path, int, Watch], None], str]] = {
    "ingest: scan and plan": (plan_ingest, "ingest"),
    "filter": (filter_pairs, "filtered"),
    "shard: plan": (plan_shards, "planned"),
}
#: The same, over pictures of 24 px, a tenth as many: shards of all would fill the disk, and take an hour.
WITH_PICTURES: dict[str, tuple[Callable[[Path, int, Watch], None], str]] = {
    "ingest: pictures, without the web": (fetch_pictures, "ingest"),
    "shard": (write_shards, "shards"),
    "validate_shards": (check_shards, "checked"),
    "fit_tokenizer": (learn_tokenizer, "tokenizer"),
    "index": (index_pictures, "index"),
}


_EVERY = STAGES | WITH_PICTURES


def measure(stage: str, folder: Path, num_pairs: int) -> Measured:
    """Runs a stage in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, stage, folder, num_pairs))
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


def _run(sender: Any, stage: str, folder: Path, num_pairs: int) -> None:
    os.chdir(folder)
    watch = Watch()
    watch.start()
    _EVERY[stage][0](folder, num_pairs, watch)
    watch.driver()
    names = ("driver_s", "tasks_s", "driver_bytes", "task_bytes", "num_tasks")
    sender.send(json.dumps({name: getattr(watch, name) for name in names}))
