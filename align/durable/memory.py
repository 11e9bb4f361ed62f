"""The memory of this process: keeps freed memory for the next step, and bounds what a block allocates."""

from __future__ import annotations

import ctypes
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: glibc's parameters: the free bytes at the end of the heap from which it returns them to the kernel; the size from
#: which a block is mapped by itself, and so returned when it is freed; and how many such blocks may exist.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


@contextmanager
def freed_memory_kept(at_most_bytes: int | None = None) -> Iterator[None]:
    """Keeps freed memory in the process during this block, for the next step to use, and returns it at the end.

    glibc returns large freed blocks to the kernel at once, so each step pays again for page faults on its pixels and
    activations: four fifths of the time to convert 64 images of 289 px to floats, an eighth of the time to measure
    texts. Keeping memory raises the peak by the gaps between kept blocks, 9 % there (benchmarks/README.md).
    With a bound, of 64 MiB or less, blocks of half of it or more are returned at once.
    Other C libraries have no such setting; there this does nothing.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    if at_most_bytes is None:
        libc.mallopt(_MMAP_MAX, 0)  # not a threshold: older versions refuse more than 32 MiB and would stay at 128 KiB
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    else:
        libc.mallopt(_MMAP_THRESHOLD, at_most_bytes // 2)
        libc.mallopt(_TRIM_THRESHOLD, at_most_bytes)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 1 << 16)
        # the largest values of glibc's own adjustment, which cannot be switched on again
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


#: The limit belongs to the process, so one thread holds it at a time; its blocks may be nested.
_bounding = threading.RLock()


@contextmanager
def allocating_at_most(num_bytes: int) -> Iterator[None]:
    """Bounds what the whole process allocates during this block in addition to what it has: for bytes that may lie.

    Only Linux counts a process's memory; elsewhere this does nothing.

    Raises:
        MemoryError: the block needed more.
    """
    statistics = Path("/proc/self/statm")
    if not statistics.is_file():
        yield
        return
    with _bounding:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        bound = int(statistics.read_text().split()[5]) * resource.getpagesize() + num_bytes
        limits = [limit for limit in (soft, hard, bound) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
