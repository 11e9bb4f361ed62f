"""The filter's intermediate tables, and the SQL that decides, the same for DuckDB and Spark.

`align.formats.filtered` has the tables that the filter writes for others. Inside, pairs, images, texts and n-grams are
64-bit numbers, and strings enter the SQL only in columns that few rows fill. So tables are narrow, joins are cheap, and
no result depends on how an engine compares strings:

    row_number  of a pair: its shard's position in the listing x MAX_ROWS + its row in the shard. Keys grow with it
    image_hash  the first 64 bits of the image's sha256. Two of n images share one with a chance of n^2 / 2^65: 1 in
                15,000 for 50 million. They would be judged as one
    text_hash   a hash of the normalised text; null for an empty one
    url_hash    a hash of the URL, where a pair has no image
    ngram_hash  a hash of a word, or of two neighbouring ones (`align.filter.words`)

`align.filter.work_folder` says in which files they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from align.config.filter import FilterConfig
from align.filter import ngrams, rules
from align.formats import filtered

#: Pairs per shard, at most.
MAX_ROWS = 1 << 24

#: The pairs of a shard, in order of their keys.
PAIRS = pa.schema(
    [
        ("row_number", pa.int64()),
        ("key", pa.string()),
        ("opted_out", pa.string()),
        ("status", pa.string()),
        ("image_id", pa.string()),
        ("image_key", pa.string()),
        ("image_hash", pa.int64()),
        ("url_hash", pa.int64()),
        ("has_bytes", pa.bool_()),
        ("decodable", pa.bool_()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("num_evaluation_sets", pa.int32()),
        ("twin", pa.string()),
        ("text", pa.string()),  # normalised, at most `filter.max_characters`
        ("text_hash", pa.int64()),
        ("num_characters", pa.int32()),  # of the text before `filter.max_characters` cuts it
        ("num_words", pa.int32()),
        ("only_word_hash", pa.int64()),  # of a text of one word; null for others
        ("is_filename", pa.bool_()),
        ("language", pa.string()),
        ("num_emails", pa.int32()),
        ("num_phones", pa.int32()),
        ("licence_allowed", pa.bool_()),  # null: no rule needs it
    ]
)

#: How often words occur in a shard. A word may have several rows. Texts share most words, so there are few rows.
UNIGRAMS = pa.schema([("ngram_hash", pa.int64()), ("num", pa.int64())])
#: All bigrams of a shard, in order of row numbers.
BIGRAMS = pa.schema([("row_number", pa.int64()), ("ngram_hash", pa.int64())])

#: The distinct images of a shard, in order of their first pair.
IMAGES = pa.schema(
    [
        ("row_number", pa.int64()),  # of the first pair
        ("image_hash", pa.int64()),
        ("image_id", pa.string()),
        ("image_key", pa.string()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("is_picture", pa.bool_()),  # by its header, as ingest looks at it
        ("decodable", pa.bool_()),
        ("phash", pa.uint64()),
        ("evaluation_sets", pa.list_(pa.string())),  # by equal bytes or perceptual hash
        ("twin", pa.string()),
    ]
)

#: The images of all shards as images.parquet has them; one that several shards hold has several rows.
KNOWN_IMAGES = pa.schema([IMAGES.field("row_number"), IMAGES.field("image_hash"), *filtered.IMAGES_SCHEMA])
#: The images that the network scored.
SCORED = pa.schema([("image_hash", pa.int64()), ("nsfw_score", pa.float64())])
#: The scored images of a shard that show what an evaluation image shows, by its embedding.
CLOSE = pa.schema([("image_id", pa.string()), ("reference", pa.string()), ("cosine", pa.float64())])
#: The scored images whose embedding is close to an evaluation image's.
TWINS = pa.schema(
    [
        ("image_hash", pa.int64()),
        ("num_evaluation_sets", pa.int32()),
        ("evaluation_sets", pa.list_(pa.string())),
        ("twin", pa.string()),
        ("twin_cosine", pa.float64()),
    ]
)
#: The pairs that a given model compared.
SIMILARITIES = pa.schema([("row_number", pa.int64()), ("similarity", pa.float64())])


#: Distinct texts per image content, where it is not 1 (or the only one is empty).
TEXTS_PER_IMAGE = """
    SELECT image_hash, count(text_hash) AS num_texts
    FROM (SELECT DISTINCT image_hash, text_hash FROM pairs WHERE image_hash IS NOT NULL) AS used
    GROUP BY image_hash HAVING count(*) > 1
