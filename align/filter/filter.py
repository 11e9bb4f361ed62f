"""filter: every rule of the paper over the whole of data/raw -> which pairs are kept, and why the others are not.

Writes data/filtered (`align.formats.filtered`); `align.filter.rules` has the rules and the deviations from the paper.
The order of work:

  1. measure   each shard separately: its images and texts                        --shards A-B
  2. judge     SQL over all shards: counts, rare n-grams, every rule but those of the network
  3. score     each shard separately: the network on images that some pair would keep   --shards A-B, after step 2
  4. compare   embeddings with those of the evaluation images
  5. decide    SQL again, with the network's scores; optional rules; the files; then the report

Everything stays in a work folder until the end, so a killed run resumes at the shard where it stopped. Ranges of shards
run in any order: all of them once to measure, all of them again to score, then `--finish`, which also does what is left
of step 3.

Any folder in img2dataset's layout is accepted. If no pair is kept, the stage still succeeds, with every row and its
reason; the quality gate and `align shard` refuse such data.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.params import Params
from align.config.paths import PathsConfig
from align.display.console import say
from align.display.report import record_runtime, write_report
from align.durable.files import replace_directory, to_json, write_text
from align.durable.work import ALL, Portion, asked, key_of, portion_of, require_done, work_directory
from align.errors import DataError
from align.filter import ngrams, tables
from align.filter.compare import compare_with_evaluation_images, score_shard
from align.filter.decide import decide
from align.filter.examples import examples_of, shown_pairs, shown_shards
from align.filter.measure import measure_shard, require_ascending_keys, write_fingerprints
from align.filter.page import write_page
from align.filter.pair_tables import word_table
from align.filter.report import FilterReport, Vocabulary, read_report, report_on
from align.filter.work_folder import Shards, WorkFolder, commit
from align.formats import filtered
from align.formats.evaluation_set import HELD_OUT, EvaluationSet
from align.formats.evaluation_sets.align_tar import held_out_sets
from align.formats.evaluation_sets.named import named_sets
from align.formats.policy import OptedOut, read_opted_out
from align.formats.raw import raw_shards, state_of
from align.interfaces.sql import Engine
from align.pieces import Piece
from align.project import provenance
from align.services.engine import open_engine
from align.services.files.files import StoreFiles
from align.services.s3.store import fetcher
from align.services.store_work import open_work
from align.services.vector_index import kmeans

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


@dataclass(frozen=True)
class FilterFolders:
    """What the filter reads and writes.

    Attributes:
        raw: read, in img2dataset's layout.
        evaluation: read: the evaluation sets that rule I5 compares with; a folder, or a suite that names them.
        policy: read: opted_out.csv; may be absent.
        filtered: written, with the held-out set; replaced as a whole.
        reports: written: the report and its figures; replaced as a whole.
    """

    raw: Path
    evaluation: Path
    policy: Path
    filtered: Path
    reports: Path


def filter_pairs(
    config: FilterConfig,
    engine_config: EngineConfig,
    folders: FilterFolders,
    portion: Portion = ALL,
    store: StoreConfig | None = None,
) -> FilterReport | None:
    """Decides on every pair.

    Args:
        config: the cuts.
        engine_config: which SQL engine, its bounds, and how many processes work on shards.
        folders: what to read and write.
        portion: a range of shards to measure or score, or `--finish`.
        store: where tars are that are not in `folders.raw`, and where machines share ranges.

    Returns:
        The report; None for a range.

    Raises:
        DataError: raw holds no shards, a shard is unreadable, a key occurs twice, a range is missing, or an evaluation
            set has the name of the held-out one.
        CorruptError: an evaluation set does not match its checksum.
        LockedError: another run works on `folders.filtered`.
        ServiceError: a server is unavailable.
    """
    shards = list(enumerate(raw_shards(folders.raw, fetcher(store) if store else None)))
    opted_out = read_opted_out(folders.policy)
    sets = named_sets(folders.evaluation, StoreFiles(store) if store else None)
    if not sets and not config.hold_out:
        say(f"filter: warning: no evaluation sets in {folders.evaluation}; rule I5 removes nothing")
    key = work_key(config, folders.raw, opted_out, sets)
    shared = None if portion == ALL or store is None else open_work(store, "filter", key)
    if config.hold_out and any(one.name == HELD_OUT for one in sets):
        raise DataError(
            f"{folders.evaluation / HELD_OUT}.json: filter.hold_out makes a set of this name; rename this one, or set "
            "filter.hold_out to 0"
        )
    with work_directory(folders.filtered, "filter", key, portion, elsewhere=shared is not None) as path:
        if _is_finished(path):
            _remove_pieces(path)
            return read_report(folders.reports)
        numbers = frozenset(asked("filter", portion, [shard.number for _, shard in shards]))
        mine = [item for item in shards if item[1].number in numbers]
        num_threads = engine_config.num_threads or os.cpu_count() or 1
        num_workers = max(1, min(engine_config.num_workers or os.cpu_count() or 1, len(mine)))
        work = WorkFolder(path, config, opted_out, num_workers, num_threads, shared, store.features if store else None)
        names = [shard.name for _, shard in shards]

        if portion.finish:
            unmeasured = work.unmeasured(names)
            require_done("filter", names, lambda name: name not in unmeasured)
        write_fingerprints(work, sets)
        work.fill("pairs", mine, measure_shard)
        if work.are_measured(names):
            _judge_once(work, engine_config, shards, folders.raw)
            work.fill("scored", mine, score_shard)
        elif portion.shards is not None:
            say("filter: after the last range is measured, run all ranges again to score their images, then --finish")
        if portion.shards is not None:
            return None

        compare_with_evaluation_images(work, shards, sets, kmeans)
        with open_engine(engine_config, _scratch(path)) as engine:
            decide(engine, work, shards, kmeans)
            sets = [*sets, *held_out_sets(path)]
            digests = {one.name: one.identity for one in sets}
            report = report_on(engine, path, config, digests, shown_pairs(shards, path))
        with replace_directory(folders.reports, "filter") as directory:
            write_page(report, config, examples_of(report, shards, sets, path), directory)
            write_report(report, directory)
        os.replace(path / "pairs", path / "leftover")  # in one step, which marks the folder as finished
        _remove_pieces(path)
    return report


def _judge_once(work: WorkFolder, engine_config: EngineConfig, shards: Shards, raw: Path) -> None:
    """Step 2, on one machine; the others wait for it, and take its files."""

    def make() -> None:
        work.fill("pairs", shards, measure_shard)  # brings those of other machines
        with open_engine(engine_config, _scratch(work.path)) as engine:
            judge(engine, work, shards, raw)

    work.pieces.make(Piece("judged", JUDGED[-1], lambda: JUDGED[:-1], "the SQL over all shards"), make)


def work_key(config: FilterConfig, raw: Path, opted_out: OptedOut, sets: Sequence[EvaluationSet]) -> str:
    """A digest of everything that decides what the filter writes, its code included."""
    entries = [(entry.kind, entry.value) for entry in opted_out.entries]
    digests = [(one.name, one.identity) for one in sets]
    return key_of(config, state_of(raw), entries, digests, provenance.digest(__name__))


def _scratch(path: Path) -> Path:
    """An empty folder for the engine's files; a killed run may have left some."""
    shutil.rmtree(path / "engine", ignore_errors=True)
    return path / "engine"


