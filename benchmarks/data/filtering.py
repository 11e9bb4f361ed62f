"""`align filter` on synthesised pairs, without pictures: against bare SQL, pandas, Data-Juicer, Spark, and more pairs.

Equal decisions are asserted. Each repetition is a process of its own with one thread, so that CPU seconds and peak
memory are its own. `python -m benchmarks.data filtering` runs 5 million pairs; two environment variables change
what is run: ALIGN_BENCH_PAIRS (5000000) and ALIGN_BENCH_TIMES (10; 1 leaves the large run out).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import psutil
import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.display.console import say
from align.durable.files import sha256_folder
from align.filter.filter import FilterFolders, filter_pairs, work_key
from align.filter.rules import active
from align.filter.tables import SCORED
from align.formats.policy import OptedOut
from benchmarks.data.filtering_peers import decide_in_bare_sql, decide_in_pandas, joined, tables_with_words
from benchmarks.data.filtering_tables import synthesise
from benchmarks.measure import Comparison, compare, in_process
from benchmarks.peers import build_peers, version_of

if TYPE_CHECKING:  # it brings torch along, which would count as memory of both
    from benchmarks.world import World

NUM_PAIRS = int(os.environ.get("ALIGN_BENCH_PAIRS", "5000000"))
TIMES = int(os.environ.get("ALIGN_BENCH_TIMES", "10"))
#: pandas holds some 5 KiB a pair, and takes the same time for each of 500,000 as of 2 million; Spark's start-up alone
#: takes what DuckDB needs for a million.
NUM_PANDAS = min(NUM_PAIRS, 2_000_000)
#: Data-Juicer takes pandas' number, so that both rows are of the same pairs.
NUM_DATA_JUICER = min(NUM_PAIRS, 500_000)
NUM_SPARK = min(NUM_PAIRS, 1_000_000)
REPETITIONS = 3
#: The environment of Data-Juicer, and the values of the section `filter` that it is given.
DATA_JUICER = "peers_data_juicer"
DATA_JUICER_CUTS = (
    "nsfw_threshold", "short_side_above_px", "aspect_ratio_below", "max_texts_per_image", "max_images_per_text",
    "num_frequent_ngrams", "min_words", "max_words",
)  # fmt: skip


def run(world: World) -> list[Comparison]:
    config = world.params.section(FilterConfig).model_copy(update={"max_texts_per_image": 20})
    engine = world.params.section(EngineConfig).model_copy(update={"num_threads": 1, "num_workers": 1})
    rows = []
    with tempfile.TemporaryDirectory(dir=world.root) as name:
        folder = Path(name)
        rows += against_sql(folder / "sql", NUM_PAIRS, _cut(config, NUM_PAIRS), engine)
        rows += against_pandas(folder / "pandas", NUM_PANDAS, _cut(config, NUM_PANDAS), engine)
        rows += against_data_juicer(folder / "data_juicer", NUM_DATA_JUICER, _cut(config, NUM_DATA_JUICER), engine)
        rows += against_spark(folder / "spark", NUM_SPARK, _cut(config, NUM_SPARK), engine)
        if TIMES > 1:
            rows += against_fewer(folder, NUM_PAIRS, TIMES, config, engine)
    return rows


def _cut(config: FilterConfig, num_pairs: int) -> FilterConfig:
    """As many n-grams on T2's list as pairs: the paper's 100 million of 1.8 billion would drop nothing from so few."""
    return config.model_copy(update={"num_frequent_ngrams": num_pairs})


def against_sql(folder: Path, num_pairs: int, config: FilterConfig, engine: EngineConfig) -> list[Comparison]:
    """Our SQL, and the whole filter, against bare SQL over tables with ready words."""
    _synthesise_looked_at(folder, num_pairs, config, engine)
    whole, ours, theirs = [], [], []
    for repetition in range(REPETITIONS):
        say(f"benchmark: filtering, {num_pairs:,} pairs, repetition {repetition + 1} of {REPETITIONS}")
        whole.append(in_process(whole_filter, folder, config, engine))
        if not (folder / "words").exists():
            measured(folder, config, engine)
            tables_with_words(folder, folder / "words")
        ours.append(in_process(filter_measured, folder, config, engine))
        theirs.append(in_process(bare_sql, folder, config, engine))
        _require_equal(folder / "filtered/decisions/*.parquet", folder / "bare/decisions.parquet")
    shutil.rmtree(folder)
    return [
        compare(
            f"{what}, {num_pairs:,} pairs", "bare SQL on tables with ready words", "pairs / CPU s", items=num_pairs,
            ours_s=[seconds for seconds, _ in rows], theirs_s=[seconds for seconds, _ in theirs],
            note=f"peak memory {_mib(rows)} against {_mib(theirs)} MiB",
        )
        for what, rows in (("filter, SQL", ours), ("filter, whole", whole))
    ]  # fmt: skip


def against_pandas(folder: Path, num_pairs: int, config: FilterConfig, engine: EngineConfig) -> list[Comparison]:
    """The whole filter against the same rules in pandas: CPU, and what one waits for on this machine."""
    _synthesise_looked_at(folder, num_pairs, config, engine)
    everything = engine.model_copy(update={"num_threads": None, "num_workers": None})
    ours, theirs, ours_s, theirs_s = [], [], [], []
    for repetition in range(REPETITIONS):
        say(f"benchmark: filtering, {num_pairs:,} pairs, pandas, repetition {repetition + 1} of {REPETITIONS}")
        ours.append(in_process(whole_filter, folder, config, engine))
        start = time.monotonic()
        in_process(whole_filter, folder, config, everything)
        ours_s.append(time.monotonic() - start)
        start = time.monotonic()
        theirs.append(in_process(in_pandas, folder, config))
        theirs_s.append(time.monotonic() - start)
        _require_equal(folder / "filtered/decisions/*.parquet", folder / "pandas/decisions.parquet")
    shutil.rmtree(folder)
    what, note = f"filter, whole, {num_pairs:,} pairs", f"peak memory {_mib(ours)} against {_mib(theirs)} MiB"
    return [
        compare(
            what, "pandas", "pairs / CPU s", items=num_pairs,
            ours_s=[seconds for seconds, _ in ours], theirs_s=[seconds for seconds, _ in theirs], note=note,
        ),
        compare(
            f"{what}, wall-clock", "pandas, which knows one core", "pairs / s", items=num_pairs,
            ours_s=ours_s, theirs_s=theirs_s, note=f"all {os.cpu_count()} cores for ours",
        ),
    ]  # fmt: skip


def against_data_juicer(folder: Path, num_pairs: int, config: FilterConfig, engine: EngineConfig) -> list[Comparison]:
    """The whole filter against the same rules as a recipe of Data-Juicer, which gets pairs and pictures joined."""
    python = build_peers(DATA_JUICER)
    _synthesise_looked_at(folder, num_pairs, config, engine)
    joined(folder, folder / "joined.parquet")
    ours: list[tuple[float, int]] = []
    theirs: dict[str, list[tuple[float, int]]] = {"own": [], "datasets": []}
    for repetition in range(REPETITIONS):
        say(f"benchmark: filtering, {num_pairs:,} pairs, Data-Juicer, repetition {repetition + 1} of {REPETITIONS}")
        ours.append(in_process(whole_filter, folder, config, engine))
        for reader, found in theirs.items():
            found.append(in_data_juicer(python, folder, config, reader))
            _require_equal(folder / "filtered/decisions/*.parquet", folder / "data_juicer/decisions.parquet")
    shutil.rmtree(folder)
    peer = f"Data-Juicer {version_of('py-data-juicer', DATA_JUICER)}, pairs and pictures joined"
    return [
        compare(
            f"filter, whole, {num_pairs:,} pairs", f"{peer}{given}", "pairs / CPU s", items=num_pairs,
            ours_s=[seconds for seconds, _ in ours], theirs_s=[seconds for seconds, _ in theirs[reader]],
            note=f"peak memory {_mib(ours)} against {_mib(theirs[reader])} MiB, torch and mapped files included",
        )
        for reader, given in (("own", ""), ("datasets", ", read without its reader"))
    ]  # fmt: skip


def against_fewer(
    folder: Path, num_pairs: int, times: int, config: FilterConfig, engine: EngineConfig
) -> list[Comparison]:
    """The whole filter on `times` as many pairs: memory, seconds, and what it spills."""
    found = []
    for number in (num_pairs, num_pairs * times):
        say(f"benchmark: filtering, {number:,} pairs, all threads")
        here = folder / str(number)
        synthesise(here, number)
        all_cores = engine.model_copy(update={"num_threads": None, "num_workers": None})
        os.sync()  # the synthesised tables, or the disk is busy with them for a while
        start = time.monotonic()
        with _Watched(here) as watched:
            _, peak = in_process(whole_filter, here, _cut(config, number), all_cores)
        found.append((time.monotonic() - start, peak, watched))
        shutil.rmtree(here)
    (few_s, _, _), (many_s, peak, watched) = found
    return [
        compare(
            f"filter, whole, {num_pairs * times:,} pairs, wall-clock", f"{num_pairs:,} pairs", "pairs / s",
            items=num_pairs, ours_s=[many_s / times], theirs_s=[few_s],
            note=f"peak memory {peak >> 20:,} MiB, with worker processes {watched.memory_bytes >> 20:,} MiB; "
            f"spill {watched.spill_bytes / 2**30:.1f} GiB, with inputs, work and outs {watched.disk_bytes >> 30:,} GiB "
            f"on disk; {many_s:,.0f} s, {many_s / few_s:.1f} times as long",
        )
    ]  # fmt: skip


def against_spark(folder: Path, num_pairs: int, config: FilterConfig, engine: EngineConfig) -> list[Comparison]:
    """DuckDB against Spark on this machine; equal decisions and facts."""
    synthesise(folder, num_pairs)
    measured(folder, config, engine)
    ours, theirs = [], []
    for runner, seconds in (("local", ours), ("spark", theirs)):
        update = {"runner": runner, "spark_master": "local[1]"}
        start = time.monotonic()
        in_process(filter_measured, folder, config, engine.model_copy(update=update))
        seconds.append(time.monotonic() - start)
        os.replace(folder / "filtered", folder / f"filtered_{runner}")
    for name in ("decisions", "facts"):
        digests = {sha256_folder(folder / f"filtered_{runner}" / name) for runner in ("local", "spark")}
        if len(digests) > 1:
            raise AssertionError(f"{name}: DuckDB and Spark differ")
    shutil.rmtree(folder)
    return [
        compare(
            f"filter, SQL, {num_pairs:,} pairs, wall-clock", "the same with Spark, local[1]", "pairs / s",
            items=num_pairs, ours_s=ours, theirs_s=theirs, note="equal bytes",
        )
    ]  # fmt: skip


def _synthesise_looked_at(folder: Path, num_pairs: int, config: FilterConfig, engine: EngineConfig) -> None:
    """`synthesise`, where the network has looked only at what `align filter` would show it: what other rules keep."""
    synthesise(folder, num_pairs)
    os.replace(folder / "scored", folder / "scored_all")
    (folder / "scored").mkdir()
    for path in (folder / "scored_all").iterdir():
        pq.write_table(SCORED.empty_table(), folder / "scored" / path.name)
    in_process(whole_filter, folder, config, engine.model_copy(update={"num_threads": None, "num_workers": None}))
    with duckdb.connect() as connection:
        connection.execute(f"""
            CREATE TABLE kept AS SELECT DISTINCT image_hash FROM '{folder}/images/*.parquet'
            SEMI JOIN (SELECT image_id FROM '{folder}/filtered/decisions/*.parquet' WHERE keep) USING (image_id)
        """)
        for path in (folder / "scored_all").iterdir():
            shown = f"SELECT * FROM '{path}' SEMI JOIN kept USING (image_hash)"
            connection.execute(f"COPY ({shown}) TO '{folder / 'scored' / path.name}' (FORMAT parquet)")
    shutil.rmtree(folder / "scored_all")


def whole_filter(folder: Path, config: FilterConfig, engine: EngineConfig) -> None:
    """Words, SQL, files and report; the tables about pictures exist already."""
    _filter(folder, config, engine, ("images", "scored"))


def filter_measured(folder: Path, config: FilterConfig, engine: EngineConfig) -> None:
    """SQL, files and report."""
    _filter(folder, config, engine, ("images", "scored", "unigrams", "bigrams", "pairs"))


def measured(folder: Path, config: FilterConfig, engine: EngineConfig) -> None:
    """Leaves what the filter measures of texts in `folder/pairs`."""
    from align.filter.measure import measure_shard
    from align.filter.work_folder import WorkFolder
    from align.formats.raw import raw_shards

    for item in enumerate(raw_shards(folder / "raw")):
        measure_shard(WorkFolder(folder, config, OptedOut(), num_workers=1, num_threads=1), item)


def bare_sql(folder: Path, config: FilterConfig, engine: EngineConfig) -> None:
    decide_in_bare_sql(folder / "words", config, engine, _fresh(folder / "bare"))


def in_pandas(folder: Path, config: FilterConfig) -> None:
    decide_in_pandas(folder, folder / "raw", config, _fresh(folder / "pandas"))


def in_data_juicer(python: Path, folder: Path, config: FilterConfig, reader: str) -> tuple[float, int]:
    """CPU seconds and peak memory, as the script measures them itself."""
    out = _fresh(folder / "data_juicer")
    job = {
        "pairs": str(folder / "joined.parquet"), "out": str(out), "reader": reader, "rules": active(config),
        "cuts": config.model_dump(mode="json", include=set(DATA_JUICER_CUTS)),
    }  # fmt: skip
    script = Path(__file__).with_name("data_juicer_peer.py")
    environment = os.environ | {
        "HOME": str(out), "HF_HOME": str(out / "cache"), "TMPDIR": str(out), "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
        "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
        "RAY_USAGE_STATS_ENABLED": "0", "PIP_NO_INDEX": "1", "UV_OFFLINE": "1",  # it installs what it misses
    }  # fmt: skip
    command = [str(python), str(script), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"Data-Juicer failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["cpu_s"], found["peak_bytes"]


def _filter(folder: Path, config: FilterConfig, engine: EngineConfig, done: tuple[str, ...]) -> None:
    work = _fresh(folder / ".filtered.part")
    for name in done:
        shutil.copytree(folder / name, work / name, copy_function=os.link)
    (work / ".work.json").write_text(json.dumps({"key": work_key(config, folder / "raw", OptedOut(), [])}))
    none = folder / "none"
    none.mkdir(exist_ok=True)
    filter_pairs(config, engine, FilterFolders(folder / "raw", none, none, folder / "filtered", folder / "report"))


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _mib(rows: list[tuple[float, int]]) -> str:
    return f"{max(peak for _, peak in rows) >> 20:,}"


class _Watched:
    """The most bytes, while the block runs, that the file system of a folder holds more than at first and what is there
    already, of the engine's scratch files, and of all child processes together. No walk over thousands of files, each
    second, which would take a tenth of what is measured."""

    def __init__(self, folder: Path) -> None:
        self._engine, self._done = folder / ".filtered.part/engine", threading.Event()
        inputs = sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))
        self._free = shutil.disk_usage(folder).free + inputs
        self.disk_bytes = self.spill_bytes = self.memory_bytes = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(1):
            spill = memory = 0
            with suppress(OSError):  # gone meanwhile
                for path in self._engine.rglob("*"):
                    with suppress(OSError):
                        spill += path.stat().st_blocks * 512
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    memory += process.memory_info().rss
            self.disk_bytes = max(self.disk_bytes, self._free - shutil.disk_usage(self._engine.parents[1]).free)
            self.spill_bytes = max(self.spill_bytes, spill)
            self.memory_bytes = max(self.memory_bytes, memory)

    def __enter__(self) -> _Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _require_equal(ours: Path, theirs: Path) -> None:
    query = (
        f"SELECT count(*) FROM '{ours}' AS a FULL JOIN '{theirs}' AS b USING (key) "
        "WHERE a.reasons IS DISTINCT FROM b.reasons"
    )
    with duckdb.connect() as connection:
        [(different,)] = connection.execute(query).fetchall()
    if different:
        raise AssertionError(f"{different:,} decisions differ between {ours} and {theirs}")
