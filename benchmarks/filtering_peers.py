"""What the filter is measured against: the same rules as bare SQL over tables with ready words, and in pandas.

Both are written as one would write them for this job alone, and give the same decisions, which the benchmark asserts.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import regex

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig
from align.filter.ngrams import vocabulary_cut
from align.filter.rules import active
from align.filter.words import text_facts
from align.pairs.languages import languages
from align.pairs.text import personal_data, words

#: From the filter's work folder: (query, file), in the form in which pre-tokenised data usually comes.
_TABLES = {
    "pairs": """
        SELECT key, url, status, image_id, image_key, text, num_words, list_concat(unigrams, bigrams) AS ngrams,
               is_filename, language
        FROM (SELECT *, key AS url FROM read_parquet('{words}/*.parquet'))
        ORDER BY key
    """,
    "images": """
        SELECT image_id, min(image_key) AS image_key, any_value(width_px) AS width_px,
               any_value(height_px) AS height_px, any_value(decodable) AS decodable, any_value(phash) AS phash,
               any_value(len(evaluation_sets)) AS num_evaluation_sets
        FROM read_parquet('{work}/images/*.parquet') GROUP BY image_id
    """,
    "nsfw": """
        SELECT image_id, nsfw_score FROM read_parquet('{work}/scored/*.parquet')
        JOIN (SELECT DISTINCT image_hash, image_id FROM read_parquet('{work}/images/*.parquet')) USING (image_hash)
    """,
}


def tables_with_words(work: Path, folder: Path) -> None:
    """Writes pairs, images and nsfw.parquet from what the filter measured."""
    with_words = folder / "pairs"
    with_words.mkdir(parents=True)
    for path in sorted((work / "pairs").glob("*.parquet")):
        table = pq.read_table(path)
        facts = text_facts(table["text"].combine_chunks())
        for name, (offsets, ngrams) in {"unigrams": (facts.offsets, facts.words), "bigrams": facts.bigrams()}.items():
            lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ngrams))
            table = table.append_column(name, lists)
        pq.write_table(table, with_words / path.name, compression="none")
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        for name, query in _TABLES.items():
            query = query.format(work=work, words=with_words)
            connection.execute(f"COPY ({query}) TO '{folder}/{name}.parquet' (COMPRESSION zstd)")
    shutil.rmtree(with_words)


def decide_in_bare_sql(folder: Path, config: FilterConfig, engine: EngineConfig, out: Path) -> None:
    """Reads the tables with ready words, writes decisions.parquet and images.parquet."""
    with duckdb.connect(
        str(out / "bare.duckdb"),
        config={
            "memory_limit": "1GB",  # it runs out of less, as ours does not
            "threads": engine.num_threads or 1,
            "temp_directory": str(out / "spill"),
        },
    ) as connection:
        run = connection.execute
        run("SET enable_progress_bar = false")
        for name in _TABLES:
            run(f"CREATE VIEW {name} AS SELECT * FROM '{folder}/{name}.parquet'")
        run(
            "CREATE TABLE counts AS SELECT ngram, count(*) AS num "
            "FROM (SELECT unnest(ngrams) AS ngram FROM pairs) GROUP BY ngram"
        )
        cut, _ = vocabulary_cut(
            dict(run("SELECT num, count(*) FROM counts GROUP BY num").fetchall()), config.num_frequent_ngrams
        )
        run(f"""
            CREATE TABLE rare AS SELECT DISTINCT key FROM (SELECT key, unnest(ngrams) AS ngram FROM pairs)
            ANTI JOIN (SELECT ngram FROM counts WHERE num >= {cut}) USING (ngram)
        """)
        run("""
            CREATE TABLE texts_per_image AS SELECT image_id, count(*) AS num_texts
            FROM (SELECT DISTINCT image_id, text FROM pairs WHERE image_id IS NOT NULL AND text <> '') GROUP BY image_id
        """)
        run("""
            CREATE TABLE images_per_text AS SELECT text, count(*) AS num_images
            FROM (SELECT DISTINCT text, coalesce(image_id, url) FROM pairs WHERE text <> '') GROUP BY text
        """)
        run(f"""
            COPY (
                SELECT key, len(reasons) = 0 AS keep, reasons[1] AS reason, reasons, image_id,
                       CASE WHEN decodable IS NOT NULL THEN image_key END AS image_key, text, language
                FROM (SELECT *, list_filter([
                    CASE WHEN decodable IS NULL THEN 'image_missing' END,
                    CASE WHEN NOT decodable THEN 'image_undecodable' END,
                    CASE WHEN nsfw_score >= {config.nsfw_threshold} THEN 'image_nsfw' END,
                    CASE WHEN least(width_px, height_px) <= {config.short_side_above_px} THEN 'image_too_small' END,
                    CASE WHEN greatest(width_px, height_px) >= {config.aspect_ratio_below} * least(width_px, height_px)
                         THEN 'image_aspect_ratio' END,
                    CASE WHEN num_texts > {config.max_texts_per_image} THEN 'image_too_many_texts' END,
                    CASE WHEN num_evaluation_sets > 0 THEN 'image_near_duplicate_of_test' END,
                    CASE WHEN num_images > {config.max_images_per_text} THEN 'text_shared_by_many_images' END,
                    CASE WHEN rare THEN 'text_rare_ngram' END,
                    CASE WHEN num_words < {config.min_words} THEN 'text_too_short' END,
                    CASE WHEN num_words > {config.max_words} THEN 'text_too_long' END,
                    CASE WHEN is_filename THEN 'text_is_filename' END
                ], lambda code: code IS NOT NULL) AS reasons
                FROM (
                    SELECT pairs.*, images.* EXCLUDE (image_id, image_key), nsfw_score, num_texts, num_images,
                           rare.key IS NOT NULL AS rare
                    FROM pairs LEFT JOIN images USING (image_id) LEFT JOIN nsfw USING (image_id)
                    LEFT JOIN texts_per_image USING (image_id) LEFT JOIN images_per_text USING (text)
                    LEFT JOIN rare ON rare.key = pairs.key
                )) ORDER BY key
            ) TO '{out}/decisions.parquet' (COMPRESSION zstd)
        """)
        run(f"""
            COPY (
                SELECT images.*, nsfw_score, num_texts FROM images LEFT JOIN nsfw USING (image_id)
                LEFT JOIN texts_per_image USING (image_id) ORDER BY image_id
            ) TO '{out}/images.parquet' (COMPRESSION zstd)
        """)


#: Rule `text_is_filename` in one pattern.
_FILE_NAME = regex.compile(
    r"""
      .*[\w)\]-]\.(?:jpe?g|jpe|jfif|png|gif|webp|svgz?|bmp|tiff?|ico|avif|heic|heif|jxl|psd|eps|xcf|pdf|mp4|webm)
    | (?:https?|ftp|file|data)://?\S+
    | (?:\.{0,2}/|~/|[a-z]:[\\/])\S+
    | [^\s\\/]+(?:[\\/][^\s\\/]+){2,}
    | (?:img|dsc[nf]?|dscn|p|pict|mvi|gopr|vid|screenshot|screen\ shot|image|photo|scan|untitled|unnamed)
      [\s_-]*\(?\d[\d\s_.:()-]*(?:at\ [\d.:]+)?
    """,
    flags=regex.VERBOSE | regex.IGNORECASE | regex.VERSION1,
)


def decide_in_pandas(work: Path, raw: Path, config: FilterConfig, out: Path) -> None:
    """The whole job from data/raw on, words too; writes decisions.parquet and images.parquet."""
    pairs = pd.concat([pd.read_parquet(path) for path in sorted(raw.glob("*.parquet"))], ignore_index=True)
    images = pd.concat([pd.read_parquet(path) for path in sorted((work / "images").glob("*.parquet"))])
    images = images.sort_values("image_key").drop_duplicates("image_id")
    scored = pd.concat([pd.read_parquet(path) for path in sorted((work / "scored").glob("*.parquet"))])
    images = images.merge(scored, on="image_hash", how="left")
    pairs["text"] = (
        pairs["caption"].fillna("").str.normalize("NFC").str.replace(r"[\s\x00-\x1f]+", " ", regex=True).str.strip()
    )
    unigrams = pairs["text"].map(words)
    ngrams = unigrams.map(lambda found: [*found, *map(" ".join, pairwise(found))])
    used = ngrams.explode().dropna()
    counts = used.value_counts()
    cut, _ = vocabulary_cut(counts.value_counts().to_dict(), config.num_frequent_ngrams)
    rare = pairs.index.isin(used.index[~used.isin(counts.index[counts >= cut])])
    num_words = unigrams.map(len)
    pairs["num_emails"], pairs["num_phones"] = zip(*pairs["text"].map(personal_data), strict=True)
    texts = pairs.loc[pairs["text"] != "", ["sha256", "text"]].drop_duplicates().groupby("sha256").size()
    per_text = pairs.loc[pairs["text"] != "", ["text"]].assign(image=pairs["sha256"].fillna(pairs["url"]))
    num_images = per_text.drop_duplicates().groupby("text").size()

    columns = ["image_id", "width_px", "height_px", "decodable", "nsfw_score", "evaluation_sets"]
    facts = pairs.merge(images[columns], left_on="sha256", right_on="image_id", how="left")
    short, long = facts[["width_px", "height_px"]].min(axis=1), facts[["width_px", "height_px"]].max(axis=1)
    flags = pd.DataFrame({
        "opted_out": False,
        "image_missing": facts["decodable"].isna(),
        "image_undecodable": ~facts["decodable"].fillna(True).astype(bool),
        "image_nsfw": facts["nsfw_score"] >= config.nsfw_threshold,
        "image_too_small": short <= config.short_side_above_px,
        "image_aspect_ratio": long >= config.aspect_ratio_below * short,
        "image_too_many_texts": facts["sha256"].map(texts).fillna(0) > config.max_texts_per_image,
        "image_near_duplicate_of_test": facts["evaluation_sets"].str.len() > 0,
        "text_shared_by_many_images": facts["text"].map(num_images) > config.max_images_per_text,
        "text_rare_ngram": rare,
        "text_too_short": num_words < config.min_words,
        "text_too_long": num_words > config.max_words,
        "text_is_filename": facts["text"].map(lambda text: _FILE_NAME.fullmatch(text) is not None),
        "image_not_fetched": False,
    })[active(config)]  # fmt: skip
    values, names = flags.to_numpy(), np.array(flags.columns, dtype=object)
    dropped = values.any(axis=1)
    facts["keep"] = ~dropped
    facts["reason"] = np.where(dropped, names[values.argmax(axis=1)], None)
    facts["reasons"] = [names[row].tolist() for row in values]
    facts.loc[facts["keep"], "language"] = languages(facts.loc[facts["keep"], "text"].tolist())
    columns = ["key", "keep", "reason", "reasons", "image_id", "image_key", "text", "language"]
    facts[columns].sort_values("key").to_parquet(out / "decisions.parquet", compression="zstd", index=False)
    images.sort_values("image_id").to_parquet(out / "images.parquet", compression="zstd", index=False)
