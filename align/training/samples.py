"""Random access to the images and texts of a split.

What is corrupt is judged sample by sample, from its own bytes: cut off, not an image, no texts. So it is the same on
all ranks and when a run goes on. It would not be if a whole tar fell out once a first fault, or a checksum taken in the
background, was met: what is shown would depend on when that was. Whole tars are compared with their sha256 by the gate
before training (`align validate_shards`), and by the store when it copies one.
"""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from align.errors import CorruptError, DataError
from align.model.preprocess import centre_crop, decode
from align.training.index import Offsets, SplitIndex, Tars
from align.training.reading import Bytes, Span, is_remote, joined

#: Decoded images are kept in memory where all of them take less than this.
CACHE_BYTES = 2**30

#: Of so many samples the offsets are kept, unless `expect_block` asks for more.
_OFFSETS_KEPT = 1 << 20

OnCorrupt = Literal["stop", "quarantine"]


class Samples:
    """Random access to a split; thread-safe.

    Args:
        index: where they lie.
        resize_px: side of the images.
        tars: the object store, where some of the tars are in it.
        patience_s: how long to go on asking a store that is away.
        on_corrupt: "quarantine" lets others stand in for samples that cannot be read.
        cache_bytes: decoded images are kept where all of them take less.
    """

    def __init__(
        self, index: SplitIndex, resize_px: int, tars: Tars | None = None, *, patience_s: float = 0.0,
        on_corrupt: OnCorrupt = "stop", cache_bytes: int = CACHE_BYTES,
    ) -> None:  # fmt: skip
        self.index = index
        self.on_corrupt = on_corrupt
        self.num_images = index.num_images
        self.any_remote = any(is_remote(uri) for uri in index.shards)
        self.bytes = Bytes(tars, patience_s)
        self._resize_px = resize_px
        self._offsets = Offsets(index, _OFFSETS_KEPT)
        fits = self.num_images * resize_px * resize_px * 3 <= cache_bytes
        shape = (self.num_images if fits else 0, resize_px, resize_px, 3)
        self._images: NDArray[np.uint8] = np.empty(shape, dtype=np.uint8)
        self._texts: list[list[str] | None] = [None] * (self.num_images if fits else 0)
        self._cached = np.zeros(len(self._images), dtype=bool)

    def expect_block(self, block: int) -> None:
        """Reads will jump about among so many samples: the offsets of two such blocks are kept."""
        self._offsets.num_kept = max(_OFFSETS_KEPT, 2 * block)

    def spans(self, samples: NDArray[np.int64]) -> list[Span]:
        """The reads that bring in these samples, without those that are in memory."""
        if len(self._cached):
            samples = samples[~self._cached[samples]]
        samples = np.sort(samples)
        shards = np.searchsorted(self.index.starts, samples, side="right") - 1
        spans: list[Span] = []
        for shard in np.unique(shards):
            mine = samples[shards == shard]
            rows = self._offsets.of(int(shard))[mine - self.index.starts[shard]]
            begins = np.minimum(rows[:, 0], rows[:, 2]).tolist()
            ends = np.maximum(rows[:, 0] + rows[:, 1], rows[:, 2] + rows[:, 3]).tolist()
            of_shard = [
                Span(int(shard), begin, end, [sample])
                for begin, end, sample in zip(begins, ends, mine.tolist(), strict=True)
            ]
            # A request takes as long as a hundred kilobytes; a positioned read of a file next to nothing.
            spans += joined(sorted(of_shard, key=_begin)) if is_remote(self.index.shards[shard]) else of_shard
        return spans

    def fetch(self, span: Span) -> bytes:
        """Raises DataError where there is no such tar, ServiceError where the store stays away."""
        return self.bytes.read(self.index.shards[span.shard], span.begin, span.end)

    def load(self, sample: int, data: bytes | None = None, begin: int = 0) -> tuple[NDArray[np.uint8], list[str]]:
        """An image and all its kept texts.

        Args:
            sample: its number.
            data: bytes of the tar around it; read where there are none and it is not in memory.
            begin: where they begin.

        Returns:
            (resize_px, resize_px, 3) RGB, not to be written into, and at least one text.

        Raises:
            CorruptError: it cannot be read; the message names the tar.
        """
        known = self._texts[sample] if len(self._cached) and self._cached[sample] else None
        if known is not None:
            cached: NDArray[np.uint8] = self._images[sample]
            return cached, known
        shard = int(np.searchsorted(self.index.starts, sample, side="right")) - 1
        row = self._offsets.of(shard)[sample - self.index.starts[shard]].tolist()
        if data is None:
            begin, end = min(row[0], row[2]), max(row[0] + row[1], row[2] + row[3])
            data = self.bytes.read(self.index.shards[shard], begin, end)
        try:
            image = decode(_part(data, row[0] - begin, row[1]), self._resize_px)
            texts = _texts(_part(data, row[2] - begin, row[3]))
        except DataError as error:
            number = sample - int(self.index.starts[shard])
            raise CorruptError(
                f"{self.index.shards[shard]}: sample {number}: {error}; run `align shard` again"
            ) from None
        if len(self._cached):
            self._images[sample] = image
            self._texts[sample] = texts
            self._cached[sample] = True  # last: another thread may look
        return image, texts

    def image(self, sample: int) -> NDArray[np.uint8]:
        """As `load`."""
        return self.load(sample)[0]

    def texts(self, sample: int) -> list[str]:
        """As `load`."""
        return self.load(sample)[1]

    def centre_crops(self, samples: NDArray[np.int64], image_px: int) -> NDArray[np.uint8]:
        """(N,) samples -> (N, image_px, image_px, 3), as evaluation sees them. In quarantine the next one that can be
        read stands in for one that cannot."""
        return np.stack([centre_crop(self._readable(int(sample)), image_px) for sample in samples])

    def _readable(self, sample: int) -> NDArray[np.uint8]:
        for step in range(self.num_images):
            try:
                return self.image((sample + step) % self.num_images)
            except CorruptError:
                if self.on_corrupt == "stop":
                    raise
        raise CorruptError(f"{self.index.manifest}: not one sample of its shards can be read; run `align shard` again")


def _begin(span: Span) -> int:
    return span.begin


def _part(data: bytes, begin: int, size: int) -> bytes:
    part = data[begin : begin + size]
    if len(part) != size:
        raise DataError("the tar ends before its manifest says")
    return part


def _texts(data: bytes) -> list[str]:
    try:
        texts = [str(text) for text in json.loads(data)["texts"]]
    except (ValueError, KeyError, TypeError):
        texts = []
    if not texts:
        raise DataError("its json has no texts")
    return texts
