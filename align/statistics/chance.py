"""The recall that is expected: of a random order, which is shown with every measured recall, and of ties."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def chance(num_correct: NDArray[np.int64] | Sequence[int], num_items: int, k: int) -> float:
    """Expected recall@k of a random order, averaged over queries; in [0, 1].

    A query with r correct items among n has none in the first k with probability C(n - r, k) / C(n, k) (exact,
    hypergeometric): as if all items tied.

    Args:
        num_correct: (num_queries,) the r of each query.
        num_items: n.
        k: at most n is used.
    """
    right = np.asarray(num_correct, dtype=np.int64)
    wrong = num_items - right
    return float(expected_hits(wrong + 1, np.stack([wrong, right], axis=1), k).mean())


def expected_hits(ranks: NDArray[np.int64], ties: NDArray[np.int64] | None, k: int) -> NDArray[np.float64]:
    """The probability that a right item is among the first k, if items of equal similarity come in random order.

    Args:
        ranks: (num_queries,) of the best right item, from 1, behind all wrong items of its similarity.
        ties: (num_queries, 2) of how many wrong and how many right items that similarity is; None: wrong ones never
            tie, so that the answer is 0 or 1.
        k: the cut.
    """
    if ties is None:
        return (ranks <= k).astype(np.float64)
    wrong, right = ties.T
    places = np.minimum(k - (ranks - 1 - wrong), wrong + right)  # among the first k, for items of this similarity
    missed = np.ones(len(ranks))
    for taken in range(int(places.max(initial=0))):  # each place by a wrong item
        missed *= np.where(taken < places, np.maximum(wrong - taken, 0) / np.maximum(wrong + right - taken, 1), 1.0)
    return 1.0 - missed
