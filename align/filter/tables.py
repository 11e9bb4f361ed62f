"""The tables of the filter: what is known of pairs and images, and the SQL that decides, for DuckDB and Spark alike.

**What the filter leaves** (data/filtered), for all that come after it. One row a pair, in order of `key`, in row groups
of 10,000, so that one pair is found by reading little:

    decisions.parquet   DECISIONS: keep or not, why, and the normalised text
    facts.parquet       FACTS: every value that a rule looked at
    images.parquet      one row per distinct image with bytes, in order of `image_id`

**Inside**, pairs, images and texts are numbers of 64 bits, and no string enters the SQL but those that few rows have.
So tables are narrow, joins are cheap, and nothing depends on how an engine compares strings:

    place   of a pair: its shard's position in the listing and its row there; in order of places keys are in order, too
    image   the first 64 bits of the image's sha256. Two of n images share one with a chance of n^2 / 2^65: 1 in 15,000
            for 50 million. They would be judged as one.
    text    likewise of a hash of the normalised text; null for an empty one
    url     likewise of the URL, where a pair has no image

Work folders hold, a file a shard: `pairs` (PAIRS), `images` (IMAGES), `unigrams` (UNIGRAMS) and `bigrams` (BIGRAMS), as
`align.filter.measure` makes them, and `scored` (SCORED), what the network says of the images that the cheap rules
leave.
"""

from __future__ import annotations

import pyarrow as pa

from align.config.filter import FilterConfig
from align.filter import ngrams, rules

#: decisions.parquet. keep is true, reason null and reasons empty together.
DECISIONS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("keep", pa.bool_(), nullable=False),
        ("reason", pa.string()),  # the first in rule order
        ("reasons", pa.list_(pa.string())),  # all, in rule order
        ("image_id", pa.string()),
        ("image_key", pa.string()),  # of the tar sample with the bytes; null where there are none
        ("text", pa.string()),
        ("language", pa.string()),  # ISO 639-1; null: cannot be told, or not asked of a dropped pair
    ]
)

#: facts.parquet.
FACTS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),  # of data/raw
        ("opted_out", pa.string()),  # "kind:value" of the entry of data/policy/opted_out.csv; null: none
        ("status", pa.string()),  # of the download
        ("has_bytes", pa.bool_()),
        ("decodable", pa.bool_()),  # null without bytes
        ("width_px", pa.int32()),  # at the source
        ("height_px", pa.int32()),
        ("nsfw_score", pa.float64()),  # null: not looked at, since other rules drop all pairs of the image
        ("num_texts", pa.int64()),  # distinct texts of the image content; 0 without an image
        ("num_evaluation_sets", pa.int32()),  # sets with an image that this one resembles
        ("twin", pa.string()),  # SET/KEY of the closest one
        ("twin_cosine", pa.float64()),  # null where equal bytes or hashes found it
        ("num_images", pa.int64()),  # distinct images of the text; null for an empty text
        ("rare_ngram", pa.bool_()),
        ("num_words", pa.int32()),
        ("is_filename", pa.bool_()),
        ("similarity", pa.float64()),  # of image and text, by a given model; null: not looked at
        ("language", pa.string()),  # as in decisions.parquet
        ("num_emails", pa.int32()),
        ("num_phones", pa.int32()),
        ("repeats", pa.bool_()),  # a kept pair with a smaller key shows the same image (and text); null: not looked for
    ]
)

