"""Where the images of the raw tars are, by the key of their tar sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Where the image of a tar sample is: 128 bits of a digest of its key, number of the tar, offset and size in bytes.
SPAN = {"sample": "S16", "tar": "i4", "offset": "i8", "size": "i8"}


def span_rows(samples: Iterable[tuple[str, int, int]], tar: int) -> NDArray[Any]:
    """(sample key, offset, bytes) of the images of one raw tar -> SPAN."""
    rows = [(_digest(key), tar, offset, size) for key, offset, size in samples]
    return np.array(rows, list(SPAN.items()))


def sample_digests(keys: Iterable[str]) -> NDArray[np.bytes_]:
    """What stands for sample keys in SPAN."""
    return np.frombuffer(b"".join(map(_digest, keys)), SPAN["sample"])


def look_up(spans: NDArray[Any], samples: NDArray[np.bytes_]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The SPAN of each sample, and whether there is such a sample. Of equal samples the first one counts."""
    if len(spans) == 0:
        return np.zeros(len(samples), spans.dtype), np.zeros(len(samples), bool)
    spans = spans[np.argsort(spans["sample"], kind="stable")]
    found = spans[np.minimum(np.searchsorted(spans["sample"], samples), len(spans) - 1)]
    return found, found["sample"] == samples


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
