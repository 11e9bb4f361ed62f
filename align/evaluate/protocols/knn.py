"""Nearest-neighbour classification: the label of the nearest reference image (paper section 6, ImageNet kNN)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from align.evaluate.protocols.recall import Direction, ranks_by_embedding


def nearest_neighbour(
    query_embeds: NDArray[np.float32],
    query_labels: Sequence[int],
    reference_embeds: NDArray[np.float32],
    reference_labels: Sequence[int],
    clusters: Sequence[str],
) -> Direction:
    """Ranks of the nearest reference image with the right label; accuracy is recall@1.

    Among equally near references, one with a wrong label ranks first. A query whose label no reference has counts as
    wrong. Chance is the share of references with the query's label.

    Args:
        query_embeds: (num_queries, width), L2-normalised.
        query_labels: (num_queries,).
        reference_embeds: (num_references, width), L2-normalised.
        reference_labels: (num_references,).
        clusters: (num_queries,) the concept of each query.
    """
    labels = np.asarray(reference_labels, dtype=np.int64)
    same = {label: np.flatnonzero(labels == label) for label in set(query_labels)}
    correct = [same[label] for label in query_labels]
    ranks = ranks_by_embedding(query_embeds, reference_embeds, correct)
    return Direction(ranks, [len(items) for items in correct], len(labels), clusters)