"""

#: Distinct images per text, where there are several.
IMAGES_PER_TEXT = """
    SELECT text_hash, count(*) AS num_images
    FROM (
        SELECT DISTINCT text_hash, coalesce(image_hash, url_hash) AS image_hash FROM pairs WHERE text_hash IS NOT NULL
    ) AS used
    GROUP BY text_hash HAVING count(*) > 1
"""


def verdicts(config: FilterConfig) -> str:
    """The verdicts of the cheap rules (`mask`, see `rules.mask`) and the counts behind them, in order of row numbers.

    From `pairs`, `texts_per_image`, `images_per_text` and `rare_blocks` (`align.filter.ngrams`).
    """
    return f"""
        SELECT row_number, image_hash, text_hash, num_texts, num_images, rare_ngram,
               {rules.mask(config, rules.CHEAP)} AS mask
        FROM (
            SELECT pairs.*,
                   CASE WHEN pairs.image_hash IS NULL THEN 0
                        ELSE coalesce(texts_per_image.num_texts, CASE WHEN pairs.text_hash IS NULL THEN 0 ELSE 1 END)
                   END AS num_texts,
                   CASE WHEN pairs.text_hash IS NOT NULL THEN coalesce(images_per_text.num_images, 1)
                   END AS num_images,
                   {ngrams.is_rare("pairs.row_number")} AS rare_ngram
            FROM pairs
            LEFT JOIN texts_per_image ON texts_per_image.image_hash = pairs.image_hash
            LEFT JOIN images_per_text ON images_per_text.text_hash = pairs.text_hash
            LEFT JOIN rare_blocks ON rare_blocks.block = {ngrams.block_of("pairs.row_number")}
        ) AS known
        ORDER BY row_number
    """


#: The images that some pair would keep, each with its first such pair: what the network scores.
CANDIDATES = """
    SELECT row_number, image_hash
    FROM (
        SELECT image_hash, min(row_number) AS row_number FROM verdicts WHERE mask = 0 GROUP BY image_hash
    ) AS earliest
    ORDER BY row_number
"""


def network_verdicts(config: FilterConfig) -> str:
    """The verdicts with those of the network's rules, for all pairs of the candidates.

    No later rule needs other pairs: each pair that is still kept belongs to a candidate. From `verdicts`, `candidates`,
    `scored` and `twins`.
    """
    return f"""
        SELECT row_number, image_hash, text_hash, nsfw_score, num_evaluation_sets, twin, twin_cosine,
               mask | {rules.mask(config, rules.NETWORK)} AS mask
        FROM (
            SELECT verdicts.*, scored.nsfw_score, twins.num_evaluation_sets, twins.twin, twins.twin_cosine
            FROM verdicts JOIN candidates ON candidates.image_hash = verdicts.image_hash
            LEFT JOIN scored ON scored.image_hash = verdicts.image_hash
            LEFT JOIN twins ON twins.image_hash = verdicts.image_hash
        ) AS known
    """


#: The pairs that a given model compares, in order of row numbers; `network_verdicts` is a table here.
REMAINING = "SELECT row_number FROM network_verdicts WHERE mask = 0 ORDER BY row_number"


#: The pairs of each similarity, from the highest. Its values have four decimals, so there are few: no pairs are sorted.
PAIRS_PER_SIMILARITY = """
    SELECT similarity, count(*) FROM similarities WHERE similarity IS NOT NULL
    GROUP BY similarity ORDER BY similarity DESC
