"""Training batches, each a pure function of its step, made ahead in threads.

One of an image's texts is drawn per epoch; the last, incomplete batch of an epoch is dropped. A rank takes a contiguous
part of every batch, so batches are equal on all ranks at any world size and number of
threads, and nothing has to be saved to go on.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.console import say
from align.errors import ConfigError, CorruptError
from align.model.preprocess import random_crop, to_pixels
from align.training.order import MAX_STAND_INS, BlockOrder, Mixture
from align.training.randomness import Purpose, keyed_bits, uniforms
from align.training.reading import Place, Span
from align.training.samples import Samples

#: Phrase dropout chooses among so many phrases; the text tower of the paper reads 64 tokens.
MAX_PHRASES = 32

#: What parts phrases: Latin and CJK punctuation and brackets.
PHRASE_ENDS = re.compile(r"[:,;.|/()\[\]\u2013\u2014\u3001\u3002\uff0c\uff1a\uff1b\uff08\uff09\u30fb]+")

#: Batches made ahead of the step that needs them.
AHEAD = 2

#: Samples that a thread takes at a time, at least.
_CHUNK = 8


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch.

    Attributes:
        images: (B, H, W, 3) uint8: a quarter of the bytes to keep ahead and to bring to a GPU.
        texts: B texts, row i of image i.
        draws: (B, num_blocks) float32, stochastic depth's numbers.
        num_quarantined: rows in which another sample stands in for one that cannot be read.
    """

    images: Tensor
    texts: list[str]
    draws: Tensor
    num_quarantined: int = 0

    @property
    def pixels(self) -> Tensor:
        """(B, 3, H, W) float32 in [-1, 1]."""
        return to_pixels(self.images)


@dataclass(frozen=True)
class _Rows:
    """Rows of a batch that are of one source and one of its epochs.

    Attributes:
        rows: (R,) in the batch.
        positions: (R,) in the epoch.
        places: R of them.
    """

    source: int
    epoch: int
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    places: list[Place]


