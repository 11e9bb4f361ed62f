"""Every rule of the paper at its exact boundary, in the SQL that runs over the whole table."""

import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config.filter import FilterConfig, ModelFile
from align.config.infrastructure import EngineConfig
from align.config.validate import ValidateConfig
from align.errors import ConfigError
from align.filter import ngrams, rules, tables
from align.filter.pair_tables import image_hash, pair_tables, word_table
from align.filter.words import ngram_hashes
from align.formats.policy import OptedOut
from align.formats.raw import SCHEMA
from align.services.engine import open_engine
from tests.support.params import load_params
from tests.support.spark import needs_spark

MODEL = ModelFile(path="tower", sha256="0" * 64)
PAPER = (
    load_params()
    .section(FilterConfig)
    .model_copy(
        update={
            "max_texts_per_image": 1000, "similarity_model": MODEL, "min_similarity": 0.2, "languages": ("en", "de"),
            "keep_similarity_share": 0.5, "drop_personal_data": True, "drop_repeats": "image", "licences": ("https://a/",),
        }
    )
)  # fmt: skip

BY_PAIR = PAPER.model_copy(update={"drop_repeats": "pair"})

KNOWN = pa.schema([
    ("opted_out", pa.string()), ("status", pa.string()), ("has_bytes", pa.bool_()), ("decodable", pa.bool_()),
    ("width_px", pa.int32()), ("height_px", pa.int32()), ("num_texts", pa.int64()), ("num_images", pa.int64()),
    ("num_evaluation_sets", pa.int32()), ("rare_ngram", pa.bool_()), ("num_words", pa.int32()),
    ("num_characters", pa.int32()),
    ("is_filename", pa.bool_()), ("nsfw_score", pa.float64()), ("similarity", pa.float64()),
    ("outside_best", pa.float64()),
    ("language", pa.string()), ("num_emails", pa.int32()), ("num_phones", pa.int32()), ("repeats", pa.bool_()),
    ("text", pa.string()), ("licence_allowed", pa.bool_()),
])  # fmt: skip
GOOD = {
    "opted_out": None, "status": "success", "has_bytes": True, "decodable": True, "width_px": 300, "height_px": 300,
    "num_texts": 1, "num_images": 1, "num_evaluation_sets": 0, "rare_ngram": False, "num_words": 3,
    "num_characters": 15,
    "is_filename": False, "nsfw_score": None, "similarity": 0.2, "outside_best": None,
    "language": "en", "num_emails": 0, "num_phones": 0,
    "repeats": False, "text": "a red fox", "licence_allowed": True,
}  # fmt: skip
GONE = {"has_bytes": False, "decodable": None, "width_px": None, "height_px": None}


def engine_config(folder):
    limits = {"memory_limit": "200MB", "num_threads": 2, "temp_directory": folder}
    return load_params().section(EngineConfig).model_copy(update=limits)


@pytest.fixture
def engine(tmp_path):
    with open_engine(engine_config(tmp_path)) as engine:
        yield engine


def view(engine, name, table):
    path = engine.scratch / f"{name}.parquet"
    pq.write_table(table, path)
    engine.view(name, path)


