"""Every rule of the paper at its exact boundary, in the SQL that runs over the whole table."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.config import load_params
from align.config.engine import EngineConfig
from align.config.filter import FilterConfig
from align.pairs import rules
from align.pairs.signals import text_signals
from align.services.engine import Engine, open_engine

PAPER = FilterConfig(
    max_image_pixels=10**8,
    nsfw_threshold=0.8,
    short_side_above_px=200,
    aspect_ratio_below=3.0,
    max_texts_per_image=1000,
    max_phash_distance=20,
    thumbnail_correlation_above=0.99,
    max_images_per_text=10,
    num_frequent_ngrams=10**8,
    min_words=3,
    max_words=20,
    drop_filenames=True,
)

GOOD: dict[str, Any] = {
    "key": "000000000",
    "status": "success",
    "image_id": "i",
    "image_key": "000000000",
    "text": "a good text",
    "num_words": 3,
    "is_filename": False,
    "has_bytes": True,
    "decodable": True,
    "width_px": 300,
    "height_px": 300,
    "num_evaluation_sets": 0,
    "num_texts": 1,
    "num_images": 1,
    "rare_ngram": None,
}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_engine(EngineConfig(memory_limit="200MB", num_threads=1, temp_directory=tmp_path)) as engine:
        yield engine


def view(engine: Engine, name: str, table: pa.Table) -> None:
    path = engine.scratch / f"{name}.parquet"
    pq.write_table(table, path)
    engine.view(name, path)


def codes(engine: Engine, score: float | None = None, **fact: Any) -> list[str]:
    """The reasons of one pair that is good but for the given facts."""
    row = GOOD | fact
    schema = pa.schema([(name, pa.string() if GOOD[name] is None else pa.scalar(GOOD[name]).type) for name in GOOD])
    view(engine, "facts", pa.Table.from_pylist([row], schema))
    view(engine, "nsfw", pa.table({"image_id": ["i"], "nsfw_score": pa.array([score], pa.float64())}))
    engine.table("flagged", rules.flagged(PAPER))
    path = engine.scratch / "decisions.parquet"
    engine.write(rules.DECISIONS, path)
    [decision] = pq.read_table(path).to_pylist()
    assert decision["keep"] == (decision["reasons"] == [])
    assert decision["reason"] == (decision["reasons"][0] if decision["reasons"] else None)
    return decision["reasons"]


@pytest.mark.parametrize(
    ("fact", "reasons"),
    [
        ({}, []),
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
        ({"rare_ngram": "xylograph"}, ["text_rare_ngram"]),
        ({"num_words": 2}, ["text_too_short"]),
        ({"num_words": 20}, []),
        ({"num_words": 21}, ["text_too_long"]),
        ({"num_words": 10_000}, ["text_too_long"]),
        ({"text": "", "num_words": 0, "num_images": 50}, ["text_too_short"]),
        ({"is_filename": True}, ["text_is_filename"]),
        ({"score": 0.8}, ["image_nsfw"]),
        ({"score": 0.799}, []),
        ({"decodable": False, "width_px": None, "height_px": None}, ["image_undecodable"]),
        (
            {"status": "failed_to_resize", "has_bytes": False, "decodable": None, "width_px": None, "height_px": None},
            ["image_undecodable"],
        ),
        (
            {"status": "failed_to_download", "has_bytes": False, "decodable": None, "width_px": None},
            ["image_missing"],
        ),
        (
            {"is_filename": True, "num_words": 2, "width_px": 150, "num_images": 11},
            ["image_too_small", "text_shared_by_many_images", "text_too_short", "text_is_filename"],
        ),
    ],
)
def test_boundary(engine: Engine, fact: dict[str, Any], reasons: list[str]) -> None:
    assert codes(engine, **fact) == reasons


def test_rule_order_is_the_papers() -> None:
    assert list(rules.RULES) == [
        "image_missing",
        "image_undecodable",
        "image_nsfw",
        "image_too_small",
        "image_aspect_ratio",
        "image_too_many_texts",
        "image_near_duplicate_of_test",
        "text_shared_by_many_images",
        "text_rare_ngram",
        "text_too_short",
        "text_too_long",
        "text_is_filename",
    ]


def test_params_hold_the_papers_boundaries() -> None:
    config = load_params().section(FilterConfig)
    assert (config.short_side_above_px, config.aspect_ratio_below, config.max_images_per_text) == (200, 3.0, 10)
    assert (config.min_words, config.max_words) == (3, 20)


def pairs(engine: Engine, rows: list[tuple[str, str | None]]) -> None:
    """The view `pairs` from (caption, image_id) rows."""
    num = len(rows)
    keys = [f"{index:09d}" for index in range(num)]
    table = pa.table(
        {
            "caption": [caption for caption, _ in rows],
            "sha256": pa.array([image for _, image in rows], pa.string()),
            "key": keys,
            "url": [f"http://x/{index}" for index in range(num)],
            "status": ["success"] * num,
            "error_message": pa.nulls(num, pa.string()),
            "image_key": keys,
            "original_width": pa.nulls(num, pa.int32()),
            "original_height": pa.nulls(num, pa.int32()),
        }
    )
    view(engine, "pairs", text_signals("00000", table))


def test_i4_counts_distinct_normalised_texts_by_image_content(engine: Engine) -> None:
    pairs(engine, [("one text", "i"), (" one  text", "i"), ("two", "i"), ("", "i"), ("three", "j"), ("x", None)])
    assert dict(engine.rows(rules.TEXTS_PER_IMAGE)) == {"i": 2, "j": 1}


def test_t1_counts_distinct_images_by_normalised_text(engine: Engine) -> None:
    rows = [("logo", "i"), ("logo ", "i"), ("logo", "j"), ("logo", None), ("Logo", "j")]
    pairs(engine, rows)
    assert dict(engine.rows(rules.IMAGES_PER_TEXT)) == {"logo": 3, "Logo": 1}  # i, j and a dead link of its own


def rare_keys(engine: Engine, num_frequent: int) -> set[int]:
    engine.table("ngram_counts", rules.NGRAM_COUNTS)
    counts = dict(engine.rows("SELECT num, count(*) FROM ngram_counts GROUP BY num"))
    engine.table("frequent_ngrams", rules.frequent_ngrams(*rules.vocabulary_cut(counts, num_frequent)))
    assert engine.rows("SELECT count(*) FROM frequent_ngrams") == [(min(num_frequent, sum(counts.values())),)]
    return {int(key) for key, _ in engine.rows(rules.RARE_PAIRS)}


def test_t2_one_joint_list_of_unigrams_and_bigrams(engine: Engine) -> None:
    # a: 4, b: 3, "a b": 3, c: 1, "a c": 1
    pairs(engine, [("A b", "i"), ("a b", "j"), ("a, b!", "k"), ("a c", "l"), ("", "m")])
    assert rare_keys(engine, 3) == {3}


def test_t2_bigram_alone_makes_a_text_rare(engine: Engine) -> None:
    pairs(engine, [("a b", "i"), ("a b", "j"), ("b a", "k")])  # a: 3, b: 3, "a b": 2, "b a": 1
    assert rare_keys(engine, 3) == {2}


def test_t2_none_is_rare_where_all_are_on_the_list(engine: Engine) -> None:
    pairs(engine, [("a b", "i"), ("c d", "j")])
    assert rare_keys(engine, 6) == set()


@pytest.mark.parametrize("num_frequent", [1, 2, 5, 7])
def test_t2_ties_do_not_depend_on_the_order_of_rows(tmp_path: Path, num_frequent: int) -> None:
    rows: list[tuple[str, str | None]] = [(f"{a} {b}", "i") for a in "abc" for b in "wxyz"]
    texts = []
    for order in (rows, rows[::-1]):
        with open_engine(EngineConfig(memory_limit="200MB", num_threads=2, temp_directory=tmp_path)) as engine:
            pairs(engine, order)
            texts.append({order[key][0] for key in rare_keys(engine, num_frequent)})
    assert texts[0] == texts[1]


def test_vocabulary_cut() -> None:
    counts = {5: 1, 3: 2, 1: 10}
    assert rules.vocabulary_cut(counts, 3) == (1, 0)
    assert rules.vocabulary_cut(counts, 2) == (3, 1)
    assert rules.vocabulary_cut(counts, 7) == (1, 4)
    assert rules.vocabulary_cut(counts, 13) == (0, 0)
    assert rules.vocabulary_cut({}, 1) == (0, 0)
