"""Rows of numbers in buckets: what does not fit in memory is divided by a number, and read a bucket at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Rows that are to be in one bucket, more or less: with what is computed from them they take half a gigabyte.
ROWS_AT_ONCE = 1 << 22
#: Bytes that wait in memory until they are written, so that small data needs no files.
_BUFFER_BYTES = 1 << 25
#: 2^64 divided by the golden ratio: multiplied by it, numbers spread over all buckets.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)

Numbers = NDArray[np.integer[Any]]


class Buckets:
    """Rows, in the order in which they came to their bucket.

    Args:
        folder: of the files, `NAME-NNNNN`.
        name: of the rows.
        fields: name -> numpy type.
        count: how many buckets there are.
    """

    def __init__(self, folder: Path, name: str, fields: Mapping[str, str], count: int) -> None:
        self.count = count
        self._dtype = np.dtype(list(fields.items()))
        self._folder, self._name = folder, name
        self._waiting: list[list[NDArray[Any]]] = [[] for _ in range(count)]
        self._num_waiting = 0

    def add(self, bucket: Numbers | int, **columns: NDArray[Any]) -> None:
        """Adds rows to their buckets: one for each row, or one for all."""
        rows = np.empty(len(next(iter(columns.values()))), self._dtype)
        for name, column in columns.items():
            rows[name] = column
        if isinstance(bucket, int):
            self._waiting[bucket].append(rows)
        elif len(rows):
            order = np.argsort(bucket, kind="stable")
            rows, bucket = rows[order], bucket[order]
            starts = np.flatnonzero(np.diff(bucket, prepend=-1))
            for number, some in zip(bucket[starts].tolist(), np.split(rows, starts[1:]), strict=True):
                self._waiting[number].append(some)
        self._num_waiting += rows.nbytes
        if self._num_waiting > _BUFFER_BYTES:
            self._write()

    def take(self, bucket: int, *, keep: bool = False) -> NDArray[Any]:
        """The rows of a bucket, which forgets them unless it is to keep them."""
        path = self._path(bucket)
        stored = [np.fromfile(path, self._dtype)] if path.exists() else []
        rows = np.concatenate([np.empty(0, self._dtype), *stored, *self._waiting[bucket]])
        if not keep:
            path.unlink(missing_ok=True)
            self._waiting[bucket] = []
        return rows

    def _write(self) -> None:
        for bucket, waiting in enumerate(self._waiting):
            if waiting:
                with self._path(bucket).open("ab") as file:
                    file.writelines(rows.data for rows in waiting)
        self._waiting = [[] for _ in range(self.count)]
        self._num_waiting = 0

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{self._name}-{bucket:05d}"


def num_buckets(num_rows: int) -> int:
    """How many buckets these rows need; at least 1."""
    return -(-num_rows // ROWS_AT_ONCE) or 1


def by_hash(values: NDArray[np.uint64], count: int) -> Numbers:
    """A bucket of each value, equal for equal ones, however values are distributed."""
    return in_order(values * _SPREAD, count)


def in_order(values: NDArray[np.uint64], count: int) -> Numbers:
    """A bucket of each value; larger values have no smaller bucket. For values that are spread evenly, as digests."""
    return ((values >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)