class TrainLoader:
    """Training batches.

    Args:
        samples: the split.
        batch_size: of the global batch.
        rank, world_size: this process's part of it.
        num_draws: stochastic-depth numbers a sample.
        shuffle_block: images that are shuffled together, see `align.training.order`.
        extra: more splits with their weights, that of `samples` being 1.
        phrase_dropout: share of texts of which only some phrases are shown.
        num_threads: that decode; None takes as many as torch computes with here.

    Attributes:
        wait_s: seconds that `batches` has kept its caller waiting.
        num_quarantined: rows so far in which another sample stood in, of this rank since it was started.

    Raises:
        ConfigError: a split has fewer images than its share of one batch.
    """

    def __init__(
        self, samples: Samples, *, seed: int, batch_size: int, image_px: int, flip: bool, num_draws: int,
        shuffle_block: int, extra: Sequence[tuple[Samples, float]] = (), phrase_dropout: float = 0.0, rank: int = 0,
        world_size: int = 1, num_threads: int | None = None,
    ) -> None:  # fmt: skip
        self._sources = [samples, *(more for more, _ in extra)]
        self._mixture = Mixture(seed, [1.0, *(weight for _, weight in extra)])
        self._batch_size, self._image_px, self._flip = batch_size, image_px, flip
        self._num_draws, self._phrase_dropout = num_draws, phrase_dropout
        self._num_threads = num_threads or torch.get_num_threads()
        share = batch_size // world_size
        self._part = (rank * share, (rank + 1) * share)
        # Every source has random numbers of its own; the first those of a run without others.
        keys = keyed_bits(seed, 0, Purpose.MIXTURE, np.arange(len(self._sources), dtype=np.int64), 1)[
            :, 0
        ] >> np.uint64(33)
        self._seeds = [seed, *(int(key) for key in keys[1:])]
        self._orders, self._lengths = [], []
        for source, own_seed, part in zip(self._sources, self._seeds, self._mixture.shares, strict=True):
            if source.num_images < part * batch_size:
                raise ConfigError(
                    f"batch_size {batch_size} is more than the {source.num_images} training images: lower it, or keep "
                    "more" + f", or lower the weight of {source.index.manifest}" * (len(self._sources) > 1)
                )
            source.expect_block(shuffle_block)
            self._orders.append(BlockOrder(own_seed, source.index.counts, shuffle_block))
            self._lengths.append(source.num_images)
        self.steps_per_epoch = samples.num_images // batch_size
        if len(self._sources) == 1:
            self._lengths = [self.steps_per_epoch * batch_size]
        self.wait_s, self.num_quarantined = 0.0, 0
        self._lock, self._of_thread = threading.Lock(), threading.local()
        self._named: set[str] = set()

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        return next(self.batches(step, step + 1))

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of steps `first_step` to `num_steps`, AHEAD of them in the making.

        One thread says what is to be read (offsets, the order of a new block), some read from the store, some decode
        (which releases the GIL). Those of one kind never wait for their own kind.

        Raises:
            CorruptError: a sample cannot be read, and `on_corrupt` is "stop"; or none of its block can.
            DataError: a tar is gone.
            ServiceError: the store was away for longer than its patience.
        """
        pools = [
            ThreadPoolExecutor(count, thread_name_prefix=f"loader-{name}")
            for name, count in (("plan", 1), ("read", max(s.bytes.num_connections for s in self._sources)),
                                ("decode", self._num_threads))
        ]  # fmt: skip
        plan, read, decode = pools
        for source in self._sources:
            source.bytes.reopen()
        waiting: deque[Future[_Making]] = deque()
        step = first_step
        try:
            while step < num_steps or waiting:
                while step < num_steps and len(waiting) < AHEAD:
                    waiting.append(plan.submit(self._begin, step, read, decode))
                    step += 1
                start = time.monotonic()
                batch = waiting.popleft().result().finish()
                self.wait_s += time.monotonic() - start
                self.num_quarantined += batch.num_quarantined
                yield batch
        finally:
            for source in self._sources:
                source.bytes.close()
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)

    def _rows(self, step: int) -> list[_Rows]:
        """What this rank's part of a batch shows."""
        positions = np.arange(self._part[0], self._part[1], dtype=np.int64) + step * self._batch_size
        sources, numbers = self._mixture.locate(positions)
        lengths = np.asarray(self._lengths, dtype=np.int64)[sources]
        epochs, positions = numbers // lengths, numbers % lengths
        found = []
        for source, epoch in np.unique(np.stack([sources, epochs]), axis=1).T.tolist():
            rows = np.flatnonzero((sources == source) & (epochs == epoch))
            samples = self._orders[source].samples(epoch, positions[rows])
            found.append(_Rows(source, epoch, rows, positions[rows], self._sources[source].places(samples)))
        return found

    def _begin(self, step: int, read: ThreadPoolExecutor, decode: ThreadPoolExecutor) -> _Making:
        size = self._part[1] - self._part[0]
        making = _Making(size, self._image_px, self._num_draws)
        for rows in self._rows(step):
            samples, seed = self._sources[rows.source], self._seeds[rows.source]
            draws = {
                purpose: uniforms(seed, rows.epoch, purpose, rows.positions, count)
                for purpose, count in (
                    (Purpose.CROP, 3), (Purpose.TEXT, 1), (Purpose.DEPTH, self._num_draws),
                    (Purpose.PHRASES, 2 + MAX_PHRASES if self._phrase_dropout else 0),
                )
            }  # fmt: skip
            making.draws[rows.rows] = draws[Purpose.DEPTH]
            sources: dict[int, tuple[Span, Future[bytes]]] = {}
            if samples.any_remote:
                for span in samples.spans(rows.places):
                    reading = read.submit(samples.fetch, span)
                    sources |= dict.fromkeys(span.samples, (span, reading))
            # A few jobs a thread, so that all end together; each costs as much as a tenth of a picture.
            chunk = max(_CHUNK, len(rows.rows) // (4 * self._num_threads))
            for start in range(0, len(rows.rows), chunk):
                some = range(start, min(start + chunk, len(rows.rows)))
                making.parts.append(decode.submit(self._fill, making, rows, draws, sources, some))
        return making

    def _fill(
        self, making: _Making, rows: _Rows, draws: dict[Purpose, NDArray[np.float64]],
        sources: dict[int, tuple[Span, Future[bytes]]], some: range,
    ) -> int:  # fmt: skip
        """Some rows of a batch; returns in how many another sample stands in."""
        num_quarantined, scratch = 0, self._scratch()
        crops, choose, phrases = draws[Purpose.CROP], draws[Purpose.TEXT][:, 0], draws[Purpose.PHRASES]
        for index in some:
            row = int(rows.rows[index])
            image, choices, stands_in = self._load(rows, index, sources.get(rows.places[index].sample), scratch)
            num_quarantined += stands_in
            random_crop(image, making.images[row], crops[index].tolist(), flip=self._flip)
            text = choices[int(choose[index] * len(choices))]
            making.texts[row] = some_phrases(text, self._phrase_dropout, phrases[index])
        return num_quarantined

    def _scratch(self) -> NDArray[np.uint8]:
        """This thread's memory to decode into: for a shard's images, or for larger ones that are resized."""
        if not hasattr(self._of_thread, "scratch"):
            self._of_thread.scratch = np.empty(12 * max(s.resize_px for s in self._sources) ** 2, dtype=np.uint8)
        scratch: NDArray[np.uint8] = self._of_thread.scratch
        return scratch

    def _load(
        self, rows: _Rows, index: int, source: tuple[Span, Future[bytes]] | None, scratch: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], list[str], bool]:
        samples, place = self._sources[rows.source], rows.places[index]
        data, begin = (source[1].result(), source[0].begin) if source else (None, 0)
        try:
            return (*samples.load(place, data, begin, scratch), False)
        except CorruptError as error:
            if samples.on_corrupt == "stop":
                raise
            self._name(error)
        for attempt in range(1, MAX_STAND_INS + 1):
            other = self._orders[rows.source].stand_in(rows.epoch, int(rows.positions[index]), attempt)
            try:
                return (*samples.load(samples.place(other), scratch=scratch), True)
            except CorruptError as error:
                self._name(error)
        raise CorruptError(
            f"{samples.index.manifest}: {MAX_STAND_INS} samples of one block cannot be read; run `align shard` again"
        )

    def _name(self, error: CorruptError) -> None:
        """Says once of a tar that it has samples which cannot be read."""
        tar = str(error).partition(": sample ")[0]
        with self._lock:
            known = tar in self._named
            self._named.add(tar)
        if not known:
            say(f"quarantined, others stand in for what cannot be read of it: {error}")


