"""Some rows of each training batch, each a pure function of its step, prepared ahead in threads.

Some texts lose some of their phrases, some are put into a sentence; the paper has neither. Lists of tags are learned by
heart, and hold no articles; people search by a word or two, or by "a cat".
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.errors import ConfigError, CorruptError
from align.model.preprocess import random_crop
from align.statistics.randomness import Purpose, keyed_bits, uniforms
from align.training.batches.batch import Arrays, Augmentation, Memory, Rows, Sampling
from align.training.batches.order import MAX_REPLACEMENTS, BlockOrder, Mixture
from align.training.batches.reading import SampleLocation, Span
from align.training.batches.samples import SplitSamples

#: Batches prepared ahead of the step that needs them.
AHEAD = 2
#: The smallest number of samples that a thread takes at a time.
_SAMPLES_AT_ONCE = 8

#: Phrase dropout chooses among at most this many phrases; the paper's text tower reads 64 tokens.
MAX_PHRASES = 32

#: Separators of phrases: Latin and CJK punctuation and brackets.
PHRASE_ENDS = re.compile(r"[:,;.|/()\[\]\u2013\u2014\u3001\u3002\uff0c\uff1a\uff1b\uff08\uff09\u30fb]+")

#: Sentences around a text, as zero-shot prompts have them: articles alone, and with what a picture is called.
SENTENCES = (
    "a {}", "an {}", "the {}", "this is a {}", "a photo of a {}", "a picture of a {}", "a picture of the {}",
    "an image of {}", "a drawing of a {}", "an icon of a {}",
)  # fmt: skip


def in_sentence(text: str, share: float, draws: NDArray[np.float64]) -> str:
    """With probability `share`, a text within one of `SENTENCES`.

    Args:
        text: any.
        share: 0 keeps every text as it is.
        draws: (2,) uniform numbers in [0, 1), unused if `share` is 0.
    """
    if not share or draws[0] >= share:
        return text
    return SENTENCES[int(draws[1] * len(SENTENCES))].format(text)


def some_phrases(text: str, share: float, draws: NDArray[np.float64]) -> str:
    """With probability `share`, some of a text's phrases in random order; their number is uniform from 1 to all.

    Args:
        text: any; punctuation separates phrases, so "dog face: animal, dog" has three.
        share: 0 keeps every text whole.
        draws: (2 + MAX_PHRASES,) uniform numbers in [0, 1), unused if `share` is 0. Phrases beyond MAX_PHRASES are
            dropped.
    """
    if not share or draws[0] >= share:
        return text
    phrases = [phrase for part in PHRASE_ENDS.split(text) if (phrase := part.strip())][:MAX_PHRASES]
    if not phrases:
        return text
    size = 1 + int(draws[1] * len(phrases))
    return ", ".join(phrases[index] for index in np.argsort(draws[2 : 2 + len(phrases)])[:size])


@dataclass(frozen=True)
class _SourceRows:
    """The R rows that come from one source and one of its epochs.

    Attributes:
        rows: (R,) among those that are made.
        positions: (R,) in the epoch.
        locations: of the R samples.
    """

    source: int
    epoch: int
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    locations: list[SampleLocation]


class RowMaker:
    """Makes the same rows of every batch.

    Args:
        sources: splits with their weights; those of the first one are 1.
        sampling: which samples each batch holds.
        augmentation: what is drawn for each sample.
        part: the first of the global batch's rows that are made, and the first that is not.
        num_threads: that decode.
        report: takes the words of each sample that cannot be read and was replaced.

    Raises:
        ConfigError: a split has fewer images than its share of one batch.
    """

    def __init__(
        self, sources: Sequence[tuple[SplitSamples, float]], sampling: Sampling, augmentation: Augmentation,
        part: tuple[int, int], num_threads: int, report: Callable[[str], None],
    ) -> None:  # fmt: skip
        seed, batch_size = sampling.seed, sampling.batch_size
        self._sources = [samples for samples, _ in sources]
        self._mixture = Mixture(seed, [weight for _, weight in sources])
        self._batch_size, self._augmentation = batch_size, augmentation
        self._part, self._num_threads, self._report = part, num_threads, report
        # Each source has its own random numbers; the first one's are those of a run without extra sources.
        keys = keyed_bits(seed, 0, Purpose.MIXTURE, np.arange(len(self._sources), dtype=np.int64), 1)[
            :, 0
        ] >> np.uint64(33)
        self._seeds = [seed, *(int(key) for key in keys[1:])]
        self._orders, self._lengths = [], []
        for source, own_seed, share in zip(self._sources, self._seeds, self._mixture.shares, strict=True):
            if source.num_images < share * batch_size:
                raise ConfigError(
                    f"batch_size {batch_size} is more than the {source.num_images} training images: lower it, or keep "
                    "more" + f", or lower the weight of {source.index.manifest}" * (len(self._sources) > 1)
                )
            source.expect_block(sampling.shuffle_block)
            self._orders.append(BlockOrder(own_seed, source.index.counts, sampling.shuffle_block))
            self._lengths.append(source.num_images)
        if len(self._sources) == 1:
            self._lengths = [self._sources[0].num_images // batch_size * batch_size]
        self._of_thread = threading.local()

    def made(self, first_step: int, num_steps: int, memory: Memory) -> Generator[tuple[Arrays, Rows]]:
        """The rows of steps `first_step` to `num_steps`; AHEAD of them are in preparation.

        One thread plans what to read (offsets, the order of a new block), several read from the store, and several
        decode (which releases the GIL). A thread never waits for another one of its own pool.

        Args:
            first_step: counted from 0 over all epochs.
            num_steps: the first step that is not made.
            memory: is asked for each step's, in order.

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
                    waiting.append(plan.submit(self._begin, step, memory(step), read, decode))
                    step += 1
                yield waiting.popleft().result().finish()
        finally:
            for source in self._sources:
                source.tars.close()
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)

    def _rows(self, step: int) -> list[_SourceRows]:
        """The samples of this part of a batch."""
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

    def _begin(self, step: int, arrays: Arrays, read: ThreadPoolExecutor, decode: ThreadPoolExecutor) -> _Preparation:
        batch = _Preparation(arrays)
        for rows in self._rows(step):
            samples, seed = self._sources[rows.source], self._seeds[rows.source]
            draws = {
                purpose: uniforms(seed, rows.epoch, purpose, rows.positions, count)
                for purpose, count in (
                    (Purpose.CROP, 3),
                    (Purpose.CROP_SCALE, 0 if self._augmentation.crop_scale == (1, 1) else 1),
                    (Purpose.TEXT, 1),
                    (Purpose.DEPTH, self._augmentation.num_draws),
                    (Purpose.PHRASES, 2 + MAX_PHRASES if self._augmentation.phrase_dropout else 0),
                    (Purpose.SENTENCE, 2 if self._augmentation.sentence_share else 0),
                )
            }
            batch.arrays.draws[rows.rows] = draws[Purpose.DEPTH]
            sources: dict[int, tuple[Span, Future[bytes]]] = {}
            if samples.any_remote:
                for span in samples.spans(rows.locations):
                    reading = read.submit(samples.fetch, span)
                    sources |= dict.fromkeys(span.samples, (span, reading))
            # A few jobs per thread, so that all threads end together; a job costs as much as a tenth of a picture.
            chunk = max(_SAMPLES_AT_ONCE, len(rows.rows) // (4 * self._num_threads))
            for start in range(0, len(rows.rows), chunk):
                some = range(start, min(start + chunk, len(rows.rows)))
                batch.jobs.append(decode.submit(self._fill, batch, rows, draws, sources, some))
        return batch

    def _fill(
        self, batch: _Preparation, rows: _SourceRows, draws: dict[Purpose, NDArray[np.float64]],
        sources: dict[int, tuple[Span, Future[bytes]]], some: range,
    ) -> int:  # fmt: skip
        """Fills some rows of a batch; returns in how many another sample replaces an unreadable one."""
        num_quarantined, scratch, tokenizer = 0, self._scratch(), self._augmentation.tokenizer
        image_px, flip = self._augmentation.image_px, self._augmentation.flip
        low, high = self._augmentation.crop_scale
        sides_px = np.rint(image_px * (low + (high - low) * draws[Purpose.CROP_SCALE]))  # none, if all are image_px
        crops, choose, phrases = draws[Purpose.CROP], draws[Purpose.TEXT][:, 0], draws[Purpose.PHRASES]
        for index in some:
            row = int(rows.rows[index])
            source = sources.get(rows.locations[index].sample)
            image, texts, sample = self._load(rows, index, source, scratch)
            num_quarantined += sample != rows.locations[index].sample
            side_px = int(sides_px[index, 0]) if sides_px.size else image_px
            random_crop(image, batch.arrays.images[row], crops[index].tolist(), flip=flip, side_px=side_px)
            text = texts[int(choose[index] * len(texts))]
            text = some_phrases(text, self._augmentation.phrase_dropout, phrases[index])
            batch.texts[row] = in_sentence(text, self._augmentation.sentence_share, draws[Purpose.SENTENCE][index])
        if tokenizer is not None:
            done = rows.rows[some.start : some.stop].tolist()
            for row, ids in zip(done, tokenizer.ids([batch.texts[row] for row in done]), strict=True):
                batch.ids[row] = ids
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
            self._report(str(error))
        for attempt in range(1, MAX_REPLACEMENTS + 1):
            other = self._orders[rows.source].replacement(rows.epoch, int(rows.positions[index]), attempt)
            try:
                return (*samples.load(samples.location(other), scratch=scratch), other)
            except CorruptError as error:
                self._report(str(error))
        raise CorruptError(
            f"{samples.index.manifest}: {MAX_REPLACEMENTS} samples of one block cannot be read; run `align shard` again"
        )


class _Preparation:
    """Rows in preparation; each job writes its own."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays
        self.texts = [""] * len(arrays.images)
        self.ids: list[list[int]] = [[] for _ in self.texts]
        self.jobs: list[Future[int]] = []

    def finish(self) -> tuple[Arrays, Rows]:
        """Waits for all jobs. Raises what one of them raised."""
        wait(self.jobs, return_when=FIRST_EXCEPTION)  # not one by one: this thread would take the GIL each time
        return self.arrays, Rows(self.texts, self.ids, sum(job.result() for job in self.jobs))
