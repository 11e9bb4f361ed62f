"""Where the images of the raw tars are, by the key of their tar sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A tar sample is identified by 128 bits of a digest of its key.
_DIGEST = np.dtype("S16")
#: Where the image of a tar sample is: digest of its key, number of the tar, offset and size in bytes.
SPAN = np.dtype([("sample", _DIGEST), ("tar", np.int32), ("offset", np.int64), ("size", np.int64)])


def span_rows(samples: Iterable[tuple[str, int, int]], tar: int) -> NDArray[Any]:
    """(sample key, offset, bytes) of the images of one raw tar -> SPAN."""
    rows = [(_digest(key), tar, offset, size) for key, offset, size in samples]
    return np.array(rows, SPAN)


class ImageSpans:
    """Where the images of all raw tars are."""

    def __init__(self, spans: Iterable[NDArray[Any]]) -> None:
        rows = np.concatenate([np.empty(0, SPAN), *spans])
        order = np.argsort(rows["sample"], kind="stable")
        self._samples = rows["sample"][order]
        self._rows, self._order = rows, order

    def look_up(self, keys: list[str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The SPAN of each sample key, and whether there is such a sample."""
        digests = np.frombuffer(b"".join(map(_digest, keys)), _DIGEST)
        if len(self._samples) == 0:
            return np.zeros(len(keys), SPAN), np.zeros(len(keys), bool)
        index = np.minimum(np.searchsorted(self._samples, digests), len(self._samples) - 1)
        return self._rows[self._order[index]], self._samples[index] == digests


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
