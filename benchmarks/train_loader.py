"""The training loader at the paper's sizes (346 px shards, 289 px crops) against webdataset and bare decoding.

All three make the same: batches of uint8 crops, half of them flipped, each with one of the image's texts. Ours and
webdataset read the tars from the page cache, shuffled; nothing is kept from one pass to the next.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image

from align.config.shard import ShardConfig
from align.errors import DataError
from align.formats.shards import MANIFEST, Sample, read_manifest
from align.model.preprocess import decode, random_crop
from align.statistics.randomness import Purpose, uniforms
from align.training.batches.batch import Augmentation, Sampling, Workers
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from benchmarks.measure import Comparison, compare, interleaved
from benchmarks.world import World
from tests.support.shard_folder import write_shards

#: The paper's (section 4.1).
RESIZE_PX, CROP_PX = 346, 289
BATCH_SIZE = 64
NUM_IMAGES, IMAGES_PER_SHARD = 640, 160
REPETITIONS = 7
#: Batches whose time is taken.
STEADY_STEPS = 40


def paper_shards(world: World, num_images: int = NUM_IMAGES) -> SplitIndex:
    """Shards of the sample's pictures as `align shard` would write them, of RESIZE_PX; made once.

    Where more are asked for than there are, pictures come again under other keys.
    """
    folder = world.root / f"paper_shards-{num_images}"
    if not (folder / MANIFEST).exists():
        quality = world.params.section(ShardConfig).jpeg_quality
        files = [
            simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="444")
            for pixels in itertools.islice(_decoded(world), num_images)
        ]
        samples = []
        for number, file in enumerate(itertools.islice(itertools.cycle(files), num_images)):
            key = f"{number:09d}"
            texts = (f"picture {key} of the sample", f"another text of {key}")
            samples.append(Sample(key, key, file, (key, f"{key}b"), texts))
        parts = [samples[start : start + IMAGES_PER_SHARD] for start in range(0, len(samples), IMAGES_PER_SHARD)]
        write_shards(folder, {"train": parts}, image_px=RESIZE_PX)
    return SplitIndex.of(folder, read_manifest(folder), "train")


def _decoded(world: World) -> Iterator[NDArray[np.uint8]]:
    for data in world.raw_images():
        try:
            yield decode(data, RESIZE_PX)
        except DataError:
            continue


def ours(index: SplitIndex) -> int:
    """An epoch through the loader, decoding in one thread; a block is a quarter of it."""
    samples = SplitSamples(index, RESIZE_PX, cache_bytes=0)
    loader = TrainLoader(
        samples, sampling=Sampling(0, BATCH_SIZE, shuffle_block=max(BATCH_SIZE, index.num_images // 4)),
        augmentation=Augmentation(image_px=CROP_PX, num_draws=0, flip=True), workers=Workers(num_threads=1),
    )  # fmt: skip
    return sum(len(batch.texts) for batch in loader.batches(0, index.num_images // BATCH_SIZE))


def steady_s(index: SplitIndex, workers: Workers) -> tuple[float, float]:
    """Seconds of STEADY_STEPS batches after the first two, by the clock, and CPU seconds of the rank meanwhile."""
    loader = TrainLoader(
        SplitSamples(index, RESIZE_PX, cache_bytes=0),
        sampling=Sampling(0, BATCH_SIZE, shuffle_block=max(BATCH_SIZE, index.num_images // 4)),
        augmentation=Augmentation(image_px=CROP_PX, num_draws=0, flip=True), workers=workers,
    )  # fmt: skip
    batches = loader.batches(0, STEADY_STEPS + 2)
    next(batches), next(batches)
    start, used = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    return time.perf_counter() - start, time.process_time() - used


def threads_and_processes(index: SplitIndex) -> Comparison:
    """As many of either as there are cores."""
    cores, repetitions = len(os.sched_getaffinity(0)), 3
    ways = (Workers(num_processes=cores), Workers(num_threads=cores))
    seconds = [[steady_s(index, way) for way in ways] for _ in range(repetitions)]
    of_rank = [statistics.median(repetition[way][1] / repetition[way][0] for repetition in seconds) for way in (0, 1)]
    return compare(
        f"training loader, {RESIZE_PX} -> {CROP_PX} px, {cores} loader processes", f"{cores} threads of the rank",
        "images / s", items=STEADY_STEPS * BATCH_SIZE, ours_s=[repetition[0][0] for repetition in seconds],
        theirs_s=[repetition[1][0] for repetition in seconds],
        note=f"wall-clock time; the rank's own CPU: {100 * of_rank[0]:.0f} against {100 * of_rank[1]:.0f} % of a core",
    )  # fmt: skip


def webdataset(index: SplitIndex) -> int:
    """The same through Pillow, webdataset's own decoder, from a shuffle buffer."""
    draw = random.Random(0)

    def crop(sample: dict[str, Any]) -> tuple[NDArray[np.uint8], str]:
        image: Image.Image = sample["jpg"]
        left, top = draw.randrange(image.width - CROP_PX + 1), draw.randrange(image.height - CROP_PX + 1)
        image = image.crop((left, top, left + CROP_PX, top + CROP_PX))
        if draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image), draw.choice(sample["json"]["texts"])

    shuffled = wds.WebDataset(list(index.shards), shardshuffle=len(index.shards)).shuffle(index.num_images // 4)
    batches: Iterator[tuple[NDArray[np.uint8], list[str]]] = iter(shuffled.decode("pil").map(crop).batched(BATCH_SIZE))
    return sum(len(texts) for images, texts in batches if images.shape[1:] == (CROP_PX, CROP_PX, 3))


def bare(files: list[bytes]) -> int:
    """The same decoding and cropping of bytes in memory, in a loop."""
    shown, scratch = 0, np.empty(3 * RESIZE_PX**2, dtype=np.uint8)
    draws = uniforms(0, 0, Purpose.CROP, np.arange(len(files), dtype=np.int64), 3)
    for start in range(0, len(files), BATCH_SIZE):
        images = np.empty((BATCH_SIZE, CROP_PX, CROP_PX, 3), dtype=np.uint8)
        for row, data in enumerate(files[start : start + BATCH_SIZE]):
            random_crop(decode(data, RESIZE_PX, scratch), images[row], draws[start + row].tolist(), flip=True)
            shown += 1
    return shown


def run(world: World) -> list[Comparison]:
    index = paper_shards(world)
    files = [
        Path(path).read_bytes()[offset : offset + size]
        for shard, path in enumerate(index.shards)
        for offset, size in index.read_offsets(shard)[:, :2].tolist()
    ]
    items = index.num_images // BATCH_SIZE * BATCH_SIZE
    assert ours(index) == items
    rows = [threads_and_processes(index)]
    for what, peer, theirs in (
        ("against webdataset", "webdataset, Pillow", lambda: webdataset(index)),
        ("share of bare decoding", "decode and crop in a loop", lambda: bare(files[:items])),
    ):
        seconds = interleaved(lambda: ours(index), theirs, REPETITIONS)
        rows.append(
            compare(
                f"training loader, {RESIZE_PX} -> {CROP_PX} px", peer, "images / CPU s", items=items, ours_s=seconds[0],
                theirs_s=seconds[1], note=what,
            )
        )  # fmt: skip
    return rows