class _Making:
    """A batch that is being made; its parts write into rows of their own."""

    def __init__(self, size: int, image_px: int, num_draws: int) -> None:
        self.images: NDArray[np.uint8] = np.empty((size, image_px, image_px, 3), dtype=np.uint8)
        self.draws: NDArray[np.float32] = np.empty((size, num_draws), dtype=np.float32)
        self.texts = [""] * size
        self.parts: list[Future[int]] = []

    def finish(self) -> Batch:
        """Waits for all parts. Raises what one of them raised."""
        wait(self.parts, return_when=FIRST_EXCEPTION)  # not one by one: each time this thread would take the GIL
        num_quarantined = sum(part.result() for part in self.parts)
        return Batch(torch.from_numpy(self.images), self.texts, torch.from_numpy(self.draws), num_quarantined)


def some_phrases(text: str, share: float, draws: NDArray[np.float64]) -> str:
    """With probability `share`, some of a text's phrases in random order; how many is drawn evenly from 1 to all.

    Args:
        text: any; phrases are what punctuation parts, so "dog face: animal, dog" has three.
        share: 0 leaves every text whole.
        draws: (2 + MAX_PHRASES,) uniform numbers in [0, 1), which a share of 0 does not look at; phrases beyond
            MAX_PHRASES fall off.
    """
    if not share or draws[0] >= share:
        return text
    phrases = [phrase for part in PHRASE_ENDS.split(text) if (phrase := part.strip())][:MAX_PHRASES]
    if not phrases:
        return text
    size = 1 + int(draws[1] * len(phrases))
    return ", ".join(phrases[index] for index in np.argsort(draws[2 : 2 + len(phrases)])[:size])
