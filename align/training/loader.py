"""Batches read straight from the tars through the manifest's offsets, each a pure function of its step.

The order is a permutation keyed by (seed, epoch); one of an image's texts is drawn per epoch; the last, incomplete
batch of an epoch is dropped. A rank takes a contiguous part of every batch, so batches are equal on all ranks at any
world size.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.errors import ConfigError, CorruptError, DataError
from align.model.preprocess import centre_crop, decode, random_crop, to_pixels
from align.pairs.formats.shards import Manifest, SplitName
from align.training.randomness import Purpose, permutation, uniforms

#: Decoded images are kept in memory where all of them take less than this.
CACHE_BYTES = 2**30

#: Phrase dropout chooses among so many phrases; the text tower of the paper reads 64 tokens.
MAX_PHRASES = 32

#: What parts phrases: Latin and CJK punctuation and brackets.
PHRASE_ENDS = re.compile(r"[:,;.|/()\[\]\u2013\u2014\u3001\u3002\uff0c\uff1a\uff1b\uff08\uff09\u30fb]+")

#: Batches made ahead of the step that needs them.
AHEAD = 2


@dataclass(frozen=True)
class SplitIndex:
    """Where the samples of a split lie.

    Attributes:
        shards: absolute paths of the tars.
        offsets: per tar, rows of (image offset, image bytes, json offset, json bytes).
    """

    shards: tuple[str, ...]
    offsets: tuple[tuple[tuple[int, int, int, int], ...], ...]

    @property
    def num_images(self) -> int:
        """Samples in the split."""
        return sum(len(rows) for rows in self.offsets)


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch.

    Attributes:
        pixels: (B, 3, H, W) float32 in [-1, 1].
        texts: B texts, row i of image i.
        draws: (B, num_blocks) float32, stochastic depth's numbers.
    """

    pixels: Tensor
    texts: list[str]
    draws: Tensor


class Samples:
    """Random access to the images and texts of a split; thread-safe."""

    def __init__(self, index: SplitIndex, resize_px: int) -> None:
        self._index = index
        self._resize_px = resize_px
        self.num_images = index.num_images
        counts = [len(rows) for rows in index.offsets]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        fits = self.num_images * resize_px * resize_px * 3 <= CACHE_BYTES
        shape = (self.num_images if fits else 0, resize_px, resize_px, 3)
        self._images: NDArray[np.uint8] = np.empty(shape, dtype=np.uint8)
        self._texts: list[list[str] | None] = [None] * (self.num_images if fits else 0)
        self._cached = np.zeros(len(self._images), dtype=bool)

    @cached_property
    def _files(self) -> list[int]:
        return [os.open(path, os.O_RDONLY) for path in self._index.shards]

    def _locate(self, sample: int) -> tuple[int, tuple[int, int, int, int]]:
        shard = int(np.searchsorted(self._starts, sample, side="right")) - 1
        return shard, self._index.offsets[shard][sample - int(self._starts[shard])]

    def _read(self, shard: int, offset: int, size: int) -> bytes:
        data = os.pread(self._files[shard], size, offset)
        if len(data) != size:
            raise CorruptError(f"{self._index.shards[shard]}: ends before its manifest says; run `align shard` again")
        return data

    def image(self, sample: int) -> NDArray[np.uint8]:
        """(resize_px, resize_px, 3) RGB. Do not write into it."""
        if len(self._cached) and self._cached[sample]:
            cached: NDArray[np.uint8] = self._images[sample]
            return cached
        shard, (offset, size, _, _) = self._locate(sample)
        try:
            image = decode(self._read(shard, offset, size), self._resize_px)
        except DataError as error:
            raise CorruptError(f"{self._index.shards[shard]}: sample {sample}: {error}") from None
        if len(self._cached):
            self._images[sample] = image
            self._cached[sample] = True
        return image

    def texts(self, sample: int) -> list[str]:
        """All kept texts of an image, at least one."""
        known = self._texts[sample] if self._texts else None
        if known is not None:
            return known
        shard, (_, _, offset, size) = self._locate(sample)
        try:
            texts = [str(text) for text in json.loads(self._read(shard, offset, size))["texts"]]
        except (ValueError, KeyError, TypeError):
            raise CorruptError(f"{self._index.shards[shard]}: sample {sample}: its json has no texts") from None
        if self._texts:
            self._texts[sample] = texts
        return texts

    def centre_crops(self, samples: NDArray[np.int64], image_px: int) -> NDArray[np.uint8]:
        """(N,) samples -> (N, image_px, image_px, 3), as evaluation sees them."""
        return np.stack([centre_crop(self.image(int(sample)), image_px) for sample in samples])


