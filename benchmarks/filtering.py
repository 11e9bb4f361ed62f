"""`align filter` on synthesised pairs, without pictures: against bare SQL and pandas.

Equal decisions are asserted. Each repetition is a process of its own with one thread, so that CPU seconds and peak
memory are its own. The environment variable ALIGN_BENCH_PAIRS says how many pairs (2000000; some rows of README.md are
of 5000000).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.display.console import say
from align.durable.steps import Work
from align.filter import measure
from align.filter.filter import FilterFolders, filter_pairs, work_key
from align.filter.tables import CLOSE, SCORED
from align.filter.work_folder import FilterWork, write_table
from align.formats.policy import OptedOut
from align.formats.raw import RawShard, raw_shards
from benchmarks.filtering_peers import decide_in_bare_sql, decide_in_pandas, tables_with_words
from benchmarks.filtering_tables import synthesise
from benchmarks.measure import Comparison, compare
from tests.support.own_process import in_process

if TYPE_CHECKING:  # it brings torch along, which would count as memory of both
    from benchmarks.world import World

#: pandas holds some 5 KiB a pair, and takes the same time for each of 500,000 as of 2 million.
NUM_PAIRS = int(os.environ.get("ALIGN_BENCH_PAIRS", "2000000"))
REPETITIONS = 3
_SQL = "bare SQL on tables with ready words"


def run(world: World) -> list[Comparison]:
    # as many n-grams on T2's list as pairs: the paper's 100 million of 1.8 billion would drop nothing from so few
    config = world.params.section(FilterConfig).model_copy(
        update={"max_texts_per_image": 20, "num_frequent_ngrams": NUM_PAIRS}
    )
    engine = world.params.section(EngineConfig).model_copy(update={"num_threads": 1, "num_workers": 1})
    found: dict[str, list[tuple[float, int]]] = {"ours": [], _SQL: [], "pandas": []}
    with tempfile.TemporaryDirectory(dir=world.root) as name:
        folder = Path(name)
        _synthesise_looked_at(folder, config, engine)
        for repetition in range(REPETITIONS):
            say(f"benchmark: filtering, {NUM_PAIRS:,} pairs, repetition {repetition + 1} of {REPETITIONS}")
            found["ours"].append(in_process(whole_filter, folder, config, engine))
            if not repetition:
                measured(folder, config, engine)
                tables_with_words(folder, folder / "words")
            found[_SQL].append(in_process(bare_sql, folder, config, engine))
            found["pandas"].append(in_process(in_pandas, folder, config))
            for peer in ("bare", "pandas"):
                _require_equal(folder / "filtered/decisions/*.parquet", folder / peer / "decisions.parquet")
    peaks = {peer: f"{max(peak for _, peak in runs) >> 20:,}" for peer, runs in found.items()}
    return [
        compare(
            f"filter, {NUM_PAIRS:,} pairs", peer, "pairs / CPU s", items=NUM_PAIRS,
            ours_s=[seconds for seconds, _ in found["ours"]], theirs_s=[seconds for seconds, _ in found[peer]],
            note=f"peak memory {peaks['ours']} against {peaks[peer]} MiB",
        )
        for peer in (_SQL, "pandas")
    ]  # fmt: skip


def _synthesise_looked_at(folder: Path, config: FilterConfig, engine: EngineConfig) -> None:
    """`synthesise`, where the network has looked only at what `align filter` would show it: what other rules keep."""
    synthesise(folder, NUM_PAIRS)
    os.replace(folder / "scored", folder / "scored_all")
    (folder / "scored").mkdir()
    for path in (folder / "scored_all").iterdir():
        pq.write_table(SCORED.empty_table(), folder / "scored" / path.name)
    in_process(whole_filter, folder, config, engine)
    with duckdb.connect() as connection:
        connection.execute(f"""
            CREATE TABLE kept AS SELECT DISTINCT image_hash FROM '{folder}/images/*.parquet'
            SEMI JOIN (SELECT image_id FROM '{folder}/filtered/decisions/*.parquet' WHERE keep) USING (image_id)
        """)
        for path in (folder / "scored_all").iterdir():
            shown = f"SELECT * FROM '{path}' SEMI JOIN kept USING (image_hash)"
            connection.execute(f"COPY ({shown}) TO '{folder / 'scored' / path.name}' (FORMAT parquet)")


def whole_filter(folder: Path, config: FilterConfig, engine: EngineConfig) -> None:
    """Words, SQL, files and report; the tables about pictures exist already."""
    work = _fresh(folder / ".filtered.part")
    for path in (folder / "scored").iterdir():
        out = work / "scored" / path.stem
        out.mkdir(parents=True)
        os.link(path, out / "scored.parquet")
        write_table(CLOSE.empty_table(), out / "close.parquet")
    (work / ".work.json").write_text(json.dumps({"key": work_key(config, "cpu", folder / "raw", OptedOut(), [])}))
    none = folder / "none"
    none.mkdir(exist_ok=True)
    with _ready_images(folder):
        filter_pairs(config, engine, FilterFolders(folder / "raw", none, none, folder / "filtered", folder / "report"))


def _ready_images(folder: Path) -> AbstractContextManager[object]:
    """Reads what measuring pictures would give, instead of measuring them."""

    def read(index: int, table: pa.Table, shard: RawShard, work: FilterWork) -> pa.Table:
        return pq.ParquetFile(folder / "images" / f"{shard.name}.parquet").read()

    return patch.object(measure, "image_table", read)


def measured(folder: Path, config: FilterConfig, engine: EngineConfig) -> None:
    """Leaves what the filter measures of texts in `folder/pairs`."""
    work = FilterWork(Work(folder), config, OptedOut(), num_workers=1, num_threads=1, device="cpu")
    (folder / "pairs").mkdir()
    with _ready_images(folder):
        for item in enumerate(raw_shards(folder / "raw")):
            out = _fresh(folder / "measured")
            measure.measure_shard(work, out, item)
            os.replace(out / "pairs.parquet", folder / "pairs" / f"{item[1].name}.parquet")


def bare_sql(folder: Path, config: FilterConfig, engine: EngineConfig) -> None:
    decide_in_bare_sql(folder / "words", config, engine, _fresh(folder / "bare"))


def in_pandas(folder: Path, config: FilterConfig) -> None:
    decide_in_pandas(folder, folder / "raw", config, _fresh(folder / "pandas"))


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _require_equal(ours: Path, theirs: Path) -> None:
    query = (
        f"SELECT count(*) FROM '{ours}' AS a FULL JOIN '{theirs}' AS b USING (key) "
        "WHERE a.reasons IS DISTINCT FROM b.reasons"
    )
    with duckdb.connect() as connection:
        [(different,)] = connection.execute(query).fetchall()
    if different:
        raise AssertionError(f"{different:,} decisions differ between {ours} and {theirs}")
