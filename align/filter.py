"""filter: every rule of the paper over the whole of data/raw -> which pairs are kept, and why the others are not.

data/filtered/decisions.parquet: key, keep, reason (the first in rule order, null if kept), reasons (all), image_id,
image_key, text (normalised). data/filtered/images.parquet: one row per distinct image. The rules and the deviations
from the paper stand in `align.pairs.rules`; here is the order of work: texts and pixels are measured once, a shard at a
time, into scratch tables; then SQL decides over all of them, within `engine.memory_limit`.

Works on any folder in img2dataset's layout. Where nothing is kept the stage still ends well, with every row and its
reason: the quality gate and `align shard` are where that stops.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.engine import EngineConfig
from align.config.filter import FilterConfig
from align.config.params import Params
from align.config.paths import PathsConfig
from align.errors import DataError
from align.evaluation.sets import EvaluationSet, load_sets
from align.pairs import rules
from align.pairs.filter_report import (
    Example,
    FilterReport,
    FunnelRow,
    Gallery,
    Vocabulary,
    write_pages,
)
from align.pairs.layout import RawShard, iter_images, raw_shards, read_table
from align.pairs.nsfw import NsfwClassifier
from align.pairs.signals import Fingerprints, ImageSignals, image_signals, in_threads, near_duplicates, text_signals
from align.services.engine import Engine, open_engine
from align.stage import record_runtime, replace_directory, say, track, write_report

_IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_key", pa.string()),
        ("shard", pa.string()),
        ("stored_width_px", pa.int32()),
        ("stored_height_px", pa.int32()),
        ("decodable", pa.bool_()),
        ("phash", pa.uint64()),
        ("num_evaluation_sets", pa.int32()),
        ("evaluation_sets", pa.list_(pa.string())),
        ("twin", pa.string()),
    ]
)
_NSFW_SCHEMA = pa.schema([("image_id", pa.string()), ("nsfw_score", pa.float64())])
#: Pictures per reason in the report, and how many shards (spread evenly) they are taken from.
_EXAMPLES = 12
_EXAMPLE_SHARDS = 8


def filter_pairs(
    config: FilterConfig, engine_config: EngineConfig, raw: Path, evaluation: Path, filtered: Path, reports: Path
) -> FilterReport:
    """Decides over every pair.

    Args:
        config: the cuts.
        engine_config: bounds of the SQL engine.
        raw: a folder in img2dataset's layout.
        evaluation: evaluation sets, against which rule I5 runs; may be absent.
        filtered: the folder to write; replaced as a whole.
        reports: the folder for the report and its pictures; replaced as a whole.

    Raises:
        DataError: raw holds no shards, or a shard is unreadable, or a key occurs twice.
        CorruptError: an evaluation set does not match its checksum.
    """
    shards = raw_shards(raw)
    sets = load_sets(evaluation)
    if not sets:
        say(f"filter: warning: no evaluation sets in {evaluation}; rule I5 removes nothing")
    with open_engine(engine_config) as engine:
        _measure_texts(engine, shards)
        _measure_images(engine, shards, sets, config)
        vocabulary = _apply_vocabulary(engine, config)
        engine.table("images_per_text", rules.IMAGES_PER_TEXT)
        engine.table("texts_per_image", rules.TEXTS_PER_IMAGE)
        engine.table("facts", rules.FACTS)
        _score_nsfw(engine, shards, config)
        engine.table("flagged", rules.flagged(config))
        report = _report(engine, sets, vocabulary)
        with replace_directory(filtered) as directory:
            engine.write(rules.DECISIONS, directory / "decisions.parquet")
            engine.write(rules.IMAGES, directory / "images.parquet")
        with replace_directory(reports) as directory:
            _write_report(engine, report, config, shards, sets, directory)
    return report


def _measure_texts(engine: Engine, shards: list[RawShard]) -> None:
    folder = engine.scratch / "texts"
    folder.mkdir()
    for shard in track(shards, what="filter: shards, texts", total=len(shards)):
        pq.write_table(text_signals(shard.name, read_table(shard)), folder / f"{shard.name}.parquet")
    engine.view("pairs", folder / "*.parquet")
    twice = engine.rows("SELECT min(key) FROM (SELECT key FROM pairs GROUP BY key HAVING count(*) > 1)")[0][0]
    if twice is not None:
        raise DataError(
            f"{shards[0].table.parent}: key {twice} occurs more than once; number the shards of merged folders anew"
        )
    engine.table("first_images", rules.FIRST_IMAGES)


def _measure_images(engine: Engine, shards: list[RawShard], sets: list[EvaluationSet], config: FilterConfig) -> None:
    measure = partial(_measured, max_pixels=config.max_image_pixels)
    tests = ((f"{one.name}/{image.key}", image.image) for one in sets for image in one.images)
    measured_tests = in_threads(measure, tests, engine.num_threads)
    references = Fingerprints.of(track(measured_tests, what="filter: evaluation images"))
    folder = engine.scratch / "images"
    folder.mkdir()
    total = engine.rows("SELECT count(*) FROM first_images")[0][0]
    progress = track(range(total), what="filter: images", total=total)
    for shard in shards:
        ids = _ids(engine, shard, "first_images")
        images = ((ids[key], data) for key, data in iter_images(shard) if key in ids)
        rows = []
        for row in in_threads(measure, images, engine.num_threads):
            rows.append(row)
            next(progress, None)
        fingerprints = Fingerprints.of(rows)
        twins: dict[str, list[str]] = {}
        for left, right in near_duplicates(
            fingerprints,
            references,
            max_phash_distance=config.max_phash_distance,
            correlation_above=config.thumbnail_correlation_above,
        ):
            twins.setdefault(fingerprints.owners[left], []).append(references.owners[right])
        keys = {image_id: key for key, image_id in ids.items()}
        table = [
            _image_row(image_id, keys[image_id], shard, signals, twins.get(image_id, [])) for image_id, signals in rows
        ]
        pq.write_table(pa.Table.from_pylist(table, _IMAGES_SCHEMA), folder / f"{shard.name}.parquet")
    engine.view("measured_images", folder / "*.parquet")
    engine.table("images", rules.IMAGES_AT_SOURCE)


def _ids(engine: Engine, shard: RawShard, table: str) -> dict[str, str]:
    """image_key -> image_id of the images in `table` whose bytes lie in this shard."""
    name = shard.name.replace("'", "''")
    return dict(
        engine.rows(
            f"SELECT image_key, image_id FROM {table} WHERE image_key IN (SELECT key FROM pairs WHERE shard = '{name}')"
        )
    )


def _measured(item: tuple[str, bytes], max_pixels: int) -> tuple[str, ImageSignals]:
    return item[0], image_signals(item[1], max_pixels)


def _image_row(
    image_id: str, image_key: str, shard: RawShard, signals: ImageSignals, twins: list[str]
) -> dict[str, str | int | bool | list[str] | None]:
    names = sorted({twin.partition("/")[0] for twin in twins})
    return {
        "image_id": image_id,
        "image_key": image_key,
        "shard": shard.name,
        "stored_width_px": signals.width_px,
        "stored_height_px": signals.height_px,
        "decodable": signals.phash is not None,
        "phash": signals.phash,
        "num_evaluation_sets": len(names),
        "evaluation_sets": names,
        "twin": min(twins, default=None),
    }


def _apply_vocabulary(engine: Engine, config: FilterConfig) -> Vocabulary:
    """Rule T2: counts n-grams, cuts the list, and leaves the table `rare_pairs`."""
    engine.table("ngram_counts", rules.NGRAM_COUNTS)
    counts = dict(engine.rows("SELECT num, count(*) FROM ngram_counts GROUP BY num"))
    min_count, num_at_min = rules.vocabulary_cut(counts, config.num_frequent_ngrams)
    engine.table("frequent_ngrams", rules.frequent_ngrams(min_count, num_at_min))
    engine.table("rare_pairs", rules.RARE_PAIRS)
    num_ngrams = sum(counts.values())
    num_frequent = min(num_ngrams, config.num_frequent_ngrams)
    return Vocabulary(num_ngrams=num_ngrams, num_frequent=num_frequent, last_count=min_count)


def _score_nsfw(engine: Engine, shards: list[RawShard], config: FilterConfig) -> None:
    """Leaves the table `nsfw`: a score for each image that some pair would keep under all other rules."""
    folder = engine.scratch / "nsfw"
    folder.mkdir()
    engine.table("nsfw_candidates", rules.nsfw_candidates(config))
    total = engine.rows("SELECT count(*) FROM nsfw_candidates")[0][0]
    progress = track(range(total), what="filter: images, NSFW", total=total)
    classifier = NsfwClassifier(engine.num_threads)
    for shard in shards:
        ids = _ids(engine, shard, "nsfw_candidates")
        images = ((ids[key], data) for key, data in iter_images(shard) if key in ids)
        rows = []
        for image_id, score in classifier.scores(images, max_pixels=config.max_image_pixels):
            rows.append({"image_id": image_id, "nsfw_score": score})
            next(progress, None)
        pq.write_table(pa.Table.from_pylist(rows, _NSFW_SCHEMA), folder / f"{shard.name}.parquet")
    engine.view("nsfw", folder / "*.parquet")


def _report(engine: Engine, sets: list[EvaluationSet], vocabulary: Vocabulary) -> FilterReport:
    alone: Counter[str] = Counter()
    first: Counter[str] = Counter()
    for joined, num in engine.rows("SELECT codes, count(*) FROM flagged GROUP BY codes"):
        codes = joined.split(",") if joined else []
        alone.update(dict.fromkeys(codes, num))
        first[codes[0] if codes else ""] += num
    num_pairs = first.total()
    num_kept, remaining, funnel = first[""], num_pairs, []
    for code in rules.RULES:
        remaining -= first[code]
        funnel.append(FunnelRow(reason=code, num_alone=alone[code], num_first=first[code], num_remaining=remaining))
    matches = dict.fromkeys((one.name for one in sets), 0)
    matches |= dict(
        engine.rows("SELECT name, count(*) FROM (SELECT unnest(evaluation_sets) AS name FROM images) GROUP BY name")
    )
    num_images, num_scored = engine.rows("SELECT (SELECT count(*) FROM images), (SELECT count(*) FROM nsfw)")[0]
    metrics: dict[str, float | int] = {
        "filter/num_pairs": num_pairs,
        "filter/num_kept": num_kept,
        "filter/keep_rate": round(num_kept / num_pairs, 6) if num_pairs else 0.0,
        **{f"filter/dropped/{row.reason}": row.num_first for row in funnel},
        **{f"filter/evaluation_matches/{name}": num for name, num in matches.items()},
    }
    return FilterReport(
        metrics=metrics,
        num_pairs=num_pairs,
        num_kept=num_kept,
        num_images=num_images,
        num_nsfw_scored=num_scored,
        num_evaluation_sets=len(sets),
        evaluation_matches=matches,
        vocabulary=vocabulary,
        funnel=funnel,
    )


def _write_report(
    engine: Engine,
    report: FilterReport,
    config: FilterConfig,
    shards: list[RawShard],
    sets: list[EvaluationSet],
    directory: Path,
) -> None:
    step = max(1, len(shards) // _EXAMPLE_SHARDS)
    some = shards[::step][:_EXAMPLE_SHARDS]
    query = rules.examples([shard.name for shard in some], _EXAMPLES)
    examples = [Example(*row) for row in engine.rows(query)]
    wanted = {example.image_key for example in examples}
    pictures = {key: data for shard in some for key, data in iter_images(shard) if key in wanted}
    twins = {example.twin for example in examples}
    tests = {name: image for one in sets for image in one.images if (name := f"{one.name}/{image.key}") in twins}
    twin_pictures = {name: (image.image, image.texts[0] if image.texts else "") for name, image in tests.items()}
    lengths = dict(engine.rows("SELECT num_words, count(*) FROM facts GROUP BY num_words"))
    gallery = Gallery(examples, pictures, twin_pictures, config.max_image_pixels)
    write_pages(report, config, lengths, gallery, directory)
    write_report(report, directory)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align filter`."""
    config, engine_config, paths = (
        params.section(FilterConfig),
        params.section(EngineConfig),
        params.section(PathsConfig),
    )
    with record_runtime("filter", paths.runtime) as runtime:
        report = filter_pairs(
            config, engine_config, paths.raw, paths.evaluation, paths.filtered, paths.reports / "filter"
        )
        runtime["num_pairs"] = report.num_pairs
    say(f"filter: {report.num_kept:,} of {report.num_pairs:,} pairs kept")
    for row in report.funnel:
        say(f"filter: {row.num_first:8,} {row.reason}")