class TrainLoader:
    """Training batches.

    Args:
        samples: the split.
        batch_size: of the global batch.
        rank, world_size: this process's part of it.
        num_draws: stochastic-depth numbers a sample.
        phrase_dropout: share of texts of which only some phrases are shown.

    Raises:
        ConfigError: the split has fewer images than one batch.
    """

    def __init__(
        self, samples: Samples, *, seed: int, batch_size: int, image_px: int, flip: bool, num_draws: int,
        phrase_dropout: float = 0.0, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        if samples.num_images < batch_size:
            raise ConfigError(
                f"batch_size {batch_size} is more than the {samples.num_images} training images: lower it, or keep more"
            )
        self._samples = samples
        self._seed, self._batch_size, self._image_px, self._flip = seed, batch_size, image_px, flip
        self._num_draws, self._phrase_dropout = num_draws, phrase_dropout
        share = batch_size // world_size
        self._part = slice(rank * share, (rank + 1) * share)
        self.steps_per_epoch = samples.num_images // batch_size
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        kept_epoch, order = self._order
        if kept_epoch != epoch:
            order = permutation(self._seed, epoch, self._samples.num_images)
            self._order = (epoch, order)
        positions = np.arange(within * self._batch_size, (within + 1) * self._batch_size, dtype=np.int64)[self._part]
        crop_draws = uniforms(self._seed, epoch, Purpose.CROP, positions, 3)
        text_draws = uniforms(self._seed, epoch, Purpose.TEXT, positions, 1)[:, 0]
        depth_draws = uniforms(self._seed, epoch, Purpose.DEPTH, positions, self._num_draws)
        phrase_draws = uniforms(self._seed, epoch, Purpose.PHRASES, positions, 2 + MAX_PHRASES)
        images, texts = [], []
        for row, sample in enumerate(order[positions]):
            image = self._samples.image(int(sample))
            images.append(random_crop(image, self._image_px, crop_draws[row], flip=self._flip))
            choices = self._samples.texts(int(sample))
            texts.append(
                some_phrases(choices[int(text_draws[row] * len(choices))], self._phrase_dropout, phrase_draws[row])
            )
        return Batch(to_pixels(np.stack(images)), texts, torch.from_numpy(depth_draws.astype(np.float32)))

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of steps `first_step` to `num_steps`, made ahead in a thread (decoding releases the GIL)."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            waiting: list[Future[Batch]] = []
            step = first_step
            while step < num_steps or waiting:
                while step < num_steps and len(waiting) < AHEAD:
                    waiting.append(pool.submit(self.batch, step))
                    step += 1
                yield waiting.pop(0).result()


def some_phrases(text: str, share: float, draws: NDArray[np.float64]) -> str:
    """With probability `share`, some of a text's phrases in random order; how many is drawn evenly from 1 to all.

    Args:
        text: any; phrases are what punctuation parts, so "dog face: animal, dog" has three.
        share: 0 leaves every text whole.
        draws: (2 + MAX_PHRASES,) uniform numbers in [0, 1); phrases beyond MAX_PHRASES fall off.
    """
    phrases = [phrase for part in PHRASE_ENDS.split(text) if (phrase := part.strip())][:MAX_PHRASES]
    if draws[0] >= share or not phrases:
        return text
    size = 1 + int(draws[1] * len(phrases))
    return ", ".join(phrases[index] for index in np.argsort(draws[2 : 2 + len(phrases)])[:size])


def split_index(shards: Path, manifest: Manifest, split: SplitName) -> SplitIndex:
    """The index of a split of `data/shards`.

    Raises:
        DataError: a shard that the manifest names is missing.
    """
    rows = manifest.splits[split].shards if split in manifest.splits else ()
    for row in rows:
        if not (shards / row.path).is_file():
            raise DataError(f"{shards / row.path}: named in the manifest but missing; run `align shard` again")
    return SplitIndex(
        shards=tuple(str((shards / row.path).resolve()) for row in rows), offsets=tuple(row.offsets for row in rows)
    )