"""


def worst_of_best(counts: Sequence[tuple[float, int]], share: float) -> tuple[float, int]:
    """The lowest similarity of the best share of pairs, and how many of that similarity belong to it.

    Args:
        counts: as PAIRS_PER_SIMILARITY has them.
        share: of all pairs, rounded to whole ones.
    """
    left = round(share * sum(number for _, number in counts))
    for similarity, number in counts:
        if left <= number:
            return similarity, left
        left -= number
    return 0.0, 0


def last_of_best(similarity: float, number: int) -> str:
    """The row number of the last of so many pairs of one similarity: of equal ones, the smallest keys are the best."""
    return f"""
        SELECT coalesce(max(row_number), -1) FROM (
            SELECT row_number FROM similarities WHERE similarity = {rules.double(similarity)}
            ORDER BY row_number LIMIT {number}
        ) AS equal
    """


def similarity_verdicts(config: FilterConfig, source: str, last: tuple[float, int] = (-2.0, -1)) -> str:
    """The verdicts with that of a given model (from `similarities`), if there is one.

    Args:
        config: the cuts.
        source: the verdicts so far, as a table or a query in brackets.
        last: similarity and row number of the last pair of the best share; before it are higher similarities, and of
            its own smaller row numbers.
    """
    if config.similarity_model is None:
        return f"SELECT *, CAST(NULL AS DOUBLE) AS similarity FROM {source} AS source"
    cut = rules.double(last[0])
    return f"""
        SELECT row_number, image_hash, text_hash, nsfw_score, num_evaluation_sets, twin, twin_cosine, similarity,
               mask | {rules.mask(config, rules.MODEL)} AS mask
        FROM (
            SELECT source.*, similarities.similarity,
                   CASE WHEN similarities.similarity < {cut} OR (similarities.similarity = {cut}
                             AND source.row_number > {last[1]})
                        THEN {rules.double(config.keep_similarity_share or 0.0)} END AS outside_best
            FROM {source} AS source
            LEFT JOIN similarities ON similarities.row_number = source.row_number
        ) AS known
    """


def decided(config: FilterConfig, source: str) -> str:
    """The final verdicts on all pairs of the candidates, in order of row numbers; for other pairs `verdicts` are final.

    Args:
        config: the cuts.
        source: as in `similarity_verdicts`; it is read twice if repeats are dropped.
    """
    columns = "row_number, nsfw_score, num_evaluation_sets, twin, twin_cosine, similarity"
    if config.drop_repeats is None:
        return f"""
            SELECT {columns}, CAST(NULL AS BOOLEAN) AS repeats, mask FROM {source} AS source ORDER BY row_number
        """
    same = {"image": ("image_hash",), "pair": ("image_hash", "text_hash")}[config.drop_repeats]
    joined = " AND ".join(f"earliest.{name} = source.{name}" for name in same)
    return f"""
        SELECT {columns}, repeats, mask | {rules.mask(config, rules.REPEATS)} AS mask
        FROM (
            SELECT source.*, mask = 0 AND earliest.first_row_number < source.row_number AS repeats
            FROM {source} AS source
            LEFT JOIN (
                SELECT {", ".join(same)}, min(row_number) AS first_row_number
                FROM {source} AS source WHERE mask = 0 GROUP BY {", ".join(same)}
            ) AS earliest ON {joined}
        ) AS known
        ORDER BY row_number
    """


#: mask -> number of pairs, from `verdicts` and `decided`.
MASKS = """
    SELECT mask, count(*) FROM (
        SELECT coalesce(decided.mask, verdicts.mask) AS mask FROM verdicts
        LEFT JOIN decided ON decided.row_number = verdicts.row_number
    ) AS known GROUP BY mask
"""

#: Copies of image contents after the first, from `known_images`; few.
LATER_COPIES = """
    SELECT known_images.row_number FROM known_images
    JOIN (
        SELECT image_hash, min(row_number) AS row_number FROM known_images GROUP BY image_hash HAVING count(*) > 1
    ) AS first_copies ON first_copies.image_hash = known_images.image_hash
    WHERE known_images.row_number > first_copies.row_number
"""

_EVALUATION_SETS = "coalesce(twins.evaluation_sets, known_images.evaluation_sets) AS evaluation_sets"
_IMAGE_COLUMNS = ", ".join(
    _EVALUATION_SETS if name == "evaluation_sets" else f"known_images.{name}" for name in filtered.IMAGES_SCHEMA.names
)
#: images.parquet, from `known_images`, `later_copies` and `twins`. In order of `image_hash` as an unsigned number,
#: which is the order of image_id and cheaper to sort by.
IMAGES_IN_ORDER = f"""
    SELECT {_IMAGE_COLUMNS}
    FROM known_images LEFT JOIN later_copies ON later_copies.row_number = known_images.row_number
    LEFT JOIN twins ON twins.image_hash = known_images.image_hash
    WHERE later_copies.row_number IS NULL ORDER BY known_images.image_hash < 0, known_images.image_hash
"""
