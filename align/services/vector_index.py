"""Nearest neighbours by cosine over many vectors, and clusters of them, through faiss: the only module that imports it.

The index is exact (IndexFlatIP): a search in the demo's ten thousand vectors takes a millisecond. A compressed index
would change only this module.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from align.errors import CorruptError, DataError
from align.files import write_bytes

_KMEANS_ITERATIONS = 20
_KMEANS_SEED = 0


def kmeans(vectors: NDArray[np.float32], num_clusters: int) -> NDArray[np.float32]:
    """Spherical k-means: (num_vectors, width) L2-normalised -> centroids (num_clusters, width) float32, normalised.

    Equal vectors in the same order give equal centroids on any machine: it uses one thread, as a sum depends on how
    it is divided among threads.
    """
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        clustering = faiss.Kmeans(
            vectors.shape[1],
            num_clusters,
            niter=_KMEANS_ITERATIONS,
            spherical=True,
            seed=_KMEANS_SEED,
            min_points_per_centroid=1,
            max_points_per_centroid=len(vectors),  # the caller draws the sample
        )
        clustering.train(np.ascontiguousarray(vectors, dtype=np.float32))
    finally:
        faiss.omp_set_num_threads(num_threads)
    return np.asarray(clustering.centroids, dtype=np.float32)


class VectorIndex:
    """See `align.protocols.vectors.Vectors`; this one is exact."""

    def __init__(self, index: Any) -> None:
        self._index = index

    @classmethod
    def build(cls, vectors: NDArray[np.float32]) -> VectorIndex:
        """Indexes (num_vectors, width) float32, L2-normalised rows: inner product is then cosine."""
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> VectorIndex:
        """Reads what `save` wrote.

        Raises:
            DataError: the file does not exist.
            CorruptError: the file is not a faiss index.
        """
        try:
            data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        except FileNotFoundError:
            raise DataError(f"{path}: no index here; run `align index` first") from None
        try:
            return cls(faiss.deserialize_index(data))
        except RuntimeError as error:
            raise CorruptError(f"{path}: not a faiss index ({str(error).splitlines()[0]}); run `align index`") from None

    def save(self, path: Path) -> None:
        """Writes the index; equal vectors give equal bytes."""
        write_bytes(path, faiss.serialize_index(self._index).tobytes())

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """Length of a vector."""
        return int(self._index.d)

    def vector(self, position: int) -> NDArray[np.float32]:
        """(width,) float32: the vector with this id."""
        return np.asarray(self._index.reconstruct(position), dtype=np.float32)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest vectors of each query, nearest first, ties in order of their ids.

        Args:
            queries: (num_queries, width) float32.
            k: at least 1; if it exceeds the number of vectors, all are returned.

        Returns:
            Cosines (num_queries, k) float32 and ids (num_queries, k) int64.
        """
        k = min(k, len(self))
        scores, ids = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        order = np.lexsort((ids, -scores), axis=-1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
