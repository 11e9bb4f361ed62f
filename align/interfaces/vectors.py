"""The interface of a nearest-neighbour index. `align.services.vector_index` implements it with faiss."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Vectors(Protocol):
    """L2-normalised vectors in the order in which they were added; a vector's position is its id."""

    def __len__(self) -> int: ...

    @property
    def width(self) -> int:
        """Length of a vector."""
        ...

    def vector(self, position: int) -> NDArray[np.float32]:
        """(width,) float32: the vector with this id."""
        ...

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest of each of (num_queries, width) queries, nearest first: cosines and ids, (num_queries, k).

        `allowed`, (number of vectors,), says which may be returned. Fewer than k are, if no more are allowed.
        """
        ...
