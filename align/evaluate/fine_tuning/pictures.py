"""Labelled pictures, and the crops that training and the test see.

What is drawn is a function of (seed, position in the run), whatever thread decodes it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.fine_tuning.recipe import View
from align.model.preprocess import centre_crop, decode, random_crop
from align.statistics.randomness import Purpose, permutation, uniforms

Crops = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split.

    Attributes:
        name: in messages, such as `train`.
        images: encoded files.
        labels: (num_images,) integers from 0.
        clusters: as in `Labelled`.

    Raises:
        DataError: no picture, or not one label per picture.
    """

    name: str
    images: Sequence[bytes]
    labels: NDArray[np.int64]
    clusters: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        labels, number = np.asarray(self.labels), len(self.images)
        if number == 0 or labels.shape != (number,) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise DataError(
                f"{self.name}: {number} images, labels of shape {labels.shape}; want one from 0 up for each"
            )
        if self.clusters is not None and len(self.clusters) != number:
            raise DataError(f"{self.name}: {number} images, but {len(self.clusters)} clusters")
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))

    def square(self, index: int, side_px: int) -> Crops:
        """(side_px, side_px, 3). Raises DataError with the picture's number if it does not decode."""
        try:
            return decode(self.images[index], side_px)
        except DataError as error:
            raise DataError(f"{self.name}: picture {index}: {error}") from None

    def centre(self, indices: NDArray[np.int64], view: View, pool: ThreadPoolExecutor) -> Crops:
        """(number, crop_px, crop_px, 3) the middle of each picture. Raises DataError as `square`."""

        def crop(index: int) -> Crops:
            return centre_crop(self.square(int(index), view.square_px), view.crop_px)

        return np.stack(list(pool.map(crop, indices)))


class TrainingBatches:
    """The training batches of a run, as a function of the step.

    Args:
        pictures: the split.
        batch_size: pictures in a step; a batch may begin in one epoch and end in the next.
        seed: of order, crops and mirroring.
        pool: decodes.
    """

    def __init__(self, pictures: Pictures, batch_size: int, seed: int, pool: ThreadPoolExecutor) -> None:
        self._pictures, self._size, self._seed, self._pool = pictures, batch_size, seed, pool
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(pictures.images)))

    @property
    def per_epoch(self) -> float:
        """Steps of an epoch."""
        return len(self._pictures.images) / self._size

    def steps(self, first: int, end: int, view: View) -> Iterator[tuple[Crops, NDArray[np.int64]]]:
        """(batch_size, crop_px, crop_px, 3) crops and (batch_size,) labels of steps `first` to `end` - 1.

        The next batch is prepared while one is used. Raises DataError if a picture does not decode.
        """
        with ThreadPoolExecutor(1, "batches") as ahead:
            following = ahead.submit(self._batch, first, view) if first < end else None
            for step in range(first, end):
                assert following is not None
                batch = following.result()
                following = ahead.submit(self._batch, step + 1, view) if step + 1 < end else None
                yield batch

    def _batch(self, step: int, view: View) -> tuple[Crops, NDArray[np.int64]]:
        epochs, places = np.divmod(np.arange(step * self._size, (step + 1) * self._size), len(self._pictures.images))
        crops = np.empty((self._size, view.crop_px, view.crop_px, 3), dtype=np.uint8)
        indices = np.array([self._order(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)])
        draws = np.concatenate(
            [uniforms(self._seed, int(epoch), Purpose.CROP, places[epochs == epoch], 3) for epoch in np.unique(epochs)]
        )

        def crop(row: int) -> None:
            square = self._pictures.square(int(indices[row]), view.square_px)
            random_crop(square, crops[row], draws[row].tolist(), flip=True)

        for _ in self._pool.map(crop, range(self._size)):
            pass
        return crops, self._pictures.labels[indices]
