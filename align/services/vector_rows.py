"""Rows of float16 in a file of numpy's format, memory-mapped: what an approximate index scores its candidates with."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from align.errors import CorruptError, DataError


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
        raise CorruptError(f"{path}: not the rows of an index ({one_line(error)}); run `align index` again") from None
    if not isinstance(rows, np.memmap) or rows.dtype != np.float16 or rows.ndim != 2:
        raise CorruptError(f"{path}: not the rows of an index; run `align index` again")
    if hasattr(mmap, "MADV_RANDOM"):
        rows._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # rows here and there: reading ahead is waste
    return rows


def forget_pages(rows: NDArray[np.float16]) -> None:
    """Takes what was read out of this process's memory; the kernel may keep it."""
    mapped = getattr(rows, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def require_number(found: int, wanted: int) -> None:
    """Raises DataError unless as many vectors were found as were announced."""
    if found != wanted:
        raise DataError(f"{found:,} vectors to index, not {wanted:,} as the manifest says; run `align shard` again")


def one_line(error: Exception) -> str:
    """The first line of an error of a library."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
