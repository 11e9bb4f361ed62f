"""Clusters of images by comparing all with all, and those that an engine finds."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.shard.clusters import label_images, text_hashes


def naive(pairs, phashes, max_bits):
    """The smallest image of each image's cluster; pairs are (image, text)."""
    above = list(range(len(phashes)))

    def root(image):
        return image if above[image] == image else root(above[image])

    def join(one, other):
        low, high = sorted((root(one), root(other)))
        above[high] = low

    first = {}
    for image, text in pairs:
        join(image, first.setdefault(text.casefold(), image))
    near = np.bitwise_count(np.asarray(phashes)[:, None] ^ phashes) <= max_bits
    for one, other in np.argwhere(near).tolist():
        join(one, other)
    return [root(image) for image in range(len(phashes))]


def labels(engine, folder, pairs, phashes, max_bits):
    """The same by an engine's SQL; its files are in the folder."""
    kept = {"image": [image for image, _ in pairs], "text_hash": text_hashes(text for _, text in pairs)}
    images = {"image": np.arange(len(phashes)), "phash": np.asarray(phashes, np.uint64).view(np.int64)}
    for name, rows in (("kept", kept), ("images", images)):
        pq.write_table(pa.table(rows), folder / f"{name}.parquet")
        engine.view(name, folder / f"{name}.parquet")
    found = dict(engine.rows(f"SELECT node, label FROM {label_images(engine, max_bits)}"))
    return [found.get(image, image) for image in range(len(phashes))]


def alike(seed, num_images=300, num_texts=225):
    """Pairs and hashes: a tenth as many pictures with up to six bits flipped, and some equal texts."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 2**64, num_images // 10, np.uint64)
    phashes = centres[random.integers(0, len(centres), num_images)]
    for image in range(num_images):
        for bit in random.integers(0, 64, random.integers(0, 7)):
            phashes[image] ^= np.uint64(1 << int(bit))
    pairs = [(image, f"text {random.integers(0, num_texts)}") for image in random.permutation(num_images).tolist()]
    return pairs + [(image, f"only {image}") for image in range(0, num_images, 7)], phashes
