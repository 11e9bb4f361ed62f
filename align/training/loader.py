"""Training batches, each a pure function of its step, prepared ahead in threads.

Each epoch draws one of an image's texts; the last, incomplete batch of an epoch is dropped. A rank takes a contiguous
part of every batch, so the global batch is the same for any number of ranks and threads, and resuming needs no saved
state.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from align.console import say
from align.errors import ConfigError, CorruptError
from align.formats.stored_embeds import StoredEmbeds
from align.model.preprocess import random_crop
from align.randomness import Purpose, keyed_bits, uniforms
from align.training.batch import Augmentation, Batch, Sampling
from align.training.order import MAX_REPLACEMENTS, BlockOrder, Mixture
from align.training.phrases import MAX_PHRASES, some_phrases
from align.training.reading import SampleLocation, Span
from align.training.samples import SplitSamples

#: Batches prepared ahead of the step that needs them.
AHEAD = 2

#: The smallest number of samples that a thread takes at a time.
_CHUNK = 8


@dataclass(frozen=True)
class _SourceRows:
    """The R rows of a batch that come from one source and one of its epochs.

    Attributes:
        rows: (R,) in the batch.
        positions: (R,) in the epoch.
        locations: of the R samples.
    """

    source: int
    epoch: int
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    locations: list[SampleLocation]


class TrainLoader:
    """Training batches.

    Args:
        samples: the split.
        sampling: which samples each batch holds.
        augmentation: what is drawn for each sample.
        extra: more splits with their weights; the weight of `samples` is 1.
        rank, world_size: select this process's part of each batch.
        num_threads: threads that decode; None: as many as torch computes with here.

    Attributes:
        wait_s: seconds that `batches` has kept its caller waiting.
        num_quarantined: rows so far in which another sample replaced an unreadable one, on this rank since it started.

    Raises:
        ConfigError: a split has fewer images than its share of one batch.
    """

    def __init__(
        self, samples: SplitSamples, *, sampling: Sampling, augmentation: Augmentation,
        extra: Sequence[tuple[SplitSamples, float]] = (), rank: int = 0, world_size: int = 1,
        num_threads: int | None = None,
    ) -> None:  # fmt: skip
        seed, batch_size = sampling.seed, sampling.batch_size
        self._sources = [samples, *(more for more, _ in extra)]
        self._mixture = Mixture(seed, [1.0, *(weight for _, weight in extra)])
        self._batch_size, self._augmentation = batch_size, augmentation
        self._num_threads = num_threads or torch.get_num_threads()
        share = batch_size // world_size
        self._part = (rank * share, (rank + 1) * share)
        # Each source has its own random numbers; the first one's are those of a run without extra sources.
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
            source.expect_block(sampling.shuffle_block)
            self._orders.append(BlockOrder(own_seed, source.index.counts, sampling.shuffle_block))
            self._lengths.append(source.num_images)
        if len(self._sources) == 1:
            self._lengths = [samples.num_images // batch_size * batch_size]
        self.wait_s, self.num_quarantined = 0.0, 0
        self._lock, self._of_thread = threading.Lock(), threading.local()
        self._reported: set[str] = set()

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        return next(self.batches(step, step + 1))

    def batches(self, first_step: int, num_steps: int) -> Iterator[Batch]:
        """The batches of steps `first_step` to `num_steps`; AHEAD of them are in preparation.

        One thread plans what to read (offsets, the order of a new block), several read from the store, and several
        decode (which releases the GIL). A thread never waits for another one of its own pool.

        Raises:
            CorruptError: a sample cannot be read and `on_corrupt` is "stop", or no replacement can be read either.
            DataError: a tar is gone.
            ServiceError: the store was unavailable for longer than `patience_s`.
        """
        pools = [
            ThreadPoolExecutor(count, thread_name_prefix=f"loader-{name}")
            for name, count in (("plan", 1), ("read", max(source.tars.num_connections for source in self._sources)),
                                ("decode", self._num_threads))
        ]  # fmt: skip
        plan, read, decode = pools
        for source in self._sources:
            source.tars.reopen()
        waiting: deque[Future[_Preparation]] = deque()
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
                source.tars.close()
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)

    def _rows(self, step: int) -> list[_SourceRows]:
        """The samples of this rank's part of a batch."""
        positions = np.arange(self._part[0], self._part[1], dtype=np.int64) + step * self._batch_size
        sources, numbers = self._mixture.locate(positions)
        lengths = np.asarray(self._lengths, dtype=np.int64)[sources]
        epochs, positions = numbers // lengths, numbers % lengths
        of_sources = []
        for source, epoch in np.unique(np.stack([sources, epochs]), axis=1).T.tolist():
            rows = np.flatnonzero((sources == source) & (epochs == epoch))
            samples = self._orders[source].samples(epoch, positions[rows])
            locations = self._sources[source].locations(samples)
            of_sources.append(_SourceRows(source, epoch, rows, positions[rows], locations))
        return of_sources

    def _begin(self, step: int, read: ThreadPoolExecutor, decode: ThreadPoolExecutor) -> _Preparation:
        size = self._part[1] - self._part[0]
        batch = _Preparation(size, self._augmentation, self._sources[0].teacher)
        for rows in self._rows(step):
            samples, seed = self._sources[rows.source], self._seeds[rows.source]
            draws = {
                purpose: uniforms(seed, rows.epoch, purpose, rows.positions, count)
                for purpose, count in (
                    (Purpose.CROP, 3),
                    (Purpose.TEXT, 1),
                    (Purpose.DEPTH, self._augmentation.num_draws),
                    (Purpose.PHRASES, 2 + MAX_PHRASES if self._augmentation.phrase_dropout else 0),
                )
            }
            batch.draws[rows.rows] = draws[Purpose.DEPTH]
            sources: dict[int, tuple[Span, Future[bytes]]] = {}
            if samples.any_remote:
                for span in samples.spans(rows.locations):
                    reading = read.submit(samples.fetch, span)
                    sources |= dict.fromkeys(span.samples, (span, reading))
            # A few jobs per thread, so that all threads end together; a job costs as much as a tenth of a picture.
            chunk = max(_CHUNK, len(rows.rows) // (4 * self._num_threads))
            for start in range(0, len(rows.rows), chunk):
                some = range(start, min(start + chunk, len(rows.rows)))
                batch.jobs.append(decode.submit(self._fill, batch, rows, draws, sources, some))
        return batch

    def _fill(
        self, batch: _Preparation, rows: _SourceRows, draws: dict[Purpose, NDArray[np.float64]],
        sources: dict[int, tuple[Span, Future[bytes]]], some: range,
    ) -> int:  # fmt: skip
        """Fills some rows of a batch; returns in how many another sample replaces an unreadable one."""
        num_quarantined, scratch = 0, self._scratch()
        crops, choose, phrases = draws[Purpose.CROP], draws[Purpose.TEXT][:, 0], draws[Purpose.PHRASES]
        for index in some:
            row = int(rows.rows[index])
            source = sources.get(rows.locations[index].sample)
            image, texts, sample = self._load(rows, index, source, scratch)
            num_quarantined += sample != rows.locations[index].sample
            random_crop(image, batch.images[row], crops[index].tolist(), flip=self._augmentation.flip)
            chosen = int(choose[index] * len(texts))
            batch.texts[row] = some_phrases(texts[chosen], self._augmentation.phrase_dropout, phrases[index])
            if batch.teacher is not None and (teacher := self._sources[rows.source].teacher):
                teacher.read(sample, chosen, batch.teacher[row])
        return num_quarantined

    def _scratch(self) -> NDArray[np.uint8]:
        """This thread's memory to decode into, four times as large as an image of `resize_px`."""
        if not hasattr(self._of_thread, "scratch"):
            largest_px = max(source.resize_px for source in self._sources)
            self._of_thread.scratch = np.empty(12 * largest_px**2, dtype=np.uint8)
        scratch: NDArray[np.uint8] = self._of_thread.scratch
        return scratch

    def _load(
        self, rows: _SourceRows, index: int, source: tuple[Span, Future[bytes]] | None, scratch: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], list[str], int]:
        """The image, the texts and the number of a sample: the one of this row, or the one that replaces it."""
        samples, location = self._sources[rows.source], rows.locations[index]
        data, begin = (source[1].result(), source[0].begin) if source else (None, 0)
        try:
            return (*samples.load(location, data, begin, scratch), location.sample)
        except CorruptError as error:
            if samples.on_corrupt == "stop":
                raise
            self._report(error)
        for attempt in range(1, MAX_REPLACEMENTS + 1):
            other = self._orders[rows.source].replacement(rows.epoch, int(rows.positions[index]), attempt)
            try:
                return (*samples.load(samples.location(other), scratch=scratch), other)
            except CorruptError as error:
                self._report(error)
        raise CorruptError(
            f"{samples.index.manifest}: {MAX_REPLACEMENTS} samples of one block cannot be read; run `align shard` again"
        )

    def _report(self, error: CorruptError) -> None:
        """Reports, once per tar, that it has samples which cannot be read."""
        tar = str(error).partition(": sample ")[0]
        with self._lock:
            known = tar in self._reported
            self._reported.add(tar)
        if not known:
            say(f"quarantined; other samples replace those of this tar that cannot be read: {error}")


class _Preparation:
    """A batch in preparation; each job writes its own rows."""

    def __init__(self, size: int, augmentation: Augmentation, teacher: StoredEmbeds | None) -> None:
        side = augmentation.image_px
        self.images: NDArray[np.uint8] = np.empty((size, side, side, 3), dtype=np.uint8)
        self.draws: NDArray[np.float32] = np.empty((size, augmentation.num_draws), dtype=np.float32)
        self.texts = [""] * size
        self.teacher = np.empty((size, 2, teacher.manifest.width), dtype=np.float16) if teacher else None
        self.jobs: list[Future[int]] = []

    def finish(self) -> Batch:
        """Waits for all jobs. Raises what one of them raised."""
        wait(self.jobs, return_when=FIRST_EXCEPTION)  # not one by one: this thread would take the GIL each time
        num_quarantined = sum(job.result() for job in self.jobs)
        return Batch(
            torch.from_numpy(self.images), self.texts, torch.from_numpy(self.draws), num_quarantined,
            None if self.teacher is None else torch.from_numpy(self.teacher),
        )  # fmt: skip
