"""The training loader at the paper's sizes against open_clip's data pipeline; open_clip runs in our process.

Theirs is `get_wds_dataset` of open_clip_train without worker processes, with its defaults: shuffled shards and a
shuffle buffer, Pillow, its training transform (a random resized crop of 90 to 100 % of the area, bicubic, to a
normalised tensor) and its tokenizer. Ours goes as far: crops, flips, normalised tensors, tokens. Both read the same
tars from the page cache in one process, decode in one thread, and keep nothing from one pass to the next. A second row
is what either loader hands to its training step: ours leaves pixels as bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from open_clip import get_tokenizer, image_transform
from open_clip_train.data import get_wds_dataset
from open_clip_train.params import parse_args

from align.config.shard import ShardConfig
from align.display.console import say
from align.durable.memory import freed_memory_kept
from align.errors import DataError
from align.formats.shards import MANIFEST, Sample, read_manifest
from align.model.preprocess import decode, to_pixels
from align.model.tokenizer import TextTokenizer
from align.training.batches.augmentation import Augmentation
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from benchmarks.measure import Comparison, compare, interleaved
from benchmarks.world import World
from tests.support.own_process import in_process
from tests.support.shard_folder import write_shards

#: The paper's (section 4.1).
RESIZE_PX, CROP_PX = 346, 289
BATCH_SIZE = 64
NUM_IMAGES, IMAGES_PER_SHARD = 640, 160
REPETITIONS = 5
_MAX_TOKENS = 64


def paper_shards(world: World) -> SplitIndex:
    """Shards of the sample's pictures as `align shard` would write them, of RESIZE_PX; made once."""
    folder = world.root / "paper_shards"
    if not (folder / MANIFEST).exists():
        quality = world.params.section(ShardConfig).jpeg_quality
        samples = []
        for number, pixels in enumerate(itertools.islice(_decoded(world), NUM_IMAGES)):
            file = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="444")
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


def ours(index: SplitIndex, tokenizer: TextTokenizer, *, tensors: bool) -> int:
    """An epoch through the loader, memory kept as in a run; with `tensors` to what the towers take."""
    samples = SplitSamples(index, RESIZE_PX, cache_bytes=0)
    augmentation = Augmentation(tokenizer, image_px=CROP_PX, num_draws=0, flip=True)
    loader = TrainLoader([(samples, 1.0)], augmentation, seed=0, batch_size=BATCH_SIZE)
    shown = 0
    with freed_memory_kept():
        for batch in loader.batches(0, index.num_images // BATCH_SIZE):
            if tensors:
                assert to_pixels(batch.images).shape == (BATCH_SIZE, 3, CROP_PX, CROP_PX)
            shown += len(batch.tokens.ids)
    return shown


def open_clip(index: SplitIndex) -> int:
    """The same through its dataset, which is built again for each epoch here."""
    args: Any = parse_args([
        f"--train-data={'::'.join(index.shards)}", f"--train-num-samples={index.num_images}",
        f"--batch-size={BATCH_SIZE}", "--workers=0", "--dataset-type=webdataset",
    ])  # fmt: skip
    args.world_size = 1
    tokenizer = get_tokenizer("ViT-B-32", context_length=_MAX_TOKENS)
    data = get_wds_dataset(
        args, image_transform(CROP_PX, is_train=True), is_train=True, floor=True, tokenizer=tokenizer
    )
    shown = 0
    for images, texts in data.dataloader:
        assert images.shape == (BATCH_SIZE, 3, CROP_PX, CROP_PX)
        shown += len(texts)
    return shown


def run(world: World) -> list[Comparison]:
    torch.set_num_threads(1)
    say("benchmark: the loader and open_clip's")
    index, tokenizer = paper_shards(world), TextTokenizer.load(world.tokenizer, _MAX_TOKENS)
    items = index.num_images // BATCH_SIZE * BATCH_SIZE
    assert ours(index, tokenizer, tensors=True) == open_clip(index) == items
    peaks = [in_process(function, world)[1] >> 20 for function in (_ours, _theirs)]
    rows = []
    for what, tensors in ((", as the step takes it", False), (", to tensors and tokens", True)):
        ours_s, theirs_s = interleaved(
            lambda tensors=tensors: ours(index, tokenizer, tensors=tensors), lambda: open_clip(index), REPETITIONS
        )  # fmt: skip
        rows.append(
            compare(
                f"training loader, {RESIZE_PX} -> {CROP_PX} px{what}",
                "open_clip's webdataset pipeline and training transform", "images / CPU s", items=items,
                ours_s=ours_s, theirs_s=theirs_s, note=f"peak memory {peaks[0]:,} against {peaks[1]:,} MiB",
            )
        )  # fmt: skip
    return rows


def _ours(world: World) -> None:
    torch.set_num_threads(1)
    ours(paper_shards(world), TextTokenizer.load(world.tokenizer, _MAX_TOKENS), tensors=True)


def _theirs(world: World) -> None:
    torch.set_num_threads(1)
    open_clip(paper_shards(world))
