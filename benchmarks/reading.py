"""Reading shards: random access by offset against stock webdataset, which streams; decoding is the same for both."""

from __future__ import annotations

import webdataset as wds

from align.config.model import ModelConfig
from align.formats.shards import read_manifest
from align.model.preprocess import decode
from align.statistics.randomness import permutation
from align.training.batches.index import SplitIndex
from align.training.batches.samples import SplitSamples
from benchmarks.measure import Comparison, compare, interleaved
from benchmarks.world import World

REPETITIONS = 5


def ours(index: SplitIndex, resize_px: int) -> int:
    """A first epoch: every image and its texts in random order; nothing is in the cache yet."""
    samples, total = SplitSamples(index, resize_px), 0
    for sample in permutation(0, 0, samples.num_images):
        total += int(samples.image(int(sample))[0, 0, 0]) + len(samples.texts(int(sample)))
    return total


def webdataset(index: SplitIndex, resize_px: int) -> int:
    """The same in the order of the tars, webdataset's cheapest: no shuffle buffer."""
    total = 0
    for sample in wds.WebDataset(list(index.shards), shardshuffle=False).decode(
        wds.handle_extension("jpg", lambda data: decode(data, resize_px))
    ):
        total += int(sample["jpg"][0, 0, 0]) + len(sample["json"]["texts"])
    return total


def run(world: World) -> list[Comparison]:
    index = SplitIndex.of(world.shards, read_manifest(world.shards), "train")
    resize_px = world.params.section(ModelConfig).resize_px
    assert ours(index, resize_px) == webdataset(index, resize_px)  # the same pixels and texts
    seconds = interleaved(lambda: ours(index, resize_px), lambda: webdataset(index, resize_px), REPETITIONS)
    return [
        compare(
            "read shards: decoded image and texts", "webdataset", "images / CPU s", items=index.num_images,
            ours_s=seconds[0], theirs_s=seconds[1], note="ours in random order, webdataset in the order of the tar",
        )
    ]  # fmt: skip
