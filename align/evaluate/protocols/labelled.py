"""Features of pictures with their classes, as the protocols of classification take them, and how answers are scored.

Features may be a file that is mapped into memory (float16): they are read in parts, and no protocol copies all of them
unless it says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Score
from align.statistics.intervals import Scored, interval

#: An answer that is wrong whatever the class: two classes came first together.
UNDECIDED = -1


@dataclass(frozen=True)
class Labelled:
    """Pictures of one split.

    Attributes:
        name: in messages, such as `train`.
        features: (num_images, width) float16, float32 or float64.
        labels: (num_images,) integers from 0; the class of each.
        clusters: (num_images,) what is independent: pictures of one cluster succeed and fail together (one concept, one
            sender). Only a test split needs it; None if every picture stands for itself.

    Raises:
        DataError: no picture, or shapes or types that do not fit together.
    """

    name: str
    features: NDArray[Any]
    labels: NDArray[np.int64]
    clusters: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        shape, labels = self.features.shape, np.asarray(self.labels)
        if len(shape) != 2 or 0 in shape or self.features.dtype.kind != "f":
            raise DataError(
                f"{self.name}: features of shape {shape}, {self.features.dtype}; want (images, width) floats"
            )
        if labels.shape != (shape[0],):
            raise DataError(f"{self.name}: {shape[0]} images, but labels of shape {labels.shape}")
        if labels.dtype.kind not in "iu" or labels.min() < 0:
            raise DataError(f"{self.name}: labels must be integers from 0 up")
        if self.clusters is not None and len(self.clusters) != shape[0]:
            raise DataError(f"{self.name}: {shape[0]} images, but {len(self.clusters)} clusters")
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return int(self.features.shape[1])

    def __len__(self) -> int:
        return int(self.features.shape[0])

    def rows(self, which: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Some features as float32, in memory. Raises DataError if one is NaN or infinite."""
        rows = np.asarray(self.features[which], dtype=np.float32)
        if not np.isfinite(rows).all():
            raise DataError(
                f"{self.name}: features that are NaN or infinite; the model or the stored features are damaged"
            )
        return rows

    def parts(self, size: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(number of the first row, features) of all rows in order, `size` at a time. Raises as `rows`."""
        for start in range(0, len(self), size):
            yield start, self.rows(slice(start, start + size))

    def subset(self, which: NDArray[np.int64]) -> Labelled:
        """Some of the pictures, in that order."""
        clusters = None if self.clusters is None else [self.clusters[row] for row in which]
        return Labelled(self.name, self.features[which], self.labels[which], clusters)


def require_one_width(*splits: Labelled) -> None:
    """Raises DataError if the features of two splits differ in width."""
    for first, other in itertools.pairwise(splits):
        if other.width != first.width:
            raise DataError(
                f"features of {first.name} are {first.width} wide, those of {other.name} {other.width}: not one model's"
            )


def largest(scores: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """(num_rows, num_classes) -> (num_rows,) the column of each row's largest value; `UNDECIDED` if two have it."""
    level = np.count_nonzero(scores == scores.max(axis=1, keepdims=True), axis=1) > 1
    return np.where(level, UNDECIDED, scores.argmax(axis=1)).astype(np.int64)


class Asked(Protocol):
    """Pictures whose answers are scored: `Labelled`, or pictures as files."""

    @property
    def name(self) -> str:
        """In messages."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(num_images,) the right classes."""

    @property
    def clusters(self) -> Sequence[Hashable] | None:
        """(num_images,) what is independent; None: each picture."""


def accuracy(
    runs: Sequence[NDArray[np.int64]], test: Asked, num_classes: int, *, num_resamples: int, seed: int
) -> Score:
    """The share of right answers, averaged over runs.

    The interval resamples `test.clusters`, with the answers of all runs to one picture kept together: it covers the
    choice of test pictures, not that of seeds or of training pictures.

    Args:
        runs: of each run (num_test,) the class that it answers; `UNDECIDED` is wrong.
        test: with the right classes.
        num_classes: chance is one in so many.
        num_resamples: bootstrap replicates.
        seed: of the bootstrap.

    Raises:
        DataError: no run, or answers that are not one a picture.
    """
    number = len(test.labels)
    for answers in runs:
        if answers.shape != (number,):
            raise DataError(f"{test.name}: {number} images, but answers of shape {answers.shape}")
    if not runs:
        raise DataError(f"{test.name}: no run to score")
    hits = np.asarray(np.mean([answers == test.labels for answers in runs], axis=0), dtype=np.float64)
    clusters = range(number) if test.clusters is None else test.clusters
    low, high = interval([Scored(hits, clusters)], num_resamples=num_resamples, seed=seed)
    return Score(float(hits.mean()), low, high, 1 / num_classes)
