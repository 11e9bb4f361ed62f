"""The filter's SQL in DuckDB against the same rules in pandas, on synthesised pairs; equal decisions are asserted.

Only what is decided over whole tables: texts are split into words, and pictures measured, in Python for both. Each
repetition is a process of its own, so that peak memory is its own too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from align.config.engine import EngineConfig
from align.config.filter import FilterConfig
from align.pairs import rules
from align.services.engine import open_engine
from tests.benchmarks.filtering_pandas import decide_in_pandas
from tests.benchmarks.filtering_tables import synthesise
from tests.benchmarks.measure import Comparison, compare, in_process

if TYPE_CHECKING:  # it brings torch along, which would count as memory of both
    from tests.benchmarks.world import World

NUM_PAIRS = 200_000
REPETITIONS = 3


def decide_in_sql(folder: Path, config: FilterConfig, engine_config: EngineConfig) -> None:
    """The SQL of `align.filter`, in its order."""
    with open_engine(engine_config) as engine:
        for name in ("pairs", "measured_images", "nsfw"):
            engine.view(name, folder / f"{name}.parquet")
        engine.table("first_images", rules.FIRST_IMAGES)
        engine.table("images", rules.IMAGES_AT_SOURCE)
        engine.table("ngram_counts", rules.NGRAM_COUNTS)
        counts = dict(engine.rows("SELECT num, count(*) FROM ngram_counts GROUP BY num"))
        cut = rules.vocabulary_cut(counts, config.num_frequent_ngrams)
        engine.table("frequent_ngrams", rules.frequent_ngrams(*cut))
        engine.table("rare_pairs", rules.RARE_PAIRS)
        engine.table("images_per_text", rules.IMAGES_PER_TEXT)
        engine.table("texts_per_image", rules.TEXTS_PER_IMAGE)
        engine.table("facts", rules.FACTS)
        engine.table("flagged", rules.flagged(config))
        engine.write(rules.DECISIONS, folder / "sql.parquet")


def run(world: World) -> list[Comparison]:
    config = world.params.section(FilterConfig).model_copy(update={"num_frequent_ngrams": 500_000})
    engine_config = world.params.section(EngineConfig).model_copy(update={"num_threads": 1})  # as many as pandas has
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(dir=world.root) as name:
        folder = Path(name)
        synthesise(folder, NUM_PAIRS)
        for _ in range(REPETITIONS):
            ours.append(in_process(decide_in_sql, folder, config, engine_config))
            theirs.append(in_process(decide_in_pandas, folder, config))
        decisions = [pd.read_parquet(folder / f"{side}.parquet")[["key", "reason"]] for side in ("sql", "pandas")]
    pd.testing.assert_frame_equal(*decisions, check_dtype=False)
    memory = [max(peak for _, peak in rows) >> 20 for rows in (ours, theirs)]
    return [
        compare(
            f"filter {NUM_PAIRS:,} synthesised pairs, no pictures", "pandas", "pairs / CPU s", items=NUM_PAIRS,
            ours_s=[seconds for seconds, _ in ours], theirs_s=[seconds for seconds, _ in theirs],
            note=f"peak memory {memory[0]:,} against {memory[1]:,} MiB",
        )
    ]  # fmt: skip
