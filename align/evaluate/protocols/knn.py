"""Nearest-neighbour classification: the label of the nearest reference image (paper section 6, ImageNet kNN).

References are read once and in order, some thousands at a time, and may be a file that is mapped into memory: 50,000
queries against 1.28 million references, 640 wide, take 0.2 GB besides that file.

Ties: if references of two labels are equally near and none is nearer, the answer is `UNDECIDED`, which is wrong
whatever the label. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.evaluate.protocols.labelled import UNDECIDED, Labelled, require_one_width
from align.evaluate.protocols.recall import Direction

#: Similarities that are in memory at once: queries x references, 16 MB of float32.
_QUERIES_AT_ONCE, _REFERENCES_AT_ONCE = 1024, 4096


def nearest(queries: Labelled, references: Labelled) -> NDArray[np.int64]:
    """The label of the nearest reference of each query.

    Args:
        queries: L2-normalised; their labels are not looked at.
        references: L2-normalised, of the same width.

    Returns:
        (num_queries,) labels, or `UNDECIDED`.

    Raises:
        DataError: a feature is NaN or infinite, or the widths differ.
    """
    require_one_width(queries, references)
    asked = queries.rows(slice(None))
    best = np.full(len(queries), -np.inf, dtype=np.float32)
    answers = np.full(len(queries), UNDECIDED, dtype=np.int64)
    for start, some in references.parts(_REFERENCES_AT_ONCE):
        labels = references.labels[start : start + len(some)]
        for first in range(0, len(queries), _QUERIES_AT_ONCE):
            part = slice(first, first + _QUERIES_AT_ONCE)
            similarity = asked[part] @ some.T
            at = similarity.argmax(axis=1)
            top, found = np.take_along_axis(similarity, at[:, None], axis=1)[:, 0], labels[at]
            rivals = (similarity == top[:, None]) & (labels != found[:, None])
            found = np.where(rivals.any(axis=1), UNDECIDED, found)
            level = (top == best[part]) & (found != answers[part])
            answers[part] = np.where(level, UNDECIDED, np.where(top > best[part], found, answers[part]))
            best[part] = np.maximum(best[part], top)
    return answers


def nearest_neighbour(
    query_embeds: NDArray[Any],
    query_labels: Sequence[int],
    reference_embeds: NDArray[Any],
    reference_labels: Sequence[int],
    clusters: Sequence[Hashable],
) -> Direction:
    """`nearest` as ranks; accuracy is recall@1.

    The rank of a query is 1 if the answer is right, and 2, which stands for any later one, if not. A query whose label
    no reference has counts as wrong. Chance is the share of references with the query's label.

    Args:
        query_embeds: (num_queries, width), L2-normalised.
        query_labels: (num_queries,).
        reference_embeds: (num_references, width), L2-normalised.
        reference_labels: (num_references,).
        clusters: (num_queries,) the concept of each query.

    Raises:
        DataError: a feature is NaN or infinite, or shapes do not fit together.
    """
    queries = Labelled("queries", query_embeds, np.asarray(query_labels))
    references = Labelled("references", reference_embeds, np.asarray(reference_labels))
    right = nearest(queries, references) == queries.labels
    size = max(queries.labels.max(), references.labels.max()) + 1
    num_correct = np.bincount(references.labels, minlength=size)[queries.labels]
    ranks = np.where(num_correct == 0, len(references) + 1, np.where(right, 1, 2)).astype(np.int64)
    return Direction(ranks, num_correct.tolist(), len(references), clusters)
