"""The paper's rules as one would write them in pandas: the peer of the SQL in `filtering`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd

from align.config.filter import FilterConfig
from align.pairs.rules import RULES


def decide_in_pandas(folder: Path, config: FilterConfig) -> None:
    """Reads the same tables, writes the same columns: key, keep, reason, reasons, image_id, image_key, text."""
    pairs = pd.read_parquet(folder / "pairs.parquet")
    images = pd.read_parquet(folder / "measured_images.parquet").merge(
        pd.read_parquet(folder / "nsfw.parquet"), on="image_id", how="left"
    )
    used = pairs[["key", "ngrams"]].explode("ngrams")
    counts = used["ngrams"].value_counts()
    frequent = _most_frequent(counts, config.num_frequent_ngrams)
    rare = used.loc[~used["ngrams"].isin(frequent), "key"].unique()
    texts = pairs.loc[pairs["text"] != "", ["image_id", "text"]].drop_duplicates().groupby("image_id").size()
    per_text = pairs[["text"]].assign(image=pairs["image_id"].fillna(pairs["url"])).drop_duplicates()
    num_images = per_text.groupby("text").size()

    facts = pairs.merge(images.drop(columns="shard"), on="image_id", how="left")
    width = facts["original_width"].fillna(facts["stored_width_px"])
    height = facts["original_height"].fillna(facts["stored_height_px"])
    short, long = np.minimum(width, height), np.maximum(width, height)
    flags = pd.DataFrame({
        "image_missing": facts["decodable"].isna(),
        "image_undecodable": ~facts["decodable"].fillna(True).astype(bool),
        "image_nsfw": facts["nsfw_score"] >= config.nsfw_threshold,
        "image_too_small": short <= config.short_side_above_px,
        "image_aspect_ratio": long >= config.aspect_ratio_below * short,
        "image_too_many_texts": facts["image_id"].map(texts).fillna(0) > config.max_texts_per_image,
        "image_near_duplicate_of_test": facts["num_evaluation_sets"] > 0,
        "text_shared_by_many_images": facts["text"].map(num_images) > config.max_images_per_text,
        "text_rare_ngram": facts["key"].isin(rare),
        "text_too_short": facts["num_words"] < config.min_words,
        "text_too_long": facts["num_words"] > config.max_words,
        "text_is_filename": facts["is_filename"] & config.drop_filenames,
    })[list(RULES)]  # fmt: skip
    values, names = flags.to_numpy(), np.array(list(RULES), dtype=object)
    dropped = values.any(axis=1)
    facts["keep"] = ~dropped
    facts["reason"] = np.where(dropped, names[values.argmax(axis=1)], None)
    facts["reasons"] = [names[row].tolist() for row in values]
    columns = ["key", "keep", "reason", "reasons", "image_id", "image_key", "text"]
    facts[columns].sort_values("key").to_parquet(folder / "pandas.parquet", compression="zstd", index=False)


def _most_frequent(counts: pd.Series, number: int) -> pd.Index:
    """The `number` most frequent; of those that tie for the last places the ones with the smallest md5."""
    if len(counts) <= number:
        return counts.index
    last = counts.iloc[number]
    sure = counts.index[counts > last]
    tied = sorted(counts.index[counts == last], key=lambda ngram: (hashlib.md5(ngram.encode()).hexdigest(), ngram))
    return sure.append(pd.Index(tied[: number - len(sure)]))