BOUNDARIES = pytest.mark.parametrize(
    ("fact", "reasons"),
    [
        ({}, []),
        ({"opted_out": "host:example.org"}, ["opted_out"]),
        ({"width_px": 200}, ["image_too_small"]),
        ({"width_px": 201}, []),
        ({"height_px": 200, "width_px": 201}, ["image_too_small"]),
        ({"width_px": 900}, ["image_aspect_ratio"]),
        ({"width_px": 899}, []),
        ({"height_px": 900}, ["image_aspect_ratio"]),
        ({"num_texts": 1000}, []),
        ({"num_texts": 1001}, ["image_too_many_texts"]),
        ({"num_evaluation_sets": 1}, ["image_near_duplicate_of_test"]),
        ({"num_images": 10}, []),
        ({"num_images": 11}, ["text_shared_by_many_images"]),
        ({"rare_ngram": True}, ["text_rare_ngram"]),
        ({"num_words": 2}, ["text_too_short"]),
        ({"num_words": 20}, []),
        ({"num_words": 21}, ["text_too_long"]),
        ({"num_words": 10_000}, ["text_too_long"]),
        ({"num_characters": 1000}, []),
        ({"num_characters": 1001}, ["text_too_long"]),  # three words, one of them endless
        ({"num_words": 0, "num_images": None}, ["text_too_short"]),
        ({"is_filename": True}, ["text_is_filename"]),
        ({"nsfw_score": 0.8}, ["image_nsfw"]),
        ({"nsfw_score": 0.799}, []),
        ({"decodable": False, "width_px": None, "height_px": None}, ["image_undecodable"]),
        (GONE | {"status": "failed_to_resize"}, ["image_undecodable"]),
        (GONE | {"status": "failed_to_download"}, ["image_missing"]),
        (GONE | {"status": "not_fetched"}, ["image_not_fetched"]),
        (GONE | {"status": "not_fetched", "num_words": 2}, ["text_too_short", "image_not_fetched"]),  # why it was not
        (GONE, ["image_missing"]),  # the tar lacks what the table promises
        ({"similarity": 0.1999}, ["pair_low_similarity"]),
        ({"similarity": None}, []),
        ({"outside_best": 0.5}, ["pair_low_similarity"]),
        ({"language": "de"}, []),
        ({"language": "fr"}, ["text_other_language"]),
        ({"language": None}, []),
        ({"num_emails": 1}, ["text_personal_data"]),
        ({"num_phones": 2}, ["text_personal_data"]),
        ({"licence_allowed": False}, ["pair_licence"]),
        ({"repeats": True}, ["image_repeat"]),
        (
            {"is_filename": True, "num_words": 2, "width_px": 150, "num_images": 11},
            ["image_too_small", "text_shared_by_many_images", "text_too_short", "text_is_filename"],
        ),
    ],
)


@BOUNDARIES
def test_boundary(engine, fact, reasons):
    view(engine, "known", pa.Table.from_pylist([GOOD | fact], KNOWN))
    [(mask,)] = engine.rows(f"SELECT {rules.mask(PAPER, tuple(rules.RULES))} FROM known")
    assert rules.codes_of(mask) == reasons


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pyspark's socket to its JVM, which lives as long as Python
def test_spark_finds_the_same_boundaries(tmp_path):
    needs_spark()
    facts, reasons = zip(*BOUNDARIES.args[1], strict=True)
    known = pa.Table.from_pylist([GOOD | fact for fact in facts], KNOWN)
    known = known.append_column("number", pa.array(range(len(known)), pa.int64()))
    local = engine_config(tmp_path).model_copy(update={"runner": "spark", "spark_master": "local[1]"})
    with open_engine(local) as spark:
        view(spark, "known", known)
        found = dict(spark.rows(f"SELECT number, {rules.mask(PAPER, tuple(rules.RULES))} FROM known"))
        by_pair = spark.rows(f"SELECT {rules.mask(BY_PAIR, ('pair_repeat',))} FROM known")
    assert [rules.codes_of(found[number]) for number in range(len(known))] == list(reasons)
    assert sum(mask > 0 for (mask,) in by_pair) == 1


