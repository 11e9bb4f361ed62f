"""filter: every rule of the paper over the whole of data/raw -> which pairs are kept, and why the others are not.

Writes data/filtered (`align.formats.filtered`); `align.filter.rules` has the rules and the deviations from the paper.
The order of work:

  1. measure   each shard is a task: its images and texts
  2. judge     SQL over all shards: counts, rare n-grams, every rule but those of the network
  3. score     each shard is a task: the network on images that some pair would keep, compared with evaluation images
  4. decide    SQL again, with the network's scores; optional rules; each shard's files; then the report

Everything stays in a work folder until the end, so a killed run resumes at the shard where it stopped
(`align.filter.work_folder`). `engine.runner` says who does the tasks: processes here, or a cluster.

Any folder in img2dataset's layout is accepted. If no pair is kept, the stage still succeeds, with every row and its
reason; the quality gate and `align shard` refuse such data.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from align.config.filter import FilterConfig
from align.config.infrastructure import Device, EngineConfig, StoreConfig
from align.config.params import Params
from align.config.paths import PathsConfig
from align.display.console import say, track
from align.display.report import record_runtime, write_report
from align.durable.files import link, replace_directory, sha256_file, to_json, write_text
from align.durable.processes import in_threads
from align.durable.steps import Step, Work
from align.durable.work import SCRATCH, finish, is_finished, key_of, work_directory
from align.filter import ngrams, tables
from align.filter.compare import score
from align.filter.decide import decide
from align.filter.examples import examples_of, shown_pairs, shown_shards
from align.filter.measure import REFERENCES, measure_shard, require_ascending_keys, write_fingerprints
from align.filter.network import require_device
from align.filter.page import write_page
from align.filter.pair_tables import word_table
from align.filter.report import FilterReport, Vocabulary, read_report, report_on
from align.filter.work_folder import FilterWork, NumberedShard, Shards, write_table
from align.formats import filtered
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.named import named_sets
from align.formats.policy import OptedOut, read_opted_out
from align.formats.raw import raw_shards, state_of
from align.interfaces.executor import Executor
from align.interfaces.sql import Engine
from align.project import provenance
from align.services.engine import open_engine
from align.services.executors.executors import open_executor
from align.services.files.files import StoreFiles
from align.services.s3.store import Objects, fetcher
from align.services.store_work import open_work

#: The outs that have a file for each shard.
_BY_SHARD = (filtered.DECISIONS, filtered.FACTS)


def judge(engine: Engine, work: FilterWork, shards: Shards, raw: Path, out: Path) -> None:
    """Writes verdicts.parquet and candidates.parquet, and for the report vocabulary.json and rare.parquet.

    Raises:
        DataError: keys do not grow from shard to shard.
    """
    require_ascending_keys(work.folder / "measured", [shard.name for _, shard in shards], raw)
    for name in ("pairs", "unigrams", "bigrams"):
        engine.view(name, work.folder / f"measured/*/{name}.parquet")
    _find_rare_pairs(engine, work, shards, out)
    say("filter: SQL, texts and images that repeat")
    engine.table("texts_per_image", tables.TEXTS_PER_IMAGE)
    engine.table("images_per_text", tables.IMAGES_PER_TEXT)
    say("filter: SQL, rules")
    engine.write(tables.verdicts(work.config), out / "verdicts.parquet", "none")
    engine.view("verdicts", out / "verdicts.parquet")
    engine.write(tables.CANDIDATES, out / "candidates.parquet")


def _find_rare_pairs(engine: Engine, work: FilterWork, shards: Shards, out: Path) -> None:
    """Rule T2: makes the table `rare_blocks`, and for the report vocabulary.json and rare.parquet."""
    cut, num_frequent, lists = _frequent_ngrams(engine, work.config, out / "vocabulary.json")
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
    write_table(pa.Table.from_pylist(rows, tables.BIGRAMS), out / "rare.parquet")


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


def _rare_ngrams_shown(engine: Engine, work: FilterWork, shards: Shards) -> list[tuple[int, int]]:
    """(row number, n-gram) of rare pairs in the shards that the report shows; bigrams first, then words."""
    ranges = [(index * tables.MAX_ROWS, (index + 1) * tables.MAX_ROWS - 1) for index, _ in shards]
    (engine.scratch / "shown_words").mkdir()
    for _, shard in shards:
        words = word_table(work.measured(shard, "pairs"))
        write_table(words, engine.scratch / "shown_words" / f"{shard.name}.parquet")
    engine.view("shown_words", engine.scratch / "shown_words/*.parquet")
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
        filtered: written; replaced as a whole.
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
    store: StoreConfig | None = None,
) -> FilterReport:
    """Decides on every pair.

    Args:
        config: the cuts.
        engine_config: who does the SQL and the tasks, and their bounds.
        folders: what to read and write.
        store: where tars are that are not in `folders.raw`, and where the machines of a cluster share their work.

    Raises:
        DataError: raw holds no shards, a shard is unreadable, or a key occurs twice.
        CorruptError: an evaluation set does not match its checksum.
        LockedError: another run works on `folders.filtered`.
        ServiceError: a server is unavailable.
        ConfigError: onnxruntime has no provider for `engine.device`.
    """
    shards: Shards = list(enumerate(raw_shards(folders.raw, fetcher(store) if store else None)))
    opted_out = read_opted_out(folders.policy)
    sets = named_sets(folders.evaluation, StoreFiles(store) if store else None)
    if not sets:
        say(f"filter: warning: no evaluation sets in {folders.evaluation}; rule I5 removes nothing")
    key = work_key(config, engine_config.device, folders.raw, opted_out, sets)
    shared = open_work(store, engine_config.runner, "filter", key) if store else None
    if engine_config.runner == "local":  # before hours of work; elsewhere the machines of the tasks have the card
        require_device(engine_config.device)
    num_workers = max(1, min(engine_config.num_workers or os.cpu_count() or 1, len(shards)))
    # the cores of this machine bound its own processes; a cluster has cores of its own
    here = {"num_workers": num_workers} if engine_config.runner == "local" else {}
    of_tasks = engine_config.model_copy(update=here)
    with work_directory(folders.filtered, "filter", key) as path, open_executor(of_tasks, path / SCRATCH) as executor:
        if not is_finished(path):
            num_threads = engine_config.num_threads or os.cpu_count() or 1
            features = store.features if store else None
            work = FilterWork(
                Work(path, shared), config, opted_out, num_workers, num_threads, engine_config.device, features
            )
            if shared is not None and store is not None:
                shards = _in_the_store(shards, store)
            sql = engine_config.for_sql(store) if store else engine_config
            _decide_all(work, executor, shards, sets, folders, sql)
            _publish(path, shards)
        Work(path).drop(one.name for one in path.iterdir() if one.is_dir() and one.name not in (*_BY_SHARD, SCRATCH))
    return read_report(folders.reports)


def _decide_all(
    work: FilterWork,
    executor: Executor,
    shards: Shards,
    sets: Sequence[EvaluationSet],
    folders: FilterFolders,
    sql: EngineConfig,
) -> None:
    """All steps, and the report."""
    path = work.folder
    work.work.make(REFERENCES, partial(write_fingerprints, work, sets))
    work.run(Step("measured", measure_shard, "filter: shards, images and texts", [REFERENCES]), shards, executor)

    def judged(out: Path) -> None:
        with open_engine(sql, _scratch(path)) as engine:
            judge(engine, work, shards, folders.raw, out)

    work.work.make("judged", judged)
    score(work, executor, shards, sets)
    with open_engine(sql, _scratch(path)) as engine:
        decide(engine, work, executor, shards)
        digests = {one.name: one.identity for one in sets}
        report = report_on(engine, path, work.config, digests, shown_pairs(shards, path))
    with replace_directory(folders.reports, "filter") as directory:
        write_page(report, work.config, examples_of(shards, sets, path), directory)
        write_report(report, directory)


def _in_the_store(shards: Shards, store: StoreConfig) -> Shards:
    """The same shards, whose tables any machine finds in `store.objects`, beside their tars."""
    objects = Objects(store)

    def put(item: NumberedShard) -> NumberedShard:
        index, shard = item
        sha256 = shard.table_sha256 or sha256_file(shard.table)
        if not objects.exists(sha256):
            objects.put(shard.table, sha256)
        return index, replace(shard, table_sha256=sha256, table_bytes=shard.table.stat().st_size)

    return list(track(in_threads(put, shards, store.num_connections), what="filter: tables stored", total=len(shards)))


def work_key(
    config: FilterConfig, device: Device, raw: Path, opted_out: OptedOut, sets: Sequence[EvaluationSet]
) -> str:
    """A digest of everything that decides what the filter writes, its code included."""
    entries = [(entry.kind, entry.value) for entry in opted_out.entries]
    digests = [(one.name, one.identity) for one in sets]
    return key_of(config, device, state_of(raw), entries, digests, provenance.digest(__name__))


def _scratch(path: Path) -> Path:
    """An empty folder for the engine's files; a killed run may have left some."""
    shutil.rmtree(path / SCRATCH / "engine", ignore_errors=True)
    return path / SCRATCH / "engine"


