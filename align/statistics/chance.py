"""The recall of a random order, which is shown with every measured recall."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray


def chance(num_correct: NDArray[np.int64] | Sequence[int], num_items: int, k: int) -> float:
    """Expected recall@k of a random order, averaged over queries; in [0, 1].

    A query with r correct items among n has none in the first k with probability C(n - r, k) / C(n, k) (exact,
    hypergeometric).

    Args:
        num_correct: (num_queries,) the r of each query.
        num_items: n.
        k: at most n is used.
    """
    k = min(k, num_items)
    draws = comb(num_items, k)
    return float(np.mean([1 - comb(num_items - int(right), k) / draws for right in num_correct]))
