"""The rules that decide which pairs are kept (paper section 3), as SQL over one row of facts per pair.

Each rule is a function from the section `filter` to a condition that is true for what is *dropped*. Their order in
`RULES` is the rule order: a pair's `reason` is the first that holds, `reasons` are all. `FACTS` says what the
conditions may speak of; everything is ANSI SQL, so that another engine gives the same flags.

Decisions where the paper is silent:
  * the order: images before texts, as the paper describes them;
  * I4 counts distinct normalised texts per image *content* (sha256), the empty text not among them;
  * T1 counts distinct images, by content, or by URL where there are no bytes; an empty text is left to T3;
  * T2 counts every occurrence in every raw pair, dropped ones too. Of the n-grams that tie for the last places on the
    list those with the smallest md5 are on it: exactly N, whatever the order of rows. (A cut at a whole count would do
    at scale; a small corpus has a third of its n-grams at count 1 and would lose nothing or a fifth of its pairs.)
  * I1 looks only at images that some pair would keep under all other rules: the classifier costs more than the rest.
Deviations: `image_missing` (a dead link; the paper's pairs all had bytes) and `text_is_filename` (see
`align.pairs.text.is_filename`) are not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable

from align.config.filter import FilterConfig
from align.pairs.layout import FAILED_TO_RESIZE

Rule = Callable[[FilterConfig], str]


def image_missing(config: FilterConfig) -> str:
    """No bytes: the download failed, or the tar lacks what the table promises."""
    return f"status <> '{FAILED_TO_RESIZE}' AND NOT has_bytes"


def image_undecodable(config: FilterConfig) -> str:
    """I0: bytes that no picture comes out of, or a picture above the size limit."""
    return f"status = '{FAILED_TO_RESIZE}' OR (has_bytes AND NOT decodable)"


def image_nsfw(config: FilterConfig) -> str:
    """I1: the classifier's score reaches the threshold."""
    return f"nsfw_score >= {config.nsfw_threshold}"


def image_too_small(config: FilterConfig) -> str:
    """I2: the shorter side must be greater than 200 px: 200 is dropped, 201 kept."""
    return f"least(width_px, height_px) <= {config.short_side_above_px}"


def image_aspect_ratio(config: FilterConfig) -> str:
    """I3: long side / short side must be below 3; 3.0 is dropped."""
    return f"greatest(width_px, height_px) >= {config.aspect_ratio_below} * least(width_px, height_px)"


def image_too_many_texts(config: FilterConfig) -> str:
    """I4: at most 1000 distinct texts per image; 1001 drop it."""
    return f"num_texts > {config.max_texts_per_image}"


def image_near_duplicate_of_test(config: FilterConfig) -> str:
    """I5: shows the same picture as an image of an evaluation set."""
    return "num_evaluation_sets > 0"


def text_shared_by_many_images(config: FilterConfig) -> str:
    """T1: at most 10 distinct images per text; 11 drop it."""
    return f"text <> '' AND num_images > {config.max_images_per_text}"


def text_rare_ngram(config: FilterConfig) -> str:
    """T2: some unigram or bigram is not among the most frequent ones of the raw data."""
    return "rare_ngram IS NOT NULL"


def text_too_short(config: FilterConfig) -> str:
    """T3: fewer than 3 unigrams; 2 are dropped, 3 kept."""
    return f"num_words < {config.min_words}"


def text_too_long(config: FilterConfig) -> str:
    """T3: more than 20 unigrams; 21 are dropped, 20 kept."""
    return f"num_words > {config.max_words}"


def text_is_filename(config: FilterConfig) -> str:
    """Ours: the text is a file name, a path or a URL."""
    return "is_filename" if config.drop_filenames else "false"


#: Every rule by its reason code, in rule order.
RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        image_missing,
        image_undecodable,
        image_nsfw,
        image_too_small,
        image_aspect_ratio,
        image_too_many_texts,
        image_near_duplicate_of_test,
        text_shared_by_many_images,
        text_rare_ngram,
        text_too_short,
        text_too_long,
        text_is_filename,
    )
}

#: First stored copy of each image: the one whose pixels are looked at. The size is that of the source where a table
#: says so (img2dataset shrinks pictures and keeps the original size in columns of its own).
FIRST_IMAGES = """
    SELECT image_id, min(image_key) AS image_key, min_by(original_width, image_key) AS original_width,
           min_by(original_height, image_key) AS original_height
    FROM pairs WHERE image_id IS NOT NULL AND image_key IS NOT NULL GROUP BY image_id
"""

#: How often each unigram and bigram occurs in the raw pairs.
NGRAM_COUNTS = """
    SELECT ngram, count(*) AS num FROM (SELECT unnest(ngrams) AS ngram FROM pairs) GROUP BY ngram
"""

TEXTS_PER_IMAGE = """
    SELECT image_id, count(*) AS num_texts
    FROM (SELECT DISTINCT image_id, text FROM pairs WHERE image_id IS NOT NULL AND text <> '') GROUP BY image_id
"""

IMAGES_PER_TEXT = """
    SELECT text, count(*) AS num_images
    FROM (SELECT DISTINCT text, coalesce(image_id, url) AS image FROM pairs) GROUP BY text
"""