#: What DuckDB and Spark read alike, besides numbers, columns and texts without quotes and backslashes in them. Before a
#: word is added, the test above tries it on Spark.
WORDS = {"AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "CAST", "AS", "DOUBLE", "least", "greatest", *KNOWN.names}
TOKEN = re.compile(r"\s+|'[^'\\]*'(?!')|\d+(?:\.\d+)?(?:e-?\d+)?\b|<>|[<>]=?|[=(),+*-]|(?P<word>[A-Za-z_]\w*)")


def not_alike(condition):
    """The first part of a condition that may be of one engine alone; None: there is none."""
    place = 0
    while place < len(condition):
        token = TOKEN.match(condition, place)
        if token is None or (token["word"] or "AND") not in WORDS:
            return token["word"] if token else condition[place:]
        place = token.end()
    return None


def test_each_rule_is_of_words_that_both_engines_read():
    assert set(rules.active(PAPER)) | set(rules.active(BY_PAIR)) == set(rules.RULES)  # switch yours on in PAPER
    for config in (PAPER, BY_PAIR):
        assert {code: not_alike(rules.RULES[code](config)) for code in rules.active(config)} == dict.fromkeys(
            rules.active(config)
        )


@pytest.mark.parametrize("condition", [
    "text ILIKE '%by%'", "text ~ 'by'", "regexp_matches(text, 'by')", "len(text) > 3", "text[1] = 'a'",
    "num_words // 2 > 1", "num_words / 2 > 1", "num_words::DOUBLE > 1", "text LIKE 'it''s'", "text LIKE '\\d'",
    'text = "a"', "list_contains([1], num_words)",
])  # fmt: skip
def test_what_one_engine_reads_in_a_way_of_its_own_is_found(condition):
    assert not_alike(condition)


def test_each_rule_that_is_on_has_its_band():
    params = load_params()
    bands = params.section(ValidateConfig).dropped_share
    assert set(rules.active(params.section(FilterConfig))) <= set(bands)


def test_rule_order_is_the_papers():
    order = [
        "opted_out", "image_missing", "image_undecodable", "image_nsfw", "image_too_small", "image_aspect_ratio",
        "image_too_many_texts", "image_near_duplicate_of_test", "text_shared_by_many_images", "text_rare_ngram",
        "text_too_short", "text_too_long", "text_is_filename", "image_not_fetched", "pair_low_similarity",
        "text_other_language", "text_personal_data", "pair_licence", "image_repeat", "pair_repeat",
    ]  # fmt: skip
    assert [code for code in rules.RULES if code in order] == order  # a rule of one's own may stand anywhere


def test_params_hold_the_papers_boundaries_and_nothing_beyond_them():
    config = load_params().section(FilterConfig)
    assert (config.short_side_above_px, config.aspect_ratio_below, config.max_images_per_text) == (200, 3.0, 10)
    assert (config.min_words, config.max_words, config.num_frequent_ngrams) == (3, 20, 10**8)
    off = [
        "pair_low_similarity", "text_other_language", "text_personal_data", "pair_licence", "image_repeat",
        "pair_repeat",
    ]  # fmt: skip
    assert [code for code in rules.RULES if code not in rules.active(config)] == off
    assert rules.mask(config, rules.MODEL + rules.REPEATS) == "CAST(0 AS BIGINT)"  # what is off costs nothing


def pairs(engine, rows, known=None, dead="success"):
    """The views `pairs`, `unigrams` and `bigrams` from (caption, image) rows, all in one shard."""
    raw = [
        {"caption": caption, "sha256": image and sha(image), "key": f"{row:09d}", "url": f"http://x/{row}",
         "status": "success" if image else dead, "image_key": f"{row:09d}"}
        for row, (caption, image) in enumerate(rows)
    ]  # fmt: skip
    known = tables.IMAGES.empty_table() if known is None else known
    measured = pair_tables(0, pa.Table.from_pylist(raw, SCHEMA), known, OptedOut(), PAPER)
    for name, table in measured.items():
        view(engine, name, table)


def sha(image):
    return image.encode().hex().ljust(64, "0")


def test_i4_counts_distinct_normalised_texts_by_image_content(engine):
    rows = [("one text", "i"), (" one  text", "i"), ("two", "i"), ("", "i"), ("three", "j"), ("x", None), ("", "k")]
    pairs(engine, [*rows, ("y", "l"), ("", "l")])
    assert texts_per_pair(engine) == [2, 2, 2, 2, 1, 0, 0, 1, 1]


def texts_per_pair(engine):
    judge(engine)
    return [row[0] for row in engine.rows("SELECT num_texts FROM verdicts ORDER BY row_number")]


def judge(engine, config=PAPER, rare=None):
    engine.table("texts_per_image", tables.TEXTS_PER_IMAGE)
    engine.table("images_per_text", tables.IMAGES_PER_TEXT)
    blocks = Counter[int]()
    for row_number in rare or ():
        blocks[row_number // 32] += 1 << row_number % 32
    columns = {"block": pa.array(blocks.keys(), pa.int64()), "bits": pa.array(blocks.values(), pa.int64())}
    view(engine, "rare_blocks", pa.table(columns))
    engine.table("verdicts", tables.verdicts(config))


def test_t1_counts_distinct_images_by_normalised_text(engine):
    pairs(engine, [("logo", "i"), ("logo ", "i"), ("logo", "j"), ("logo", None), ("Logo", "j"), ("", "j"), ("", "i")])
    judge(engine)
    verdict_rows = engine.rows("SELECT num_images FROM verdicts ORDER BY row_number")
    assert [row[0] for row in verdict_rows] == [3, 3, 3, 3, 1, None, None]  # i, j and a dead link of its own


def rare_row_numbers(engine, num_frequent, num_parts=1):
    counts = ngrams.ngram_counts(num_parts)
    for name, query in counts.items():
        engine.table(name, query)
    cut, listed = ngrams.vocabulary_cut(dict(engine.rows(ngrams.counts_of_counts(counts))), num_frequent)
    assert listed <= num_frequent
    for name, query in ngrams.frequent(counts, cut).items():
        engine.table(name, query)
    parts = ngrams.rare_pairs(num_parts)
    for name, query in parts.items():
        engine.table(name, query)
    engine.table("rare_blocks", ngrams.rare_blocks(parts))
    rare = engine.rows(f"""
        SELECT pairs.row_number FROM pairs
        LEFT JOIN rare_blocks ON rare_blocks.block = {ngrams.block_of("pairs.row_number")}
        WHERE {ngrams.is_rare("pairs.row_number")}
    """)
    return {row_number for (row_number,) in rare}


def test_t2_one_joint_list_of_unigrams_and_bigrams_cut_at_a_count(engine):
    # a: 4, b: 3, "a b": 3, c: 2, "a c": 1
    pairs(engine, [("A b", "i"), ("a b", "j"), ("a, b!", "k"), ("a c", "l"), ("", "m"), ("c", "n")])
    assert rare_row_numbers(engine, 5) == set()
    assert rare_row_numbers(engine, 4) == {3}
    assert rare_row_numbers(engine, 3) == {3, 5}
    assert rare_row_numbers(engine, 2) == {0, 1, 2, 3, 5}  # b and "a b" tie, both are off
    assert rare_row_numbers(engine, 1) == {0, 1, 2, 3, 5}
    view(engine, "all_words", word_table(engine.scratch / "pairs.parquet"))
    for table, kind, [number] in (
        ("all_words", "unigrams", ngram_hashes(["c"])[0]), ("bigrams", "bigrams", ngram_hashes(["a", "c"])[1])
    ):  # fmt: skip
        assert engine.rows(ngrams.rare_ngrams(table, kind, [(3, 4)])) == [(3, number)]


def test_t2_bigram_alone_makes_a_text_rare(engine):
    pairs(engine, [("a b", "i"), ("a b", "j"), ("b a", "k")])  # a: 3, b: 3, "a b": 2, "b a": 1
    assert rare_row_numbers(engine, 3) == {2}


@pytest.mark.parametrize("num_parts", [1, 2, 3, 7])
def test_t2_in_parts_finds_the_same_pairs(engine, num_parts):
    texts = [f"{'abcdefgh'[row * row % 8]} {'stuvwxyz'[row % 7]} {'klmn'[row % 3]}" for row in range(130)]
    pairs(engine, [*((text, "i") for text in texts), ("once", "i"), ("never again", "j")])  # five blocks of 32
    whole = rare_row_numbers(engine, 50)
    assert {130, 131} < whole < set(range(132))
    assert rare_row_numbers(engine, 50, num_parts) == whole


@pytest.mark.parametrize("num_frequent", [1, 2, 5, 7, 19])
def test_t2_does_not_depend_on_the_order_of_rows(tmp_path, num_frequent):
    rows = [(f"{a} {b}", "i") for a in "abc" for b in "wxyz"]
    texts = []
    for order in (rows, rows[::-1]):
        with open_engine(engine_config(tmp_path)) as engine:
            pairs(engine, order)
            texts.append({order[row][0] for row in rare_row_numbers(engine, num_frequent)})
    assert texts[0] == texts[1]


def test_vocabulary_cut():
    counts = {5: 1, 3: 2, 1: 10}
    assert ngrams.vocabulary_cut(counts, 0) == (6, 0)
    assert ngrams.vocabulary_cut(counts, 2) == (5, 1)
    assert ngrams.vocabulary_cut(counts, 3) == (3, 3)
    assert ngrams.vocabulary_cut(counts, 12) == (3, 3)
    assert ngrams.vocabulary_cut(counts, 13) == (1, 13)
    assert ngrams.vocabulary_cut({}, 1) == (1, 0)


@pytest.mark.parametrize(("same", "repeats"), [
    ("image", [None, False, True, True, False, None]), ("pair", [None, False, True, False, False, None]),
])  # fmt: skip
def test_repeats_are_dropped_only_behind_a_kept_pair(engine, same, repeats):
    rows = [
        ("short", "i"),
        *[("a good text", "i")] * 2,
        ("another good text", "i"),
        ("a good text", "j"),
        ("dead", None),
    ]
    images = [
        {"row_number": 0, "image_hash": image_hash(sha(name)), "image_id": sha(name), "image_key": "k", "width_px": 300,
         "height_px": 300, "decodable": True, "phash": 1, "evaluation_sets": [], "twin": None}
        for name in "ij"
    ]  # fmt: skip
    pairs(engine, rows, pa.Table.from_pylist(images, tables.IMAGES), "failed_to_download")
    off = {"similarity_model": None, "keep_similarity_share": None, "languages": None, "licences": ()}
    config = PAPER.model_copy(update=off | {"drop_repeats": same})
    judge(engine, config)
    engine.table("candidates", tables.CANDIDATES)
    view(engine, "scored", tables.SCORED.empty_table())
    view(engine, "twins", tables.TWINS.empty_table())
    engine.table("network_verdicts", tables.network_verdicts(config))
    engine.table("similarity_verdicts", tables.similarity_verdicts(config, "network_verdicts"))
    verdict_rows = engine.rows(f"""
        SELECT decided.repeats, coalesce(decided.mask, verdicts.mask) FROM verdicts
        LEFT JOIN ({tables.decided(config, "similarity_verdicts")}) AS decided
        ON decided.row_number = verdicts.row_number
        ORDER BY verdicts.row_number
    """)
    assert [bool(repeat) for repeat, _ in verdict_rows] == [bool(repeat) for repeat in repeats]
    for repeat, mask in verdict_rows:
        assert (f"{same}_repeat" in rules.codes_of(mask)) == bool(repeat)


#: Of each pair, in order of keys; many are equal, and one has a picture that the model cannot read.
COSINES = [0.3, 0.1, None, 0.25, 0.3, 0.2512, 0.25, 0.25, -0.1, 0.25]


def best_of(engine, share):
    """The row numbers that are kept."""
    numbers = range(7, 7 + len(COSINES))
    columns = {field.name: pa.nulls(len(COSINES), field.type) for field in JUDGED}
    known = columns | {"row_number": pa.array(numbers, pa.int64()), "mask": pa.array([0] * len(COSINES), pa.int64())}
    view(engine, "network_verdicts", pa.table(known, JUDGED))
    view(engine, "similarities", pa.table([pa.array(numbers), pa.array(COSINES)], tables.SIMILARITIES))
    config = PAPER.model_copy(update={"min_similarity": -1.0, "keep_similarity_share": share, "drop_repeats": None})
    similarity, number = tables.worst_of_best(engine.rows(tables.PAIRS_PER_SIMILARITY), share)
    [(row_number,)] = engine.rows(tables.last_of_best(similarity, number))
    judged = tables.similarity_verdicts(config, "network_verdicts", (similarity, row_number))
    decided = engine.rows(tables.decided(config, f"({judged})"))
    assert [row[5] for row in decided] == COSINES  # the scores are kept
    return {row[0] - 7 for row in decided if not row[-1]}


JUDGED = pa.schema([
    ("row_number", pa.int64()), ("image_hash", pa.int64()), ("text_hash", pa.int64()), ("nsfw_score", pa.float64()),
    ("num_evaluation_sets", pa.int32()), ("twin", pa.string()), ("twin_cosine", pa.float64()), ("mask", pa.int64()),
])  # fmt: skip
#: By share: what is kept, besides the pair that has no similarity.
BEST = {0.01: set(), 0.1: {0}, 0.3: {0, 4, 5}, 0.6: {0, 3, 4, 5, 6}, 0.7: {0, 3, 4, 5, 6, 7}, 0.95: {*range(10)} - {2}}


def test_the_best_share_is_exact_and_of_equal_pairs_the_smallest_keys(engine):
    assert {share: best_of(engine, share) - {2} for share in BEST} == BEST
    assert tables.worst_of_best([], 0.3) == (0.0, 0)


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # pyspark's socket to its JVM, which lives as long as Python
def test_spark_finds_the_same_best_share(tmp_path):
    needs_spark()
    local = engine_config(tmp_path).model_copy(update={"runner": "spark", "spark_master": "local[1]"})
    with open_engine(local) as spark:
        assert {share: best_of(spark, share) - {2} for share in (0.1, 0.6)} == {0.1: BEST[0.1], 0.6: BEST[0.6]}


def test_a_share_without_a_model_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"keep_similarity_share needs filter\.similarity_model"):
        load_params(overrides=["filter.keep_similarity_share=0.3"]).section(FilterConfig)