#: images.parquet.
IMAGES_OUT = pa.schema(
    [
        ("image_id", pa.string()),
        ("image_key", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("nsfw_score", pa.float64()),
        ("phash", pa.uint64()),
        ("num_texts", pa.int64()),
        ("evaluation_sets", pa.list_(pa.string())),
    ]
)

#: Of a shard's pairs, in order of their keys.
PAIRS = pa.schema(
    [
        ("place", pa.int64()),
        ("key", pa.string()),
        ("opted_out", pa.string()),
        ("status", pa.string()),
        ("image_id", pa.string()),
        ("image_key", pa.string()),
        ("image", pa.int64()),
        ("url", pa.int64()),
        ("has_bytes", pa.bool_()),
        ("decodable", pa.bool_()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("num_evaluation_sets", pa.int32()),
        ("twin", pa.string()),
        ("normalised", pa.string()),
        ("text", pa.int64()),
        ("num_words", pa.int32()),
        ("only_word", pa.int64()),  # of a text of one word; null for others
        ("is_filename", pa.bool_()),
        ("language", pa.string()),
        ("num_emails", pa.int32()),
        ("num_phones", pa.int32()),
    ]
)

#: How often words occur in a shard; some are there several times. Texts share most words, so it has few rows.
UNIGRAMS = pa.schema([("ngram", pa.int64()), ("num", pa.int64())])
#: All bigrams of a shard, in order of places.
BIGRAMS = pa.schema([("place", pa.int64()), ("ngram", pa.int64())])

#: Of the distinct images of a shard, in order of their first pair's place.
IMAGES = pa.schema(
    [
        ("place", pa.int64()),
        ("image", pa.int64()),
        ("image_id", pa.string()),
        ("image_key", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("decodable", pa.bool_()),
        ("phash", pa.uint64()),
        ("evaluation_sets", pa.list_(pa.string())),  # by equal bytes or perceptual hash
        ("twin", pa.string()),
    ]
)

#: `IMAGES` with what was decided of the first pair.
KNOWN_IMAGES = pa.schema(
    [
        *(IMAGES.field(name) for name in IMAGES.names if name not in ("decodable", "twin")),
        ("nsfw_score", pa.float64()),
        ("num_texts", pa.int64()),
    ]
)
#: Of the images that the network looked at.
SCORED = pa.schema([("image", pa.int64()), ("nsfw_score", pa.float64())])
#: Of those among them whose embedding is close to an evaluation image's.
TWINS = pa.schema(
    [
        ("image", pa.int64()),
        ("num_evaluation_sets", pa.int32()),
        ("evaluation_sets", pa.list_(pa.string())),
        ("twin", pa.string()),
        ("twin_cosine", pa.float64()),
    ]
)
#: Of the pairs that a given model looked at.
SIMILARITIES = pa.schema([("place", pa.int64()), ("similarity", pa.float64())])

#: Pairs of a shard, at most.
MAX_ROWS = 1 << 24


#: Distinct texts per image content, where it is not 1 (or the only one is empty).
TEXTS_PER_IMAGE = """
    SELECT image, count(text) AS num_texts
    FROM (SELECT DISTINCT image, text FROM pairs WHERE image IS NOT NULL) AS used GROUP BY image HAVING count(*) > 1
"""

#: Distinct images per text, where they are several.
IMAGES_PER_TEXT = """
    SELECT text, count(*) AS num_images
    FROM (SELECT DISTINCT text, coalesce(image, url) AS image FROM pairs WHERE text IS NOT NULL) AS used
    GROUP BY text HAVING count(*) > 1
"""


def verdicts(config: FilterConfig) -> str:
    """What the cheap rules say (`mask`, see `rules.mask`), and the counts that they looked at; in order of places.

    From `pairs`, `texts_per_image`, `images_per_text` and `rare_blocks` (`align.filter.ngrams`).
    """
    return f"""
        SELECT place, image, text, num_texts, num_images, rare_ngram, {rules.mask(config, rules.CHEAP)} AS mask
        FROM (
            SELECT pairs.*,
                   CASE WHEN pairs.image IS NULL THEN 0
                        ELSE coalesce(texts_per_image.num_texts, CASE WHEN pairs.text IS NULL THEN 0 ELSE 1 END)
                   END AS num_texts,
                   CASE WHEN pairs.text IS NOT NULL THEN coalesce(images_per_text.num_images, 1) END AS num_images,
                   {ngrams.is_rare("pairs.place")} AS rare_ngram
            FROM pairs
            LEFT JOIN texts_per_image ON texts_per_image.image = pairs.image
            LEFT JOIN images_per_text ON images_per_text.text = pairs.text
            LEFT JOIN rare_blocks ON rare_blocks.block = {ngrams.block_of("pairs.place")}
        ) AS known
        ORDER BY place
    """


#: The images that some pair would keep, each with the place of the first such pair: what the network looks at.
CANDIDATES = """
    SELECT place, image FROM (SELECT image, min(place) AS place FROM verdicts WHERE mask = 0 GROUP BY image) AS earliest
    ORDER BY place
"""


def judged(config: FilterConfig) -> str:
    """What the network says of all pairs of the candidates, from `verdicts`, `candidates`, `scored` and `twins`.

    No later rule looks at other pairs: each that is left is one of a candidate.
    """
    return f"""
        SELECT place, image, text, nsfw_score, num_evaluation_sets, twin, twin_cosine,
               mask | {rules.mask(config, rules.NETWORK)} AS mask
        FROM (
            SELECT verdicts.*, scored.nsfw_score, twins.num_evaluation_sets, twins.twin, twins.twin_cosine
            FROM verdicts JOIN candidates ON candidates.image = verdicts.image
            LEFT JOIN scored ON scored.image = verdicts.image LEFT JOIN twins ON twins.image = verdicts.image
        ) AS known
    """


#: The pairs that a given model looks at, in order of places; `judged` is a table.
LEFT = "SELECT place FROM judged WHERE mask = 0 ORDER BY place"


def resembling(config: FilterConfig, judged: str) -> str:
    """What was judged, with what a given model says (`similarities`, where there is one).

    Args:
        config: the cuts.
        judged: a table, or a query in brackets.
    """
    if config.similarity_model is None:
        return f"SELECT *, CAST(NULL AS DOUBLE) AS similarity FROM {judged} AS judged"
    return f"""
        SELECT place, image, text, nsfw_score, num_evaluation_sets, twin, twin_cosine, similarity,
               mask | {rules.mask(config, rules.MODEL)} AS mask
        FROM (
            SELECT judged.*, similarities.similarity FROM {judged} AS judged
            LEFT JOIN similarities ON similarities.place = judged.place
        ) AS known
    """


def decided(config: FilterConfig, resembling: str) -> str:
    """What is decided of all pairs of the candidates, in order of places; of others `verdicts` have the last word.

    `resembling` as there; it is read twice if repeats go.
    """
    columns = "place, nsfw_score, num_evaluation_sets, twin, twin_cosine, similarity"
    if config.drop_repeats is None:
        return (
            f"SELECT {columns}, CAST(NULL AS BOOLEAN) AS repeats, mask FROM {resembling} AS resembling ORDER BY place"
        )
    same = {"image": ("image",), "pair": ("image", "text")}[config.drop_repeats]
    joined = " AND ".join(f"earliest.{name} = resembling.{name}" for name in same)
    return f"""
        SELECT {columns}, repeats, mask | {rules.mask(config, rules.REPEATS)} AS mask
        FROM (
            SELECT resembling.*, mask = 0 AND earliest.earliest_place < resembling.place AS repeats
            FROM {resembling} AS resembling
            LEFT JOIN (
                SELECT {", ".join(same)}, min(place) AS earliest_place
                FROM {resembling} AS resembling WHERE mask = 0 GROUP BY {", ".join(same)}
            ) AS earliest ON {joined}
        ) AS known
        ORDER BY place
    """


#: mask -> number of pairs, from `verdicts` and `decided`.
MASKS = """
    SELECT mask, count(*) FROM (
        SELECT coalesce(decided.mask, verdicts.mask) AS mask FROM verdicts
        LEFT JOIN decided ON decided.place = verdicts.place
    ) AS known GROUP BY mask
"""

#: Copies of image contents behind the first, from `images`; few.
LATER_COPIES = """
    SELECT images.place FROM images
    JOIN (SELECT image, min(place) AS place FROM images GROUP BY image HAVING count(*) > 1) AS first_copies
    ON first_copies.image = images.image WHERE images.place > first_copies.place
"""

#: images.parquet, from `known_images`, `later_copies` and `twins`. In order of `image` as an unsigned number, which is
#: that of image_id and cheaper to sort by.
IMAGES_IN_ORDER = """
    SELECT known_images.image_id, known_images.image_key, known_images.width_px, known_images.height_px,
           known_images.nsfw_score, known_images.phash, known_images.num_texts,
           coalesce(twins.evaluation_sets, known_images.evaluation_sets) AS evaluation_sets
    FROM known_images LEFT JOIN later_copies ON later_copies.place = known_images.place
    LEFT JOIN twins ON twins.image = known_images.image
    WHERE later_copies.place IS NULL ORDER BY known_images.image < 0, known_images.image
"""