#: One row per pair with everything that rules speak of, but for the NSFW score. From the views and tables `pairs`
#: (`signals.text_signals`), `images` (image_id, width_px, height_px, decodable, evaluation_sets), `texts_per_image`,
#: `images_per_text` and `rare_pairs`.
FACTS = """
    SELECT pairs.key, pairs.status, pairs.image_id, pairs.image_key, pairs.text, pairs.num_words, pairs.is_filename,
           images.image_id IS NOT NULL AS has_bytes, images.decodable, images.width_px, images.height_px,
           coalesce(images.num_evaluation_sets, 0) AS num_evaluation_sets,
           coalesce(texts_per_image.num_texts, 0) AS num_texts, images_per_text.num_images,
           rare_pairs.rare_ngram
    FROM pairs
    LEFT JOIN images ON images.image_id = pairs.image_id
    LEFT JOIN texts_per_image ON texts_per_image.image_id = pairs.image_id
    LEFT JOIN images_per_text ON images_per_text.text = pairs.text
    LEFT JOIN rare_pairs ON rare_pairs.key = pairs.key
"""


def vocabulary_cut(counts: dict[int, int], num_frequent: int) -> tuple[int, int]:
    """Where the list of frequent n-grams is cut.

    Args:
        counts: how many n-grams occur how often (count -> number of n-grams).
        num_frequent: N, how many are on the list.

    Returns:
        (the count of the last ones on the list, how many with just that count are on it); (0, 0) where all are on it.
    """
    seen = 0
    for count in sorted(counts, reverse=True):
        if seen + counts[count] > num_frequent:
            return count, num_frequent - seen
        seen += counts[count]
    return 0, 0


def frequent_ngrams(min_count: int, num_at_min: int) -> str:
    """The list, from the table `ngram_counts` and `vocabulary_cut`."""
    return f"""
        SELECT ngram FROM ngram_counts WHERE num > {min_count}
        UNION ALL
        SELECT ngram FROM (
            SELECT ngram FROM ngram_counts WHERE num = {min_count} ORDER BY md5(ngram), ngram LIMIT {num_at_min}
        )
    """


#: Pairs with an n-gram that is not on the list (table `frequent_ngrams`): their keys, and one such n-gram.
RARE_PAIRS = """
    SELECT key, min(ngram) AS rare_ngram FROM (
        SELECT used.key, used.ngram FROM (SELECT key, unnest(ngrams) AS ngram FROM pairs) AS used
        LEFT JOIN frequent_ngrams ON frequent_ngrams.ngram = used.ngram WHERE frequent_ngrams.ngram IS NULL
    ) GROUP BY key
"""


def codes(config: FilterConfig) -> str:
    """SQL: the codes of all rules that hold for a row, in rule order, joined by commas; '' for a kept pair."""
    cases = [f"CASE WHEN {rule(config)} THEN '{code}' END" for code, rule in RULES.items()]
    return f"concat_ws(',', {', '.join(cases)})"


#: The images as rules see them: of the size at source.
IMAGES_AT_SOURCE = """
    SELECT measured_images.*, coalesce(original_width, stored_width_px) AS width_px,
           coalesce(original_height, stored_height_px) AS height_px
    FROM measured_images JOIN first_images ON first_images.image_id = measured_images.image_id
"""


def nsfw_candidates(config: FilterConfig) -> str:
    """Images that some pair would keep under all rules but I1."""
    return f"""
        SELECT image_id, image_key FROM images WHERE image_id IN (
            SELECT image_id FROM (SELECT facts.*, CAST(NULL AS DOUBLE) AS nsfw_score FROM facts)
            WHERE {codes(config)} = ''
        )
    """


def flagged(config: FilterConfig) -> str:
    """The facts, each with its NSFW score (table `nsfw`) and the `codes` of the rules that drop it."""
    return f"""
        SELECT *, {codes(config)} AS codes FROM (
            SELECT facts.*, nsfw.nsfw_score FROM facts LEFT JOIN nsfw ON nsfw.image_id = facts.image_id
        )
    """


#: decisions.parquet, from the table `flagged`.
DECISIONS = """
    SELECT key, codes = '' AS keep, nullif(split_part(codes, ',', 1), '') AS reason,
           CASE WHEN codes = '' THEN [] ELSE string_split(codes, ',') END AS reasons, image_id,
           CASE WHEN has_bytes THEN image_key END AS image_key, text
    FROM flagged ORDER BY key
"""

#: images.parquet.
IMAGES = """
    SELECT images.image_id, image_key, width_px, height_px, nsfw.nsfw_score, phash,
           coalesce(texts_per_image.num_texts, 0) AS num_texts, evaluation_sets
    FROM images
    LEFT JOIN texts_per_image ON texts_per_image.image_id = images.image_id
    LEFT JOIN nsfw ON nsfw.image_id = images.image_id
    ORDER BY images.image_id
"""


def examples(shards: list[str], num_per_reason: int) -> str:
    """Rows to show people: per reason (null: kept) some pairs of different texts, drawn by a hash of their keys.

    Columns as `filter_report.Example` has them. Only from the given shards: a report on terabytes reads few of them.
    """
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in shards)
    return f"""
        SELECT reason, key, image_key, text, num_words, width_px, height_px, num_texts, num_images, rare_ngram,
               nsfw_score, twin, url, error_message
        FROM (
            SELECT *, row_number() OVER (PARTITION BY reason ORDER BY md5(key)) AS place
            FROM (
                SELECT f.*, nullif(split_part(codes, ',', 1), '') AS reason, images.twin, pairs.url,
                       pairs.error_message,
                       row_number() OVER (PARTITION BY split_part(codes, ',', 1), f.text ORDER BY md5(f.key)) AS copy
                FROM flagged AS f
                JOIN pairs ON pairs.key = f.key
                LEFT JOIN images ON images.image_id = f.image_id
                WHERE pairs.shard IN ({names}) AND (images.shard IS NULL OR images.shard IN ({names}))
            )
            WHERE copy = 1
        )
        WHERE place <= {num_per_reason} ORDER BY reason, place
    """
