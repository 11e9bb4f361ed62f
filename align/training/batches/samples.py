"""Random access to the images and texts of a split.

Each sample is judged by its own bytes: cut off, not an image, or no texts. So all ranks, and a resumed run, judge
alike. Dropping a whole tar at its first fault, or after a checksum in the background, would make the samples shown
depend on timing. Whole tars are compared with their sha256 by the gate before training (`align validate_shards`), and
by the store when it copies one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from align.durable.processes import in_threads
from align.errors import CorruptError, DataError
from align.formats.sample_texts import texts_in
from align.interfaces.store import Tars
from align.model.preprocess import centre_crop, decode
from align.training.batches.index import Offsets, SplitIndex
from align.training.batches.reading import SampleLocation, Span, TarBytes, is_remote, joined

#: The decoded images of a split are kept in memory if they all fit into this many bytes.
CACHE_BYTES = 2**30

#: Threads that read samples which are all asked for at once; a request of a store takes as long as decoding some.
_READERS = 8

#: The offsets of this many samples are kept, unless `expect_block` asks for more.
_OFFSETS_KEPT = 1 << 20

OnCorrupt = Literal["stop", "quarantine"]


class SplitSamples:
    """Random access to a split; thread-safe.

    Args:
        index: where the samples are stored.
        resize_px: side of the images.
        store: the object store, if some of the tars are only there.
        patience_s: how long reads are retried while the store is unavailable.
        on_corrupt: "quarantine" replaces samples that cannot be read by others.
        cache_bytes: decoded images are kept if they all fit.

    Attributes:
        tars: reads the bytes.
        any_remote: whether some tars are read from the store.
    """

    def __init__(
        self, index: SplitIndex, resize_px: int, store: Tars | None = None, *, patience_s: float = 0.0,
        on_corrupt: OnCorrupt = "stop", cache_bytes: int = CACHE_BYTES,
    ) -> None:  # fmt: skip
        opens = partial(SplitSamples, index, resize_px, store, patience_s=patience_s, on_corrupt=on_corrupt)
        self._elsewhere = partial(_opened, opens, cache_bytes)
        self.index = index
        self.on_corrupt = on_corrupt
        self.num_images = index.num_images
        self.any_remote = any(is_remote(uri) for uri in index.shards)
        self.tars = TarBytes(store, patience_s)
        self.resize_px = resize_px
        self._offsets = Offsets(index, _OFFSETS_KEPT)
        fits = self.num_images * resize_px * resize_px * 3 <= cache_bytes
        shape = (self.num_images if fits else 0, resize_px, resize_px, 3)
        self._images: NDArray[np.uint8] = np.empty(shape, dtype=np.uint8)
        self._texts: list[list[str] | None] = [None] * (self.num_images if fits else 0)
        self._cached = np.zeros(len(self._images), dtype=bool)

    def elsewhere(self, number: int) -> Callable[[], SplitSamples]:
        """A picklable function that opens the same split in each of several processes.

        They share the memory for decoded images, and the connections to the store, evenly.
        """
        return partial(self._elsewhere, number=number)

    def expect_block(self, block: int) -> None:
        """Announces that reads jump about within blocks of this many samples: two blocks' offsets are kept."""
        self._offsets.num_kept = max(_OFFSETS_KEPT, 2 * block)

    def locations(self, samples: NDArray[np.int64]) -> list[SampleLocation]:
        """(B,) numbers of samples -> where each is stored, in the same order."""
        shards = np.searchsorted(self.index.starts, samples, side="right") - 1
        rows = np.empty((len(samples), 6), dtype=np.int64)
        rows[:, 0], rows[:, 1] = samples, shards
        for shard in np.unique(shards):
            in_shard = shards == shard
            rows[in_shard, 2:] = self._offsets.of(int(shard))[samples[in_shard] - self.index.starts[shard]]
        return [SampleLocation(*row) for row in rows.tolist()]

    def location(self, sample: int) -> SampleLocation:
        """Where one sample is stored."""
        return self.locations(np.array([sample], dtype=np.int64))[0]

    def spans(self, locations: list[SampleLocation]) -> list[Span]:
        """The reads of the object store that these samples need, without those in memory or in files.

        A request takes as long as reading 100 KB, so neighbours share one; a positioned read of a file costs almost
        nothing.
        """
        cached = self._cached
        return joined(
            location.span() for location in locations
            if is_remote(self.index.shards[location.shard]) and not (len(cached) and cached[location.sample])
        )  # fmt: skip

    def fetch(self, span: Span) -> bytes:
        """Reads a span. Raises DataError if there is no such tar, ServiceError if the store stays unavailable."""
        return self.tars.read(self.index.shards[span.shard], span.begin, span.end)

    def load(
        self,
        location: SampleLocation,
        data: bytes | None = None,
        begin: int = 0,
        scratch: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[np.uint8], list[str]]:
        """An image and all its kept texts.

        Args:
            location: of the sample.
            data: bytes of the tar that contain it; None reads them, unless the sample is in memory.
            begin: offset of `data` in the tar.
            scratch: memory to decode into, see `align.model.preprocess.decode`.

        Returns:
            (resize_px, resize_px, 3) uint8 RGB, read-only, possibly a view of `scratch`; and at least one text.

        Raises:
            CorruptError: the sample cannot be read; the message names the tar.
        """
        sample = location.sample
        known = self._texts[sample] if len(self._cached) and self._cached[sample] else None
        if known is not None:
            cached: NDArray[np.uint8] = self._images[sample]
            return cached, known
        if data is None:
            span = location.span()
            data, begin = self.fetch(span), span.begin
        try:
            image = decode(_file_in(data, location.jpg - begin, location.jpg_bytes), self.resize_px, scratch)
            file = _file_in(data, location.json - begin, location.json_bytes)
            texts = _texts(file, self.index)
            if self.index.cut and sample == self.num_images - 1:
                texts = texts[: self.index.cut[1]]
        except DataError as error:
            tar, number = self.index.shards[location.shard], sample - int(self.index.starts[location.shard])
            remedy = "" if self.index.given else "; run `align shard` again"
            raise CorruptError(f"{tar}: sample {number}: {error}{remedy}") from None
        if len(self._cached):
            self._images[sample] = image
            self._texts[sample] = texts
            self._cached[sample] = True  # last: another thread may check it
        return image, texts

    def image(self, sample: int) -> NDArray[np.uint8]:
        """(resize_px, resize_px, 3) of one sample, see `load`."""
        return self.load(self.location(sample))[0]

    def texts(self, sample: int) -> list[str]:
        """The texts of one sample, see `load`."""
        return self.load(self.location(sample))[1]

    def texts_of(self, samples: NDArray[np.int64]) -> Iterator[list[str]]:
        """The texts of each of (N,) samples, read by several threads."""
        return in_threads(self.texts, samples.tolist(), _READERS)

    def centre_crops(self, samples: NDArray[np.int64], image_px: int) -> Iterator[NDArray[np.uint8]]:
        """(image_px, image_px, 3) of each of (N,) samples, as evaluation sees it; read and decoded by several threads.

        In quarantine mode a sample that cannot be read is replaced by the next one that can.
        """
        return in_threads(lambda sample: centre_crop(self._readable(sample), image_px), samples.tolist(), _READERS)

    def _readable(self, sample: int) -> NDArray[np.uint8]:
        for step in range(self.num_images):
            try:
                return self.image((sample + step) % self.num_images)
            except CorruptError:
                if self.on_corrupt == "stop":
                    raise
        raise CorruptError(
            f"{self.index.manifest}: none of the samples in its shards can be read; run `align shard` again"
        )


