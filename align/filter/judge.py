"""Step 2, judge: SQL over the pairs of all shards; every rule but those that need the network or a given model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from align.config.filter import FilterConfig
from align.display.console import say
from align.durable.files import to_json, write_text
from align.filter import ngrams, tables
from align.filter.examples import shown_shards
from align.filter.measure import require_ascending_keys
from align.filter.pair_tables import word_table
from align.filter.report import Vocabulary
from align.filter.work_folder import Shards, WorkFolder, commit
from align.interfaces.sql import Engine

#: The files that `judge` leaves for later steps, in this order; a machine that has the last one has all.
JUDGED = ("vocabulary.json", "rare.parquet", "verdicts.parquet", "candidates.parquet")


def judge(engine: Engine, work: WorkFolder, shards: Shards, raw: Path) -> None:
    """Writes vocabulary.json and rare.parquet (for the report), verdicts.parquet and last candidates.parquet.

    Raises:
        DataError: keys do not grow from shard to shard.
    """
    require_ascending_keys(work.path / "pairs", [shard.name for _, shard in shards], raw)
    for name in ("pairs", "unigrams", "bigrams"):
        engine.view(name, work.path / name / "*.parquet")
    _find_rare_pairs(engine, work, shards)
    say("filter: SQL, texts and images that repeat")
    engine.table("texts_per_image", tables.TEXTS_PER_IMAGE)
    engine.table("images_per_text", tables.IMAGES_PER_TEXT)
    say("filter: SQL, rules")
    engine.write(tables.verdicts(work.config), work.path / "verdicts.parquet", "none")
    engine.view("verdicts", work.path / "verdicts.parquet")
    engine.write(tables.CANDIDATES, work.path / "candidates.parquet")


def _find_rare_pairs(engine: Engine, work: WorkFolder, shards: Shards) -> None:
    """Rule T2: makes the table `rare_blocks`, and for the report vocabulary.json and rare.parquet."""
    cut, num_frequent, lists = _frequent_ngrams(engine, work.config, work.path / "vocabulary.json")
    rare: list[tuple[int, int]] = []
    parts: Sequence[str] = ()
    if cut > 1:  # otherwise the list holds every n-gram
        queries = ngrams.rare_pairs(engine.num_parts(num_frequent))
        for number, (name, query) in enumerate(queries.items(), 1):
            say(f"filter: SQL, rare n-grams, part {number} of {len(queries)}")
            engine.table(name, query)
        parts = list(queries)
        rare = _rare_ngrams_shown(engine, work, shown_shards(shards))
        _drop(engine, lists)
    engine.table("rare_blocks", ngrams.rare_blocks(parts))
    _drop(engine, parts)
    # a rare word tells people more than the bigrams that it makes rare: words come later, and replace these
    rows = [{"row_number": row_number, "ngram_hash": ngram} for row_number, ngram in sorted(dict(rare).items())]
    commit(pa.Table.from_pylist(rows, tables.BIGRAMS), work.path / "rare.parquet")


def _frequent_ngrams(engine: Engine, config: FilterConfig, vocabulary_file: Path) -> tuple[int, int, list[str]]:
    """The list's cut and length, and the tables that hold it (none if every n-gram is on the list)."""
    [(num_bigrams,)] = engine.rows("SELECT count(*) FROM bigrams")
    counts = ngrams.ngram_counts(engine.num_parts(num_bigrams))
    for number, (name, query) in enumerate(counts.items(), 1):
        say(f"filter: SQL, n-grams, part {number} of {len(counts)}")
        engine.table(name, query)
    counts_of_counts = dict(engine.rows(ngrams.counts_of_counts(counts)))
    cut, num_frequent = ngrams.vocabulary_cut(counts_of_counts, config.num_frequent_ngrams)
    num_ngrams = sum(counts_of_counts.values())
    vocabulary = Vocabulary(num_ngrams=num_ngrams, num_frequent=num_frequent, last_count=cut)
    write_text(vocabulary_file, to_json(vocabulary.model_dump()))
    lists = ngrams.frequent(counts, cut) if cut > 1 else {}
    for name, query in lists.items():
        engine.table(name, query)
    _drop(engine, counts)  # frees the memory for the next step
    return cut, num_frequent, list(lists)


def _rare_ngrams_shown(engine: Engine, work: WorkFolder, shards: Shards) -> list[tuple[int, int]]:
    """(row number, n-gram) of rare pairs in the shards that the report shows; bigrams first, then words."""
    ranges = [(index * tables.MAX_ROWS, (index + 1) * tables.MAX_ROWS - 1) for index, _ in shards]
    for _, shard in shards:
        name = f"{shard.name}.parquet"
        commit(word_table(work.file("pairs", shard.name)), work.path / "shown_words" / name)
    engine.view("shown_words", work.path / "shown_words" / "*.parquet")
    bigrams = engine.rows(ngrams.rare_ngrams("bigrams", "bigrams", ranges))
    return bigrams + engine.rows(ngrams.rare_ngrams("shown_words", "unigrams", ranges))


def _drop(engine: Engine, names: Sequence[str] | dict[str, str]) -> None:
    for name in names:
        engine.drop(name)