def _is_finished(path: Path) -> bool:
    """Whether a run was killed while it removed its pieces."""
    return (path / filtered.DECISIONS).exists() and not (path / "pairs").exists()


def _remove_pieces(path: Path) -> None:
    """Leaves the outs alone."""
    for entry in path.iterdir():
        if entry.name == HELD_OUT:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in filtered.FILES and entry.name != ".work.json":
            entry.unlink()


def main(params: Params, args: argparse.Namespace) -> None:
    """`align filter`."""
    paths = params.section(PathsConfig)
    folders = FilterFolders(paths.raw, paths.evaluation, paths.policy, paths.filtered, paths.reports / "filter")
    config, engine_config = params.section(FilterConfig), params.section(EngineConfig)
    store, portion = params.section(StoreConfig), portion_of(args)
    with record_runtime("filter", paths.runtime) as runtime:
        report = filter_pairs(config, engine_config, folders, portion, store)
        if report is None:
            return
        runtime["num_pairs"] = report.num_pairs
    say(f"filter: {report.num_kept:,} of {report.num_pairs:,} pairs kept")
    for row in report.funnel:
        if row.num_first:
            say(f"filter: {row.num_first:8,} {row.reason}")
    if report.num_held_out:
        where = paths.filtered / HELD_OUT
        say(f"filter: {report.num_held_out:,} pairs that pass every other rule are held out as the set in {where}")
    if report.num_not_fetched:
        say(
            f"filter: warning: {report.num_not_fetched:,} pair(s) pass every rule on texts, but `align ingest` "
            "did not fetch their pictures; run `align ingest --retry-failed`, then this"
        )
