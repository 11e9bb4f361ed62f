"""Training batches, each a pure function of its step, prepared ahead in threads.

Each epoch draws one of an image's texts; the last, incomplete batch of an epoch is dropped. A rank takes a contiguous
part of every batch, so the global batch is the same for any number of ranks and threads. One thread plans what to read
(offsets, the order of a new block), several read from the object store, and several decode, crop and tokenise, mostly
without the GIL. A thread never waits for another one of its own pool.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from align.display.console import say
from align.errors import ConfigError, CorruptError
from align.statistics.randomness import Purpose, keyed_bits
from align.training.batches.alike import Alike, AlikeOrder
from align.training.batches.augmentation import Augmentation, Draws
from align.training.batches.balance import BalancedOrder
from align.training.batches.batch import Batch, Tokens
from align.training.batches.order import MAX_REPLACEMENTS, SHUFFLE_BLOCK, BlockOrder, Mixture
from align.training.batches.samples import SplitSamples

#: Batches prepared ahead of the step that needs them.
AHEAD = 2
#: The smallest number of samples that a thread takes at a time.
_SAMPLES_AT_ONCE = 8


@dataclass(frozen=True)
class _Source:
    """A split with random numbers, an order and epochs of its own."""

    samples: SplitSamples
    seed: int
    order: BlockOrder | BalancedOrder
    epoch_images: int


@dataclass(frozen=True)
class _Part:
    """R rows of a batch that come from one epoch of one source, and (R,) their positions there.

    `rows` are of the rank's share, `samples` their numbers in the source, some of which `reads` gets from the store.
    """

    source: _Source
    epoch: int
    rows: list[int]
    samples: list[int]
    reads: dict[int, Future[bytes]]
    positions: NDArray[np.int64]
    draws: Draws


class _Unfinished:
    """A batch of N rows. Each job fills some of them, and returns how many of those hold a replacement."""

    def __init__(self, num_rows: int, augmentation: Augmentation, *, pin: bool) -> None:
        side_px = augmentation.image_px
        self.images = torch.empty((num_rows, side_px, side_px, 3), dtype=torch.uint8, pin_memory=pin)
        self.draws = torch.empty((num_rows, augmentation.num_draws), dtype=torch.float32, pin_memory=pin)
        self.texts, self.drawn = [""] * num_rows, [""] * num_rows
        self.numbers = torch.empty(num_rows, dtype=torch.int64)
        self.ids: list[list[int]] = [[]] * num_rows
        self.jobs: list[Future[int]] = []
        self._pad_id, self._pin = augmentation.tokenizer.pad_id, pin

    def finished(self) -> Batch:
        """Waits for all jobs. Raises what one of them raised."""
        wait(self.jobs, return_when=FIRST_EXCEPTION)  # not one by one: this thread would take the GIL each time
        num_quarantined = sum(job.result() for job in self.jobs)
        tokens = Tokens.of(self.ids, self._pad_id, pin=self._pin)
        return Batch(self.images, self.texts, self.draws, tokens, num_quarantined, self.drawn, self.numbers)


class TrainLoader:
    """Prepares one rank's part of each global batch, from splits with their weights.

    With `pin` batches lie in page-locked memory, from which a GPU copies while the host works; `alike`, of one split
    alone, makes batches of groups. Raises ConfigError: a split has fewer images than its share of one batch, or too
    many for its `text_balance`.

    Attributes:
        wait_s: seconds that `batches` has kept its caller waiting.
        num_quarantined: rows so far in which another sample replaced an unreadable one, on this rank since it started.
    """

    def __init__(  # noqa: PLR0913  # an experiment
        self, sources: Sequence[tuple[SplitSamples, float]], augmentation: Augmentation, *, seed: int, batch_size: int,
        rank: int = 0, world_size: int = 1, pin: bool = False, alike: Alike | None = None,
    ) -> None:  # fmt: skip
        self._batch_size, self._augmentation, self._pin = batch_size, augmentation, pin
        share = batch_size // world_size
        self._share = np.arange(rank * share, (rank + 1) * share, dtype=np.int64)
        self._num_threads = torch.get_num_threads()
        self._mixture = Mixture(seed, [weight for _, weight in sources])
        self._sources = _sources([samples for samples, _ in sources], self._mixture.shares, seed, batch_size, alike)
        self.wait_s, self.num_quarantined = 0.0, 0
        self._reported: dict[str, CorruptError] = {}

    def batches(self, first_step: int, num_steps: int) -> Generator[Batch]:
        """The batches of steps `first_step` to `num_steps`, counted from 0 over all epochs; AHEAD are in preparation.

        Raises:
            CorruptError: a sample cannot be read and `on_corrupt` is "stop", or no replacement can be read either.
            DataError: a tar is gone.
            ServiceError: the store was unavailable for longer than `patience_s`.
        """
        tars = [source.samples.tars for source in self._sources]
        sizes = {"plan": 1, "read": max(each.num_connections for each in tars), "decode": self._num_threads}
        plan, read, decode = pools = [ThreadPoolExecutor(size, f"loader-{name}") for name, size in sizes.items()]
        for each in tars:
            each.closed.clear()
        steps, waiting = iter(range(first_step, num_steps)), deque[Future[_Unfinished]]()
        try:
            while True:
                for step in islice(steps, AHEAD - len(waiting)):
                    batch = _Unfinished(len(self._share), self._augmentation, pin=self._pin)
                    waiting.append(plan.submit(self._begin, batch, step, read, decode))
                if not waiting:
                    return
                start = time.monotonic()
                made = waiting.popleft().result().finished()
                self.wait_s += time.monotonic() - start
                self.num_quarantined += made.num_quarantined
                yield made
        finally:
            for each in tars:
                each.closed.set()
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)

    def _begin(
        self, batch: _Unfinished, step: int, read: ThreadPoolExecutor, decode: ThreadPoolExecutor
    ) -> _Unfinished:
        for part in self._parts(step, read):
            batch.draws.numpy()[part.rows] = part.draws[Purpose.DEPTH]
            # A few jobs per thread, so that all threads end together; a job costs as much as a tenth of a picture.
            size = max(_SAMPLES_AT_ONCE, len(part.rows) // (4 * self._num_threads))
            for start in range(0, len(part.rows), size):
                some = range(start, min(start + size, len(part.rows)))
                batch.jobs.append(decode.submit(self._fill, batch, part, some))
        return batch

    def _parts(self, step: int, read: ThreadPoolExecutor) -> Iterator[_Part]:
        """The samples of the rank's share of a batch; begins to read those that are in the object store."""
        sources, numbers = self._mixture.locate(self._share + step * self._batch_size)
        sizes = np.array([source.epoch_images for source in self._sources], dtype=np.int64)[sources]
        epochs, positions = numbers // sizes, numbers % sizes
        for number, epoch in np.unique(np.stack([sources, epochs]), axis=1).T.tolist():
            rows, source = np.flatnonzero((sources == number) & (epochs == epoch)), self._sources[number]
            samples = source.order.samples(epoch, positions[rows]).tolist()
            reads = {each: read.submit(source.samples.read, each) for each in samples if source.samples.waits(each)}
            draws = self._augmentation.draw(source.seed, epoch, positions[rows])
            yield _Part(source, epoch, rows.tolist(), samples, reads, positions[rows], draws)

    def _fill(self, batch: _Unfinished, part: _Part, some: range) -> int:
        """Fills some rows of a batch; returns in how many another sample replaces an unreadable one."""
        images, numbers, num_replaced = batch.images.numpy(), batch.numbers.numpy(), 0
        scratch = np.empty(12 * part.source.samples.resize_px**2, dtype=np.uint8)  # pixels of twice the side
        rows = part.rows[some.start : some.stop]
        for index, row in zip(some, rows, strict=True):
            image, texts, numbers[row] = self._load(part, index, scratch)
            num_replaced += int(numbers[row] != part.samples[index])
            self._augmentation.crop(image, images[row], part.draws, index)
            batch.drawn[row] = self._augmentation.drawn(texts, part.draws, index)
            batch.texts[row] = self._augmentation.text(texts, part.draws, index)
        for row, ids in zip(rows, self._augmentation.tokenizer.ids([batch.texts[row] for row in rows]), strict=True):
            batch.ids[row] = ids
        return num_replaced

    def _load(self, part: _Part, index: int, scratch: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], list[str], int]:
        """The image and the texts of a sample, or of one that replaces it; and which sample it is."""
        samples, sample = part.source.samples, part.samples[index]
        data = part.reads[sample].result() if sample in part.reads else None
        try:
            return *samples.load(sample, data, scratch), sample
        except CorruptError as error:
            if samples.on_corrupt == "stop":
                raise
            self._report(error)
        for other in part.source.order.replacements(part.epoch, int(part.positions[index])).tolist():
            try:
                return *samples.load(other, scratch=scratch), other
            except CorruptError as error:
                self._report(error)
        raise CorruptError(
            f"{samples.index.manifest}: {MAX_REPLACEMENTS} samples of one block cannot be read; run `align shard` again"
        )

    def _report(self, error: CorruptError) -> None:
        """Reports, once per tar, that it has samples which cannot be read."""
        if self._reported.setdefault(str(error).partition(": sample ")[0], error) is error:
            say(f"quarantined; other samples replace those of this tar that cannot be read: {error}")