def _publish(path: Path, shards: Shards) -> None:
    """Puts what was written of each shard where data/filtered has it, too; then the folder is finished."""
    for table in _BY_SHARD:
        (path / table).mkdir(exist_ok=True)
        for _, shard in shards:
            out = path / table / f"{shard.name}.parquet"
            out.unlink(missing_ok=True)  # of a killed run
            link(path / "written" / shard.name / f"{table}.parquet", out)
    finish(path, [path / name for name in (*_BY_SHARD, filtered.IMAGES)])


def main(params: Params, args: argparse.Namespace) -> None:
    """`align filter`."""
    del args
    paths = params.section(PathsConfig)
    folders = FilterFolders(paths.raw, paths.evaluation, paths.policy, paths.filtered, paths.reports / "filter")
    config, engine_config = params.section(FilterConfig), params.section(EngineConfig)
    with record_runtime("filter", paths.runtime) as runtime:
        report = filter_pairs(config, engine_config, folders, params.section(StoreConfig))
        runtime["num_pairs"] = report.num_pairs
    say(f"filter: {report.num_kept:,} of {report.num_pairs:,} pairs kept")
    for row in report.funnel:
        if row.num_first:
            say(f"filter: {row.num_first:8,} {row.reason}")
    if report.num_not_fetched:
        say(
            f"filter: warning: {report.num_not_fetched:,} pair(s) pass every rule on texts, but `align ingest` "
            "did not fetch their pictures; run `align ingest` again, then this"
        )
