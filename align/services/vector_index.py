"""Nearest neighbours by cosine over many vectors, and clusters of them, through faiss: the only module that imports it.

With few vectors the index is exact: float32 in memory (IndexFlatIP), a millisecond for ten thousand. With many it is
approximate, takes an eighth of float32's memory, and searches in two steps:

1. k-means divides the vectors into lists. A query looks through the lists nearest to it, whose vectors have four bits
   for each coordinate (IndexIVFScalarQuantizer). `NAME.faiss` holds them and is memory-mapped.
2. The best of these are scored again with rows of float16, which are read from `NAME.npy`, memory-mapped too.

A search with a filter looks through as many lists as hold enough allowed vectors. If few are allowed, or if a large
part of all is asked for, every allowed row of float16 is scored instead: that is exact.

`RangeIndex` finds not the nearest vectors but all above a cosine.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from align.display.console import say, track
from align.durable.files import replaced, write_bytes
from align.errors import CorruptError, DataError, first_line

_KMEANS_SEED = 0

#: Lists: this times the square root of the number of vectors. More take longer to make, by their square.
#: For k-means: vectors a list, and rounds.
_LISTS_PER_ROOT = 1
_SAMPLES_PER_LIST = 40
_LIST_ITERATIONS = 10
#: Lists that a query looks through, and vectors that are scored again: with them recall@10 is above 0.97 on a million
#: clustered vectors (`make bench ARGS=vectors`).
_LISTS_PER_QUERY = 32
_LEAST_CANDIDATES = 200
_CANDIDATES_PER_RESULT = 4
#: This many rows can be scored one by one in the time of an approximate search with a narrow filter.
_EXACT_ROWS = 20_000
#: Rows of float16 that are in memory as float32 at once, when lists are made.
_ADDED_AT_ONCE = 16_384
#: The same in a search, where each row may lie elsewhere: the kernel maps 64 KB around it.
_ROWS_AT_ONCE = 2048
#: `RangeIndex`: a query is compared with each of fewer vectors; with more, it looks through so many lists. These found
#: all of the demo's 100 pairs above the cut among its 74,100 views, in an eighth of the CPU seconds.
_RANGE_ALL_BELOW, _RANGE_LISTS = 20_000, 10
#: The first bytes of a file: which index it holds.
_EXACT, _LISTS = b"IxFI", b"IwSq"
_EXACT_HEADER_BYTES = 45
#: Of a file with lists: where its width and their number are, how many bytes come before them beside the centroids and
#: the two numbers for each coordinate, and what they begin with.
_WIDTH, _NUM_LISTS, _BEFORE_LISTS_BYTES, _LISTS_BEGIN = slice(4, 8), slice(37, 45), 152, b"ilar"

#: faiss has one limit on lengths for the whole process.
_reading = threading.Lock()

Vectors32 = NDArray[np.float32]


def kmeans(vectors: Vectors32, num_clusters: int) -> Vectors32:
    """Spherical k-means: (num_vectors, width) L2-normalised -> centroids (num_clusters, width) float32, normalised.

    Equal vectors in the same order give equal centroids on any machine: it uses one thread, as a sum depends on how it
    is divided among threads.
    """
    with _one_thread():
        clustering = faiss.Kmeans(
            vectors.shape[1],
            num_clusters,
            niter=_LIST_ITERATIONS,
            spherical=True,
            seed=_KMEANS_SEED,
            min_points_per_centroid=1,
            max_points_per_centroid=len(vectors),  # the caller draws the sample
        )
        clustering.train(np.ascontiguousarray(vectors, dtype=np.float32))
    return np.asarray(clustering.centroids, dtype=np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    num_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(num_threads)


class VectorIndex:
    """See `align.interfaces.vectors.Vectors`. `build` decides once whether it is exact.

    Attributes:
        width: length of a vector.
    """

    def __init__(self, index: Any, rows: NDArray[np.float16] | None) -> None:
        self._index = index
        self._rows = rows
        self.width = int(index.d)

    @classmethod
    def build(cls, batches: Iterable[Vectors32], path: Path, *, num_vectors: int, exact_below: int) -> VectorIndex:
        """Writes an index and opens it. Equal vectors give equal bytes.

        Args:
            batches: (number, width) float32 each, L2-normalised rows, so that inner product is cosine. At most
                `exact_below` vectors, or one batch and the sample for k-means, are in memory as float32.
            path: the new file; an approximate index has a second one beside it, with the ending `.npy`.
            num_vectors: of all batches, at least 1.
            exact_below: the index of fewer vectors is exact.

        Raises:
            DataError: the batches hold another number of vectors.
        """
        if num_vectors < exact_below:
            vectors = np.concatenate(list(batches))
            require_number(len(vectors), num_vectors)
            index = faiss.IndexFlatIP(vectors.shape[1])
            index.add(np.ascontiguousarray(vectors, dtype=np.float32))
            write_bytes(path, faiss.serialize_index(index).tobytes())
            return cls(index, None)
        write_rows(batches, _rows_file(path), num_vectors)
        _write_lists(open_rows(_rows_file(path)), path)
        return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> VectorIndex:
        """Opens what `build` wrote. Raises DataError if the file does not exist; CorruptError if the file is not such
        an index, is cut off, or the one beside it does not belong to it.
        """
        try:
            with path.open("rb") as file:
                kind = file.read(4)
                file.seek(0)
                data = np.frombuffer(file.read(), dtype=np.uint8) if kind == _EXACT else None
        except FileNotFoundError:
            raise DataError(f"{path}: no index here; run `align index` first") from None
        if kind != _EXACT and not _has_lists(path):
            raise CorruptError(f"{path}: not a faiss index of this project; run `align index` again")
        index = _read(path, data)
        if data is not None:
            is_inner_product = index.metric_type == faiss.METRIC_INNER_PRODUCT
            if index.d < 1 or not is_inner_product or _EXACT_HEADER_BYTES + 4 * index.ntotal * index.d != len(data):
                raise CorruptError(f"{path}: not as long as it says; run `align index` again")
            return cls(index, None)
        rows = open_rows(_rows_file(path))
        _require_whole(index, rows, path)
        return cls(index, rows)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def vector(self, position: int) -> Vectors32:
        """(width,) float32: the vector with this id; rounded to float16 where the index is approximate."""
        if self._rows is not None:
            return np.asarray(self._rows[position], dtype=np.float32)
        return np.asarray(self._index.reconstruct(position), dtype=np.float32)

    def search(
        self, queries: Vectors32, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Vectors32, NDArray[np.int64]]:
        """The k nearest vectors of each query, nearest first, ties in order of their ids.

        Args:
            queries: (num_queries, width) float32.
            k: at least 1; if it exceeds the number of vectors that are allowed, all of these are returned.
            allowed: (len(self),): which vectors may be returned; None for all.

        Returns:
            Cosines (num_queries, k) float32 and ids (num_queries, k) int64.

        Raises:
            CorruptError: the file names a vector that does not exist.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        num_allowed = len(self) if allowed is None else int(np.count_nonzero(allowed))
        k = min(k, num_allowed)
        if k == 0 or not len(queries):
            return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
        if self._rows is None:
            scores, ids = self._index.search(queries, k, params=_only(allowed, faiss.SearchParameters))
            return _in_order(scores, ids, k)
        if num_allowed <= _EXACT_ROWS or k * _CANDIDATES_PER_RESULT > num_allowed // 8:
            found = self._score_all(self._rows, queries, k, np.arange(len(self)) if allowed is None else allowed)
        else:
            found = self._look_through_lists(self._rows, queries, k, allowed, num_allowed)
        forget_pages(self._rows)
        return found

    def _look_through_lists(
        self,
        rows: NDArray[np.float16],
        queries: Vectors32,
        k: int,
        allowed: NDArray[np.bool_] | None,
        num_allowed: int,
    ) -> tuple[Vectors32, NDArray[np.int64]]:
        """`num_allowed` is at least 32 k, so a search of all lists finds enough candidates."""
        num_candidates = max(_LEAST_CANDIDATES, _CANDIDATES_PER_RESULT * k)
        scores = np.zeros((len(queries), k), np.float32)
        ids = np.zeros((len(queries), k), np.int64)
        num_lists = min(self._index.nlist, _LISTS_PER_QUERY * len(self) // num_allowed)
        waiting = np.arange(len(queries))
        while len(waiting):
            parameters = _only(allowed, faiss.SearchParametersIVF) or faiss.SearchParametersIVF()
            parameters.nprobe = num_lists
            found = self._index.search(queries[waiting], num_candidates, params=parameters)[1]
            enough = np.count_nonzero(found >= 0, axis=1) >= k
            if num_lists >= self._index.nlist:
                enough[:] = True
            for number, candidates in zip(waiting[enough], found[enough], strict=True):
                forget_pages(rows)
                positions = np.sort(candidates[candidates >= 0])
                if len(positions) < k or positions[-1] >= len(self):
                    raise CorruptError("the index's lists name vectors that do not exist; run `align index` again")
                cosines = rows[positions].astype(np.float32) @ queries[number]
                (scores[number],), (ids[number],) = _in_order(cosines[np.newaxis], positions[np.newaxis], k)
            waiting, num_lists = waiting[~enough], min(self._index.nlist, 4 * num_lists)
        return scores, ids

    def _score_all(
        self, rows: NDArray[np.float16], queries: Vectors32, k: int, allowed: NDArray[Any]
    ) -> tuple[Vectors32, NDArray[np.int64]]:
        """Scores every allowed row; keeps the best k of those seen so far."""
        positions = np.flatnonzero(allowed) if allowed.dtype == np.bool_ else allowed
        scores = np.zeros((len(queries), 0), np.float32)
        ids = np.zeros((len(queries), 0), np.int64)
        for start in range(0, len(positions), _ROWS_AT_ONCE):
            forget_pages(rows)
            block = positions[start : start + _ROWS_AT_ONCE]
            cosines = queries @ rows[block].astype(np.float32).T
            scores = np.concatenate([scores, cosines], axis=1)
            ids = np.concatenate([ids, np.broadcast_to(block, cosines.shape)], axis=1)
            scores, ids = _in_order(scores, ids, k)
        return scores, ids


class RangeIndex:
    """Finds all vectors whose cosine with a query is above a cut. Processes share the pages of its file.

    With few vectors it compares a query with each. With many, k-means divides them into lists, and a query is compared
    with the vectors of the 10 lists that are nearest to it.
    """

    def __init__(self, path: Path) -> None:
        """Opens what `write` wrote."""
        with _reading:
            faiss.set_deserialization_vector_byte_limit(path.stat().st_size)  # a smaller file may have set it
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)

    @staticmethod
    def write(rows: NDArray[np.float16], path: Path, *, all_below: int = _RANGE_ALL_BELOW) -> None:
        """Writes the index of (N, width) vectors, atomically; with fewer than `all_below` a query meets each."""
        index: Any = faiss.IndexFlatIP(rows.shape[1])
        with _one_thread():
            if len(rows) >= all_below:
                index = _empty_lists(rows, faiss.ScalarQuantizer.QT_fp16)
                index.nprobe = _RANGE_LISTS
            for start in range(0, len(rows), _ADDED_AT_ONCE):
                index.add(rows[start : start + _ADDED_AT_ONCE].astype(np.float32))
        with replaced(path, on_disk=False) as beside:
            faiss.write_index(index, str(beside))

    def above(self, queries: Vectors32, cut: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(Q, width) queries -> query and vector of each pair above the cut, ordered by query; float32 decides."""
        limits, _, ids = self._index.range_search(np.ascontiguousarray(queries, dtype=np.float32), cut)
        counts = (limits[1:] - limits[:-1]).astype(np.int64)
        return np.repeat(np.arange(len(queries)), counts), ids


def _in_order(scores: Vectors32, ids: NDArray[np.int64], k: int) -> tuple[Vectors32, NDArray[np.int64]]:
    """The k highest of each row, highest first, ties in order of their ids."""
    order = np.lexsort((ids, -scores), axis=-1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


def _only(allowed: NDArray[np.bool_] | None, parameters: Any) -> Any:
    """faiss's way to say which vectors may be returned; the array of bits lives as long as what refers to it."""
    if allowed is None:
        return None
    selector: Any = faiss.IDSelectorBitmap  # its stub knows the constructor of C++ only
    return parameters(sel=selector(np.packbits(allowed, bitorder="little")))


def _empty_lists(rows: NDArray[np.float16], precision: int) -> Any:
    """Lists for these rows: as many as the square root of their number, from k-means of some of them."""
    num_vectors, width = rows.shape
    num_lists = min(num_vectors, max(1, round(_LISTS_PER_ROOT * num_vectors**0.5)))
    num_samples = min(num_vectors, _SAMPLES_PER_LIST * num_lists)
    sample = rows[np.arange(num_samples) * num_vectors // num_samples].astype(np.float32)
    say(f"k-means of {num_samples:,} vectors into {num_lists:,} lists")
    centroids = faiss.IndexFlatIP(width)
    centroids.add(kmeans(sample, num_lists))
    index = faiss.IndexIVFScalarQuantizer(centroids, width, num_lists, precision, faiss.METRIC_INNER_PRODUCT, False)
    index.train(sample)
    return index


def _write_lists(rows: NDArray[np.float16], path: Path) -> None:
    """Divides the rows into lists. One thread throughout: a sum depends on how it is divided among threads."""
    with _one_thread():
        index = _empty_lists(rows, faiss.ScalarQuantizer.QT_4bit)
        for start in track(range(0, len(rows), _ADDED_AT_ONCE), what="index: vectors to lists"):
            index.add(rows[start : start + _ADDED_AT_ONCE].astype(np.float32))
            forget_pages(rows)
    faiss.write_index(index, str(path))


def _rows_file(path: Path) -> Path:
    return path.with_suffix(".npy")


def _read(path: Path, data: NDArray[np.uint8] | None) -> Any:
    """An index of faiss from bytes in memory, or from a file that stays mapped. Raises CorruptError."""
    with _reading:
        faiss.set_deserialization_vector_byte_limit(path.stat().st_size)  # a length may lie; none exceeds the file
        try:
            if data is not None:
                return faiss.deserialize_index(data)
            return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except (RuntimeError, MemoryError) as error:
            raise CorruptError(f"{path}: not a faiss index ({first_line(error)}); run `align index` again") from None


def _has_lists(path: Path) -> bool:
    """Whether a file has the lists where `build` writes them, and as many as its head says.

    faiss takes 8 bytes for each of them before it reads further, however short the file is.
    """
    with path.open("rb") as file:
        head = file.read(_NUM_LISTS.stop)
        width, number = (int.from_bytes(head[place], "little") for place in (_WIDTH, _NUM_LISTS))
        file.seek(min(_BEFORE_LISTS_BYTES + 4 * number * width + 8 * width, path.stat().st_size))
        return head.startswith(_LISTS) and file.read(12) == _LISTS_BEGIN + number.to_bytes(8, "little")


def _require_whole(index: Any, rows: NDArray[np.float16], path: Path) -> None:
    """Checks what the files say of themselves before a search follows it: faiss does not."""
    lists: Any = faiss.downcast_InvertedLists(index.invlists)
    num_bytes = path.stat().st_size
    sizes = [lists.list_size(number) for number in range(lists.nlist)]
    ends = [  # of a list: its codes, then its ids of 8 bytes
        lists.lists.at(number).offset + size * (lists.code_size + 8) for number, size in enumerate(sizes)
    ]
    quantizer, codes = faiss.downcast_index(index.quantizer), index.sq
    if (
        not isinstance(quantizer, faiss.IndexFlatIP)
        or not index.metric_type == quantizer.metric_type == faiss.METRIC_INNER_PRODUCT
        or index.direct_map.type != 0  # none
        or index.by_residual
        or (lists.totsize, max(ends, default=0), sum(sizes)) != (num_bytes, num_bytes, index.ntotal)
        or not lists.nlist == index.nlist == quantizer.ntotal
        or not quantizer.d == codes.d == index.d
        or codes.qtype != faiss.ScalarQuantizer.QT_4bit
        or codes.trained.size() != 2 * index.d
        or not lists.code_size == index.code_size == codes.code_size == (index.d + 1) // 2
    ):
        raise CorruptError(f"{path}: cut off, or not as long as it says; run `align index` again")
    if rows.shape != (index.ntotal, index.d):
        raise CorruptError(f"{path}: belongs to other rows than {_rows_file(path).name}; run `align index` again")
    lists.prefetch_nthread = 0  # threads that read ahead, made for each search, cost more than they save


def write_rows(batches: Iterable[NDArray[np.float32]], path: Path, num_vectors: int) -> None:
    """Writes batches of (number, width) float32. Raises DataError unless they have `num_vectors` rows together."""
    num_written = 0
    with path.open("wb") as file:
        for batch in batches:
            if not num_written:
                header = {"descr": "<f2", "fortran_order": False, "shape": (num_vectors, batch.shape[1])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(batch, dtype="<f2").data)
            num_written += len(batch)
    require_number(num_written, num_vectors)


def open_rows(path: Path) -> NDArray[np.float16]:
    """Raises CorruptError unless the file is an array of float16 that is as long as its header says."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError) as error:
        raise CorruptError(f"{path}: not the rows of an index ({first_line(error)}); run `align index` again") from None
    if not isinstance(rows, np.memmap) or rows.dtype != np.float16 or rows.ndim != 2:
        raise CorruptError(f"{path}: not the rows of an index; run `align index` again")
    if hasattr(mmap, "MADV_RANDOM"):
        rows._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # rows here and there: reading ahead is waste
    return rows


def forget_pages(rows: NDArray[np.float16]) -> None:
    """Drops what was read from this process's memory; the kernel may keep it."""
    mapped = getattr(rows, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def require_number(found: int, wanted: int) -> None:
    """Raises DataError unless as many vectors were found as were announced."""
    if found != wanted:
        raise DataError(f"{found:,} vectors to index, not {wanted:,} as the manifest says; run `align shard` again")