def _sources(
    splits: Sequence[SplitSamples], shares: NDArray[np.float64], seed: int, batch_size: int, alike: Alike | None
) -> list[_Source]:
    # Each source has its own random numbers; the first one's are those of a run without others.
    bits = keyed_bits(seed, 0, Purpose.MIXTURE, np.arange(len(splits), dtype=np.int64), 1)[:, 0] >> np.uint64(33)
    sources = []
    for samples, own, share in zip(splits, [seed, *bits[1:].tolist()], shares, strict=True):
        if samples.num_images < share * batch_size:
            raise ConfigError(
                f"batch_size {batch_size} is more than the {samples.num_images} training images: lower it, or keep "
                "more" + (f", or lower the weight of {samples.index.manifest}" if len(splits) > 1 else "")
            )
        # Where several are mixed, no batch ends with an epoch, so none is incomplete.
        whole = samples.num_images // batch_size * batch_size if len(splits) == 1 else samples.num_images
        if alike is not None:
            order: BlockOrder | AlikeOrder | BalancedOrder = AlikeOrder.of(own, samples, batch_size, alike)
        elif samples.text_balance is not None:
            order = BalancedOrder.of(own, samples, samples.text_balance)
        else:
            order = BlockOrder(own, samples.index.counts, SHUFFLE_BLOCK)
        sources.append(_Source(samples, own, order, whole))
    return sources
