"""Random access to the images and texts of a split.

Each sample is judged by its own bytes: cut off, not an image, or no texts. So all ranks, and a resumed run, judge
alike; dropping a whole tar at its first fault would make the samples shown depend on timing. Whole tars are compared
with their sha256 by the gate before training (`align validate_shards`), and by the store when it copies one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.durable.processes import in_threads
from align.errors import CorruptError, DataError
from align.formats.sample_texts import texts_in
from align.interfaces.store import Tars
from align.model.preprocess import centre_crop, decode
from align.training.batches.index import SplitIndex
from align.training.batches.order import SHUFFLE_BLOCK
from align.training.batches.reading import TarBytes, is_remote

#: The decoded images of a split are kept in memory if they all fit into this many bytes.
CACHE_BYTES = 2**30
#: Threads that read samples which are all asked for at once; a request of a store takes as long as decoding some.
_READERS = 8

OnCorrupt = Literal["stop", "quarantine"]


class _Place(NamedTuple):
    """Where a sample is: its tar, its number there, and offset and size of its two files, which are neighbours."""

    tar: str
    number: int
    jpg: int
    jpg_bytes: int
    text: int
    text_bytes: int

    @property
    def begin(self) -> int:
        """Offset of the first file."""
        return min(self.jpg, self.text)


class SplitSamples:
    """Random access to a split; thread-safe.

    Args:
        index, resize_px: where the samples are stored, and the side of the images.
        store, patience_s: has tars that are no files; how long reads are retried while it is unavailable.
        on_corrupt: "quarantine" replaces samples that cannot be read by others, as it is with tars that are given.
        cache_bytes: decoded images are kept if they all fit.

    Attributes:
        text_balance: whether training shows samples as `BalancedOrder` says, by this threshold; None: all alike.
    """

    def __init__(
        self, index: SplitIndex, resize_px: int, store: Tars | None = None, *, patience_s: float = 0.0,
        on_corrupt: OnCorrupt = "stop", cache_bytes: int = CACHE_BYTES,
    ) -> None:  # fmt: skip
        self.index, self.resize_px, self.num_images = index, resize_px, index.num_images
        self.text_balance: float | None = None
        self.on_corrupt = "quarantine" if index.given else on_corrupt  # nothing has decoded their pictures before
        self._any_remote = any(map(is_remote, index.shards))
        self.tars = TarBytes(store, patience_s)
        # The order jumps about within a block: kept are the offsets of two blocks' shards, at 32 bytes an image.
        num_shards = 2 + 2 * SHUFFLE_BLOCK * len(index.shards) // max(1, self.num_images)
        self._offsets = lru_cache(num_shards)(index.read_offsets)
        num_kept = self.num_images if self.num_images * resize_px * resize_px * 3 <= cache_bytes else 0
        self._images: NDArray[np.uint8] = np.empty((num_kept, resize_px, resize_px, 3), dtype=np.uint8)
        self._texts: list[list[str] | None] = [None] * num_kept  # where the image is kept, too

    def waits(self, sample: int) -> bool:
        """Whether loading a sample waits for the object store: it is neither in memory nor in a file."""
        is_kept = self._texts and self._texts[sample] is not None
        return self._any_remote and not is_kept and is_remote(self._place(sample).tar)

    def read(self, sample: int) -> bytes:
        """Reads a sample's two files. Raises as `TarBytes.read`."""
        place = self._place(sample)
        end = max(place.jpg + place.jpg_bytes, place.text + place.text_bytes)
        return self.tars.read(place.tar, place.begin, end)

    def load(
        self, sample: int, data: bytes | None = None, scratch: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.uint8], list[str]]:
        """An image and all its kept texts, of a sample by its number in the order of the manifest.

        Args:
            data: what `read` gave; None reads it, unless the sample is in memory.
            scratch: memory to decode into, see `align.model.preprocess.decode`.

        Returns:
            (resize_px, resize_px, 3) uint8 RGB, read-only, possibly a view of `scratch`; and at least one text. Raises
            CorruptError: the sample cannot be read; the message names the tar.
        """
        if self._texts and (kept := self._texts[sample]) is not None:
            return self._images[sample], kept
        place = self._place(sample)
        data = self.read(sample) if data is None else data
        try:
            image = decode(_file_in(data, place.jpg - place.begin, place.jpg_bytes), self.resize_px, scratch)
            texts = _texts(_file_in(data, place.text - place.begin, place.text_bytes), self.index)
        except DataError as error:
            remedy = "" if self.index.given else "; run `align shard` again"
            raise CorruptError(f"{place.tar}: sample {place.number}: {error}{remedy}") from None
        if self.index.cut and sample == self.num_images - 1:
            texts = texts[: self.index.cut[1]]
        if self._texts:
            self._images[sample] = image
            self._texts[sample] = texts  # last: another thread may look for it
        return image, texts

    def image(self, sample: int) -> NDArray[np.uint8]:
        """(resize_px, resize_px, 3) of one sample, see `load`."""
        return self.load(sample)[0]

    def texts(self, sample: int) -> list[str]:
        """The texts of one sample, see `load`."""
        return self.load(sample)[1]

    def texts_of(self, samples: NDArray[np.int64]) -> Iterator[list[str]]:
        """The texts of each of (N,) samples, read by several threads."""
        return in_threads(self.texts, samples.tolist(), _READERS)

    def centre_crops(self, samples: NDArray[np.int64], image_px: int) -> Iterator[NDArray[np.uint8]]:
        """(image_px, image_px, 3) of each of (N,) samples, or in quarantine of the next readable one; in threads."""
        return in_threads(lambda sample: centre_crop(self._readable(sample), image_px), samples.tolist(), _READERS)

    def _place(self, sample: int) -> _Place:
        shard = int(self.index.starts.searchsorted(sample, side="right")) - 1
        number = sample - int(self.index.starts[shard])
        return _Place(self.index.shards[shard], number, *self._offsets(shard)[number].tolist())

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


class SampleSources(NamedTuple):
    """The samples of a run: to train on, each split with its weight; and for validation, if there are any."""

    train: SplitSamples
    val: SplitSamples | None
    mixed: list[tuple[SplitSamples, float]]


def first_pairs(index: SplitIndex, num_pairs: Sequence[int], most: int, store: Tars | None) -> SplitIndex:
    """Cuts a split after `most` pairs, in the order of its shards; of its last picture perhaps some texts stay.

    A split that has fewer stays as it is; `num_pairs` are those of each shard, `store` has tars that are no files.
    Raises DataError, CorruptError or ServiceError: the shard that is cut cannot be read.
    """
    ends = np.cumsum(num_pairs)
    if most >= ends[-1]:
        return index
    shard = int(np.searchsorted(ends, most))
    left, tars = most - int(ends[shard]) + num_pairs[shard], TarBytes(store, 0.0)
    for number, (_, _, begin, size) in enumerate(index.read_offsets(shard).tolist(), 1):
        texts = _texts(_file_in(tars.read(index.shards[shard], begin, begin + size), 0, size), index)
        if len(texts) >= left:
            counts, cut = np.append(index.counts[:shard], number), (int(index.counts[shard]), left)
            shards, indexes = index.shards[: shard + 1], index.indexes[: shard + 1]
            return replace(index, shards=shards, counts=counts, indexes=indexes, cut=cut)
        left -= len(texts)
    raise CorruptError(f"{index.shards[shard]}: fewer pairs than {index.manifest} says; run `align shard` again")


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
