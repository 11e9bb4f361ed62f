"""Step 5, decide: SQL again, now with the network's scores; then the rules that are off by default, and the files."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from align.display.console import say, track
from align.filter import tables
from align.filter.decisions import write_decisions
from align.filter.hold_out import hold_out
from align.filter.near_duplicates import Kmeans
from align.filter.similarity import compare_texts
from align.filter.work_folder import Shards, WorkFolder, commit, memory_kept
from align.formats import filtered
from align.interfaces.sql import Engine


def decide(engine: Engine, work: WorkFolder, shards: Shards, kmeans: Kmeans) -> None:
    """Writes decisions.parquet, facts.parquet and last images.parquet to the work folder; and the held-out set."""
    if (work.path / filtered.IMAGES).exists():
        return
    _write_decided(engine, work, shards, kmeans)
    files = [(shard.name, work.file("pairs", shard.name), work.file("images", shard.name)) for _, shard in shards]
    with memory_kept():
        write_decisions(
            track(files, what="filter: shards, decisions", total=len(files)),
            work.path / "verdicts.parquet",
            work.path / "decided.parquet",
            work.path,
        )
    say("filter: SQL, images")
    engine.view("known_images", work.path / "known_images.parquet")
    engine.table("later_copies", tables.LATER_COPIES)
    engine.write(tables.IMAGES_IN_ORDER, work.path / filtered.IMAGES)


def _write_decided(engine: Engine, work: WorkFolder, shards: Shards, kmeans: Kmeans) -> None:
    """Writes decided.parquet: the final verdicts on the pairs of candidates."""
    say("filter: SQL, decisions")
    for name in ("verdicts", "candidates", "twins"):
        engine.view(name, work.path / f"{name}.parquet")
    engine.view("scored", work.path / "scored" / "*.parquet")
    source = f"({tables.network_verdicts(work.config)})"
    if work.config.similarity_model is not None:
        engine.table("network_verdicts", f"SELECT * FROM {source} AS source")
        engine.write(tables.REMAINING, work.path / "remaining.parquet")
        work.fill("similarities", shards, compare_texts)
        engine.view("similarities", work.path / "similarities" / "*.parquet")
        source = "network_verdicts"
    source = f"({tables.similarity_verdicts(work.config, source)})"
    if work.config.drop_repeats is not None:
        engine.table("similarity_verdicts", f"SELECT * FROM {source} AS source")
        source = "similarity_verdicts"
    if not work.config.hold_out:
        engine.write(tables.decided(work.config, source), work.path / "decided.parquet", "none")
        return
    engine.write(tables.decided(work.config, source), work.path / "undivided.parquet", "none")
    hold_out(work, shards, kmeans)
    for name in ("undivided", "held_out_images", "held_out_twins"):
        engine.view(name, work.path / f"{name}.parquet")
    engine.write(tables.held_out(work.config), work.path / "decided.parquet", "none")
    # an image has a twin in at most one of them: images with a twin in another set were dropped before
    both = [pq.read_table(work.path / f"{name}.parquet") for name in ("twins", "held_out_twins")]
    commit(pa.concat_tables(both), work.path / "all_twins.parquet")
    engine.view("twins", work.path / "all_twins.parquet")
