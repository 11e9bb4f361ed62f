"""Small folders in img2dataset's layout and an evaluation set, for tests of the filter."""

import io
import json
import shutil
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from align.durable.files import sha256_file
from align.filter.network import ImageNetwork
from tests.support.tars import samples, tar


def quicken(patch):
    """Takes away most of what a small filter run costs: no figure is drawn, and the network's files are opened once."""
    patch.setattr("align.filter.page.png", lambda figure: b"a figure")
    patch.setattr("align.filter.compare.ImageNetwork", _network)


_network = cache(ImageNetwork)


@cache
def noise(seed, width=240, height=230):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def stock_folder(directory, pairs):
    """(caption, image or None for a failed download), as stock img2dataset writes them: none of our own columns."""
    directory.mkdir()
    keys = [f"{index:09d}" for index in range(len(pairs))]
    table = {
        "url": [f"http://x/{key}.png" for key in keys], "caption": [caption for caption, _ in pairs], "key": keys,
        "status": ["success" if data else "failed_to_download" for _, data in pairs],
        "error_message": [None if data else "HTTP Error 404" for _, data in pairs],
    }  # fmt: skip
    pq.write_table(pa.table(table), directory / "00000.parquet")
    tar(directory / "00000.tar", {f"{key}.jpg": data for key, (_, data) in zip(keys, pairs, strict=True) if data})
    return directory


def evaluation_set(directory, image):
    directory.mkdir()
    meta = {"key": "one", "concept": "c", "texts": ["a test text"], "class": None, "vendor": None}
    meta |= {"source_url": "http://t", "split": "query"}
    digest = sha256_file(tar(directory / "tiny.tar", {"one.jpg": image, "one.json": json.dumps(meta).encode()}))
    header = {"schema_version": 1, "name": "tiny", "kind": "retrieval", "num_images": 1, "num_texts": 1}
    header |= {"num_concepts": 1, "sha256": digest, "description": "one picture"}
    (directory / "tiny.json").write_text(json.dumps(header))
    return directory


def shards(directory, count):
    """A folder of `count` shards with two pairs each; the second picture is the same in all of them."""
    directory.mkdir()
    for index in range(count):
        pairs = [(f"a good text {index}", noise(index)), ("the same text in all", noise(50))]
        one = stock_folder(directory / "one", [*pairs])
        table = pq.read_table(one / "00000.parquet")
        keys = pa.array([f"{index:05d}{key[5:]}" for key in table["key"].to_pylist()])
        table = table.set_column(table.column_names.index("key"), "key", keys)
        pq.write_table(table.append_column("image_key", table["key"]), directory / f"{index:05d}.parquet")
        stored = {f"{index:05d}{key[5:]}.jpg": row["jpg"] for key, row in samples(one / "00000.tar").items()}
        tar(directory / f"{index:05d}.tar", stored)
        shutil.rmtree(one)
    return directory
