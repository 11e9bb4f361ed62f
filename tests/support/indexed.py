"""Rows of an index, from what a test says of its images."""

import numpy as np
import pyarrow as pa

from align.formats.indexed_images import write_images


def rows(number, **given):
    """So many images, as `write_images` takes them: the columns that are given, and plain ones."""
    names = [f"{place:09d}" for place in range(number)]
    texts = given.get("texts", [["a text"]] * number)
    plain = {
        "key": names, "image_id": [name.zfill(64) for name in names], "texts": texts, "split": ["train"] * number,
        "shard": ["train/00000.tar"] * number, "offset_bytes": range(number), "size_bytes": range(10, 10 + number),
        "keys": [[f"{name}-{place}" for place in range(len(some))] for name, some in zip(names, texts, strict=True)],
        "page_urls": [[""] * len(some) for some in texts], "urls": [[""] * len(some) for some in texts],
        "thumbnail": [b""] * number,
    }  # fmt: skip
    return pa.table(plain | given)


def write(folder, number, **given):
    """Writes `items.parquet` into a folder, which may be new; returns the folder."""
    folder.mkdir(exist_ok=True)
    list(write_images(folder, [(rows(number, **given), np.zeros((number, 4), np.float32))], thumbnails=False))
    return folder
