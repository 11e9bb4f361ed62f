"""What a random order would reach: the figure beside which every measured one is shown."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray


def chance(num_correct: NDArray[np.int64] | Sequence[int], num_items: int, k: int) -> float:
    """Expected recall@k of a random order, averaged over queries.

    A query with r correct items among n misses with probability C(n - r, k) / C(n, k) (hypergeometric, exact).
    """
    k = min(k, num_items)
    draws = comb(num_items, k)
    return float(np.mean([1 - comb(num_items - int(right), k) / draws for right in num_correct]))
