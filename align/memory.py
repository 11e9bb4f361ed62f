"""Memory that is kept from step to step."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

#: glibc's parameters: the end of the heap beyond a size is given back when freed, and so are blocks from another on,
#: of which there are so many at most.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


@contextmanager
def freed_memory_kept(at_most_bytes: int | None = None) -> Iterator[None]:
    """What is freed in this block stays with the process, for the next step to take, and is given back after it.

    glibc gives large blocks back to the kernel at once, and each step's pixels and activations are then page faults
    anew: four fifths of the time that making floats of 64 images of 289 px takes, an eighth of measuring texts. Peak
    memory grows by what lies between blocks that are kept, 9 % there (`benchmarks/kept_memory.py`). Other C
    libraries have no such switch, and are left as they are.

    Args:
        at_most_bytes: so much, 64 MiB or less, and no blocks of half of it or more; None: everything.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    if at_most_bytes is None:
        libc.mallopt(_MMAP_MAX, 0)  # no threshold: older ones refuse more than 32 MiB, and would stay at 128 KiB then
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    else:
        libc.mallopt(_MMAP_THRESHOLD, at_most_bytes // 2)
        libc.mallopt(_TRIM_THRESHOLD, at_most_bytes)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, 1 << 16)
        # where glibc's own adjustment of both ends: it cannot be switched on again
        libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)
