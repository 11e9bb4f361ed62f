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
from align.protocols.store import Tars
from align.training.index import Offsets, SplitIndex
from align.training.reading import Bytes, Place, Span, is_remote, joined

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
        self.resize_px = resize_px
        self._offsets = Offsets(index, _OFFSETS_KEPT)
        fits = self.num_images * resize_px * resize_px * 3 <= cache_bytes
        shape = (self.num_images if fits else 0, resize_px, resize_px, 3)
        self._images: NDArray[np.uint8] = np.empty(shape, dtype=np.uint8)
        self._texts: list[list[str] | None] = [None] * (self.num_images if fits else 0)
        self._cached = np.zeros(len(self._images), dtype=bool)

    def expect_block(self, block: int) -> None:
        """Reads will jump about among so many samples: the offsets of two such blocks are kept."""
        self._offsets.num_kept = max(_OFFSETS_KEPT, 2 * block)

    def places(self, samples: NDArray[np.int64]) -> list[Place]:
        """(B,) numbers of samples -> where they lie, in the same order."""
        shards = np.searchsorted(self.index.starts, samples, side="right") - 1
        rows = np.empty((len(samples), 6), dtype=np.int64)
        rows[:, 0], rows[:, 1] = samples, shards
        for shard in np.unique(shards):
            mine = shards == shard
            rows[mine, 2:] = self._offsets.of(int(shard))[samples[mine] - self.index.starts[shard]]
        return [Place(*row) for row in rows.tolist()]

    def place(self, sample: int) -> Place:
        """As `places`."""
        return self.places(np.array([sample], dtype=np.int64))[0]

    def spans(self, places: list[Place]) -> list[Span]:
        """The reads of the object store that bring these in, without those that are in memory, or in files: a
        request takes as long as a hundred kilobytes, but a positioned read of a file next to nothing."""
        held = self._cached
        return joined([
            place for place in places
            if is_remote(self.index.shards[place.shard]) and not (len(held) and held[place.sample])
        ])  # fmt: skip

    def fetch(self, span: Span) -> bytes:
        """Raises DataError where there is no such tar, ServiceError where the store stays away."""
        return self.bytes.read(self.index.shards[span.shard], span.begin, span.end)

    def load(
        self, place: Place, data: bytes | None = None, begin: int = 0, scratch: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[np.uint8], list[str]]:
        """An image and all its kept texts.

        Args:
            place: where it lies.
            data: bytes of the tar around it; read where there are none and it is not in memory.
            begin: where they begin.
            scratch: as of `decode`.

        Returns:
            (resize_px, resize_px, 3) RGB, not to be written into, which may lie in `scratch`; and at least one text.

        Raises:
            CorruptError: it cannot be read; the message names the tar.
        """
        sample = place.sample
        known = self._texts[sample] if len(self._cached) and self._cached[sample] else None
        if known is not None:
            cached: NDArray[np.uint8] = self._images[sample]
            return cached, known
        if data is None:
            span = place.span()
            data, begin = self.fetch(span), span.begin
        try:
            image = decode(_part(data, place.jpg - begin, place.jpg_bytes), self.resize_px, scratch)
            texts = _texts(_part(data, place.json - begin, place.json_bytes))
        except DataError as error:
            tar, number = self.index.shards[place.shard], sample - int(self.index.starts[place.shard])
            raise CorruptError(f"{tar}: sample {number}: {error}; run `align shard` again") from None
        if len(self._cached):
            self._images[sample] = image
            self._texts[sample] = texts
            self._cached[sample] = True  # last: another thread may look
        return image, texts

    def image(self, sample: int) -> NDArray[np.uint8]:
        """As `load`."""
        return self.load(self.place(sample))[0]

    def texts(self, sample: int) -> list[str]:
        """As `load`."""
        return self.load(self.place(sample))[1]

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