@dataclass(frozen=True)
class SampleSources:
    """All samples that a run reads.

    Attributes:
        train: the main training split, with weight 1.
        val: the validation split, if it has images.
        extra: more training splits, each with its weight.
    """

    train: SplitSamples
    val: SplitSamples | None = None
    extra: tuple[tuple[SplitSamples, float], ...] = ()

    def all(self) -> Iterator[SplitSamples]:
        """Every split."""
        yield self.train
        if self.val is not None:
            yield self.val
        yield from (split for split, _ in self.extra)


def first_pairs(index: SplitIndex, num_pairs: Sequence[int], most: int, store: Tars | None) -> SplitIndex:
    """The first pairs of a split, in the order of its shards; of its last picture perhaps some texts only.

    Args:
        index: of the whole split.
        num_pairs: of each shard.
        most: so many pairs, unless the split has fewer.
        store: the object store for tars missing from the folder.

    Raises:
        DataError, CorruptError, ServiceError: the shard that is cut cannot be read.
    """
    ends = np.cumsum(num_pairs)
    if most >= ends[-1]:
        return index
    shard = int(np.searchsorted(ends, most))
    left, tars = most - int(ends[shard]) + num_pairs[shard], TarBytes(store, 0.0)
    for number, (_, _, begin, size) in enumerate(index.read_offsets(shard).tolist(), 1):
        texts = _texts(_file_in(tars.read(index.shards[shard], begin, begin + size), 0, size), index)
        if len(texts) >= left:
            counts = np.append(index.counts[:shard], number)
            cut = int(index.counts[shard]), left
            return replace(
                index, shards=index.shards[: shard + 1], counts=counts, indexes=index.indexes[: shard + 1], cut=cut
            )
        left -= len(texts)
    raise CorruptError(f"{index.shards[shard]}: fewer pairs than {index.manifest} says; run `align shard` again")


def _opened(opens: Callable[..., SplitSamples], cache_bytes: int, number: int) -> SplitSamples:
    samples = opens(cache_bytes=cache_bytes // number)
    samples.tars.num_connections = -(-samples.tars.num_connections // number)
    return samples


def _file_in(data: bytes, begin: int, size: int) -> bytes:
    content = data[begin : begin + size]
    if len(content) != size:
        raise DataError("the tar is shorter than its manifest says")
    return content


def _texts(data: bytes, index: SplitIndex) -> list[str]:
    try:
        texts = texts_in(data) if index.given else [*map(str, json.loads(data)["texts"])]
    except (ValueError, KeyError, TypeError, AttributeError):
        texts = []
    if not texts:
        raise DataError("it has no texts")
    return texts
