"""filter: every rule of the paper over the whole of data/raw -> which pairs are kept, and why the others are not.

Leaves decisions.parquet, facts.parquet and images.parquet in data/filtered: `align.filter.tables` has their
columns and the SQL, `align.filter.rules` the rules and the deviations from the paper. The order of work:

  1. measure   each shard by itself: its images and texts                        --shards A-B
  2. judge     SQL over all of them: counts, rare n-grams, every rule but those of the network
  3. score     each shard by itself: the network on images that some pair would keep   --shards A-B, once 2. is done
  4. compare   embeddings with those of the evaluation images
  5. decide    SQL again, with what the network found; optional rules; the files, and the report

Everything stays in a work folder until the end, so a killed run goes on with the shard that it was at. Ranges of shards
commute; run them once to measure and once more to score, then `--finish` (which does by itself what is left of 3).

Works on any folder in img2dataset's layout. Where nothing is kept the stage still ends well, with every row and its
reason: the quality gate and `align shard` are where that stops.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from align import provenance
from align.config.engine import EngineConfig
from align.config.filter import FilterConfig
from align.config.params import Params
from align.config.paths import PathsConfig
from align.config.store import StoreConfig
from align.console import say, track
from align.files import replace_directory, to_json, write_text
from align.filter import measure, ngrams, pair_tables, tables
from align.filter.decisions import write_decisions
from align.filter.examples import examples, pairs_of, some
from align.filter.fingerprints import by_content
from align.filter.measure import Measuring, measure_shard, score_shard, twin_table
from align.filter.near_duplicates import NearDuplicate, find_near_duplicates, read_embeddings, write_embeddings
from align.filter.network import ImageNetwork
from align.filter.report import Example, FilterReport, Gallery, Vocabulary, write_pages
from align.filter.resemblance import resemble_shard
from align.filter.summary import summarise
from align.formats.evaluation_set import EvaluationSet, distinct_images, load_sets
from align.formats.policy import OptedOut, read_opted_out
from align.formats.raw import RawShard, iter_images, raw_shards, state_of
from align.memory import freed_memory_kept
from align.protocols.sql import Engine
from align.protocols.store import FetchTar
from align.report import record_runtime
from align.services.engine import open_engine
from align.services.store import fetcher
from align.services.vector_index import kmeans
from align.work import (
    Portion,
    add_portion_arguments,
    in_processes,
    key_of,
    one_at_a_time,
    portion_of,
    require_done,
    work_directory,
)

#: Pictures per reason in the report.
_EXAMPLES = 12
_OUTS = ("decisions.parquet", "facts.parquet", "images.parquet")

#: Arrays of a shard's texts are made of the memory of the last one's; a large picture's goes back.
_memory_kept = partial(freed_memory_kept, 64 << 20)

ALL = Portion()
Shards = Sequence[tuple[int, RawShard]]


def filter_pairs(
    config: FilterConfig,
    engine_config: EngineConfig,
    raw: Path,
    evaluation: Path,
    filtered: Path,
    reports: Path,
    policy: Path,
    part: Portion = ALL,
    fetch: FetchTar | None = None,
) -> FilterReport | None:
    """Decides over every pair.

    Args:
        config: the cuts.
        engine_config: which SQL engine, its bounds, and how many processes measure.
        raw: a folder in img2dataset's layout.
        evaluation: evaluation sets, against which rule I5 runs; may be absent.
        filtered: the folder to write; replaced as a whole.
        reports: the folder for the report and its pictures; replaced as a whole.
        policy: the folder with opted_out.csv; may be absent.
        part: a range of shards to measure or score, or `--finish`.
        fetch: for tars that lie in the object store.

    Returns:
        The report; None for a range, which leaves its work for the others.

    Raises:
        DataError: raw holds no shards, or a shard is unreadable, or keys occur twice; a range is missing.
        CorruptError: an evaluation set does not match its checksum.
        LockedError: another run works on `filtered`.
    """
    listing = list(enumerate(raw_shards(raw, fetch)))
    opted_out = read_opted_out(policy)
    sets = load_sets(evaluation)
    if not sets:
        say(f"filter: warning: no evaluation sets in {evaluation}; rule I5 removes nothing")
    with work_directory(filtered, work_key(config, raw, opted_out, sets), part) as work:
        if (work / _OUTS[0]).exists() and not (work / "pairs").exists():
            return _read_report(reports)  # killed on its last steps
        mine = [item for item in listing if part.shards is None or item[1].number in part.shards]
        workers = max(1, min(engine_config.num_workers or os.cpu_count() or 1, len(mine)))
        threads = engine_config.num_threads or os.cpu_count() or 1
        measuring = Measuring(work, config, opted_out, max(1, threads // workers), progress=workers == 1)
        alone = replace(measuring, num_threads=threads)  # for evaluation images, with no worker beside

        def done(name: str) -> bool:
            return measuring.file("pairs", name).exists()

        if part.finish:
            require_done("filter", [shard.name for _, shard in listing], done)
        measure.write_fingerprints(work, distinct_images(sets), alone)
        _each(measure_shard, "pairs", mine, measuring, workers, "filter: shards, images and texts")
        if all(done(shard.name) for _, shard in listing):
            with one_at_a_time(work / ".judging.lock"):
                _judge(config, engine_config, listing, work, raw)
            _each(score_shard, "scored", mine, measuring, workers, "filter: shards, the network")
        elif part.shards is not None:
            say("filter: once all shards are measured, run the ranges again, to score their images, and --finish")
        if part.shards is not None:
            return None
        _compare(config, listing, sets, alone)
        report = _decide(config, engine_config, listing, sets, measuring, workers, reports)
        _leave_only_outs(work)
    return report


def work_key(config: FilterConfig, raw: Path, opted_out: OptedOut, sets: Sequence[EvaluationSet]) -> str:
    """A digest of everything that decides what the filter writes, its code included."""
    entries = [(entry.kind, entry.value) for entry in opted_out.entries]
    digests = [(one.name, one.sha256) for one in sets]
    return key_of(config, state_of(raw), entries, digests, provenance.digest(__name__))


def _each(
    function: Callable[[Measuring, tuple[int, RawShard]], None], what: str, shards: Shards, measuring: Measuring,
    workers: int, said: str,
) -> None:  # fmt: skip
    left = [item for item in shards if not measuring.file(what, item[1].name).exists()]  # none: no process starts
    if left:
        done = in_processes(partial(function, measuring), left, workers, around=_memory_kept)
        for _ in track(done, what=said, total=len(left)):
            pass


def _judge(config: FilterConfig, engine_config: EngineConfig, listing: Shards, work: Path, raw: Path) -> None:
    """Leaves verdicts.parquet, vocabulary.json, rare.parquet and at last candidates.parquet."""
    if (work / "candidates.parquet").exists():
        return
    measure.require_growing_keys(work / "pairs", [shard.name for _, shard in listing], raw)
    shutil.rmtree(work / "engine", ignore_errors=True)  # left by a killed run
    with open_engine(engine_config, work / "engine") as engine:
        for name in ("pairs", "unigrams", "bigrams"):
            engine.view(name, work / name / "*.parquet")
        _count_ngrams(engine, config, listing, work)
        say("filter: SQL, texts and images that repeat")
        engine.table("texts_per_image", tables.TEXTS_PER_IMAGE)
        engine.table("images_per_text", tables.IMAGES_PER_TEXT)
        say("filter: SQL, rules")
        engine.write(tables.verdicts(config), work / "verdicts.parquet", "none")
        engine.view("verdicts", work / "verdicts.parquet")
        engine.write(tables.CANDIDATES, work / "candidates.parquet")


def _count_ngrams(engine: Engine, config: FilterConfig, listing: Shards, work: Path) -> None:
    """Rule T2: leaves the table `rare_blocks`, and for the report vocabulary.json and rare.parquet."""
    [(num_bigrams,)] = engine.rows("SELECT count(*) FROM bigrams")
    tables_of_counts = ngrams.ngram_counts(engine.num_parts(num_bigrams))
    for number, (name, query) in enumerate(tables_of_counts.items(), 1):
        say(f"filter: SQL, n-grams, part {number} of {len(tables_of_counts)}")
        engine.table(name, query)
    counts = dict(engine.rows(ngrams.counts_of_counts(tables_of_counts)))
    cut, num_frequent = ngrams.vocabulary_cut(counts, config.num_frequent_ngrams)
    vocabulary = Vocabulary(num_ngrams=sum(counts.values()), num_frequent=num_frequent, last_count=cut)
    write_text(work / "vocabulary.json", to_json(vocabulary.model_dump()))
    frequent = ngrams.frequent(tables_of_counts, cut) if cut > 1 else {}
    for name, query in frequent.items():
        engine.table(name, query)
    for name in tables_of_counts:  # before what needs the memory
        engine.drop(name)
    parts = ngrams.rare_pairs(engine.num_parts(num_frequent)) if cut > 1 else {}
    rare: list[tuple[int, int]] = []
    if cut > 1:
        for number, (name, query) in enumerate(parts.items(), 1):
            say(f"filter: SQL, rare n-grams, part {number} of {len(parts)}")
            engine.table(name, query)
        shown = some(listing)
        places = [(index * tables.MAX_ROWS, (index + 1) * tables.MAX_ROWS - 1) for index, _ in shown]
        for _, shard in shown:
            name = f"{shard.name}.parquet"
            measure.commit(pair_tables.word_table(work / "pairs" / name), work / "shown_words" / name)
        engine.view("shown_words", work / "shown_words" / "*.parquet")
        rare += engine.rows(ngrams.rare_ngrams("bigrams", "bigrams", places))
        rare += engine.rows(ngrams.rare_ngrams("shown_words", "unigrams", places))  # shown rather than their bigrams
        for name in frequent:
            engine.drop(name)
    engine.table("rare_blocks", ngrams.rare_blocks(parts))
    for name in parts:
        engine.drop(name)
    by_place = [{"place": place, "ngram": ngram} for place, ngram in sorted(dict(rare).items())]
    measure.commit(pa.Table.from_pylist(by_place, tables.BIGRAMS), work / "rare.parquet")


def _compare(config: FilterConfig, listing: Shards, sets: list[EvaluationSet], measuring: Measuring) -> None:
    """Rule I5 by embedding: leaves twins.parquet."""
    path, views = measuring.work / "twins.parquet", measuring.work / "references.arrow"
    if path.exists():
        return
    files = [file for _, shard in listing if (file := measuring.file("embeddings", shard.name)).exists()]
    found: list[NearDuplicate] = []
    if sets and files:
        if not views.exists():
            network = ImageNetwork(config.near_duplicate_embedder, measuring.num_threads)
            images = distinct_images(sets)
            look = partial(network.views, max_pixels=config.max_image_pixels)
            rows = track(by_content(look, images), what="filter: evaluation images")
            write_embeddings(views, rows, network.width)
        found += find_near_duplicates(files, read_embeddings(views), config, kmeans)
    measure.commit(twin_table(found), path)


def _decide(
    config: FilterConfig,
    engine_config: EngineConfig,
    listing: Shards,
    sets: list[EvaluationSet],
    measuring: Measuring,
    workers: int,
    reports: Path,
) -> FilterReport:
    """Leaves images.parquet, facts.parquet and decisions.parquet, and the report."""
    work = measuring.work
    shutil.rmtree(work / "engine", ignore_errors=True)
    with open_engine(engine_config, work / "engine") as engine:
        for name in ("verdicts.parquet", "candidates.parquet", "twins.parquet", "images/*.parquet", "scored/*.parquet"):
            engine.view(name.replace("/", ".").partition(".")[0], work / name)
        if not (work / "images.parquet").exists():
            say("filter: SQL, decisions")
            source = f"({tables.judged(config)})"
            if config.similarity_model is not None:
                engine.table("judged", f"SELECT * FROM {source} AS judged")
                engine.write(tables.LEFT, work / "left.parquet")
                said = "filter: shards, image-text similarity"
                _each(resemble_shard, "similarities", listing, measuring, workers, said)
                engine.view("similarities", work / "similarities" / "*.parquet")
                source = "judged"
            source = f"({tables.resembling(config, source)})"
            if config.drop_repeats is not None:
                engine.table("resembling", f"SELECT * FROM {source} AS resembling")
                source = "resembling"
            engine.write(tables.decided(config, source), work / "decided.parquet", "none")
            of = measuring.file
            shards = [(shard.name, of("pairs", shard.name), of("images", shard.name)) for _, shard in listing]
            shown = track(shards, what="filter: shards, decisions", total=len(shards))
            with _memory_kept():
                write_decisions(shown, work / "verdicts.parquet", work / "decided.parquet", work)
            say("filter: SQL, images")
            engine.table("later_copies", tables.LATER_COPIES)
            engine.view("known_images", work / "known_images.parquet")
            engine.write(tables.IMAGES_IN_ORDER, work / "images.parquet")
        engine.view("decided", work / "decided.parquet")
        for name in _OUTS:
            engine.view(name.partition(".")[0], work / name)
        vocabulary = Vocabulary.model_validate_json((work / "vocabulary.json").read_bytes())
        engine.view("pairs", work / "pairs" / "*.parquet")
        digests = {one.name: one.sha256 for one in sets}
        report = summarise(engine.rows, engine.unnest, digests, vocabulary, pairs_of(some(listing), work))
        with replace_directory(reports) as directory:
            _write_report(report, config, listing, sets, work, directory)
    return report


def _write_report(
    report: FilterReport,
    config: FilterConfig,
    listing: Shards,
    sets: list[EvaluationSet],
    work: Path,
    directory: Path,
) -> None:
    shards = some(listing)
    rows = examples(shards, work, work / "rare.parquet", _EXAMPLES)
    shown = [Example(**{name: row[name] for name in Example.__dataclass_fields__}) for row in rows]
    multiplied = report.overview.multiplied_images
    wanted = {example.image_key for example in shown} | {one.image_key for one in multiplied}
    indices = {index for index, _ in shards} | {one.place // tables.MAX_ROWS for one in multiplied}
    pictures = {key: data for index in sorted(indices) for key, data in iter_images(listing[index][1]) if key in wanted}
    twins = {example.twin for example in shown}
    tests = {name: image for one in sets for image in one.images if (name := f"{one.name}/{image.key}") in twins}
    twin_pictures = {name: (image.image, image.texts[0] if image.texts else "") for name, image in tests.items()}
    write_pages(report, config, Gallery(shown, pictures, twin_pictures, config.max_image_pixels), directory)


def _read_report(reports: Path) -> FilterReport:
    """What `_write_report` left."""
    values = json.loads((reports / "report.json").read_bytes())
    return FilterReport.model_validate(values | {"metrics": json.loads((reports / "metrics.json").read_bytes())})


def _leave_only_outs(work: Path) -> None:
    """Removes what the output does not need: `pairs` first and at once, which says that the rest is left over."""
    os.replace(work / "pairs", work / "leftover")
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in _OUTS and path.name != ".work.json":
            path.unlink()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `align filter`."""
    add_portion_arguments(parser)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align filter`."""
    config, engine_config = params.section(FilterConfig), params.section(EngineConfig)
    paths = params.section(PathsConfig)
    with record_runtime("filter", paths.runtime) as runtime:
        report = filter_pairs(
            config, engine_config, paths.raw, paths.evaluation, paths.filtered, paths.reports / "filter", paths.policy,
            portion_of(args), fetcher(params.section(StoreConfig)),
        )  # fmt: skip
        if report is None:
            return
        runtime["num_pairs"] = report.num_pairs
    say(f"filter: {report.num_kept:,} of {report.num_pairs:,} pairs kept")
    for row in report.funnel:
        if row.num_first:
            say(f"filter: {row.num_first:8,} {row.reason}")
