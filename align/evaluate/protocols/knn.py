"""Nearest-neighbour classification: the label of the nearest reference image (paper section 6, ImageNet kNN).

The paper's is `nearest`: recall@1 over all training images of ImageNet. `weighted_vote` is an option that others
report: the k nearest vote, each with weight exp(cosine / temperature) (Wu et al., "Unsupervised Feature Learning via
Non-Parametric Instance Discrimination", CVPR 2018: k = 200, temperature 0.07).

References are read once and in order, some thousands at a time, and may be a file that is mapped into memory: 50,000
queries against 1.28 million references, 640 wide, take 0.2 GB besides that file.

Ties: if references of two labels are equally near and none is nearer, or two labels get the same vote, the answer is
`UNDECIDED`, which is wrong whatever the label. Among equally near references at the border of the k nearest, earlier
ones vote. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.labelled import UNDECIDED, Labelled, require_one_width
from align.evaluate.protocols.recall import Direction

#: Similarities that are in memory at once: queries x references, 16 MB of float32.
QUERIES, REFERENCES = 1024, 4096
#: Wu et al., section 3.4.
K, TEMPERATURE = 200, 0.07


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
    for start, some in references.parts(REFERENCES):
        labels = references.labels[start : start + len(some)]
        for first in range(0, len(queries), QUERIES):
            part = slice(first, first + QUERIES)
            similarity = asked[part] @ some.T
            at = similarity.argmax(axis=1)
            top, found = np.take_along_axis(similarity, at[:, None], axis=1)[:, 0], labels[at]
            rivals = (similarity == top[:, None]) & (labels != found[:, None])
            found = np.where(rivals.any(axis=1), UNDECIDED, found)
            level = (top == best[part]) & (found != answers[part])
            answers[part] = np.where(level, UNDECIDED, np.where(top > best[part], found, answers[part]))
            best[part] = np.maximum(best[part], top)
    return answers


def weighted_vote(
    queries: Labelled, references: Labelled, *, k: int = K, temperature: float = TEMPERATURE
) -> NDArray[np.int64]:
    """The label with the largest vote among the k nearest references of each query.

    Args:
        queries: L2-normalised; their labels are not looked at.
        references: L2-normalised, of the same width.
        k: how many vote; all of them if there are fewer.
        temperature: divides the cosine; the smaller, the more the nearest one decides.

    Returns:
        (num_queries,) labels, or `UNDECIDED`.

    Raises:
        DataError: a feature is NaN or infinite, the widths differ, or k or temperature is not positive.
    """
    require_one_width(queries, references)
    if k < 1 or not temperature > 0:
        raise DataError(f"k-NN: k is {k}, temperature {temperature}; both must be positive")
    k = min(k, len(references))
    asked = queries.rows(slice(None))
    kept = np.full((len(queries), k), -np.inf, dtype=np.float32)
    voters = np.zeros((len(queries), k), dtype=np.int32)
    for start, some in references.parts(REFERENCES):
        labels = references.labels[start : start + len(some)].astype(np.int32)
        for first in range(0, len(queries), QUERIES):
            part = slice(first, first + QUERIES)
            _keep_nearest(asked[part] @ some.T, labels, kept[part], voters[part])
    num_classes = int(references.labels.max()) + 1
    answers = [
        _vote(kept[first : first + QUERIES], voters[first : first + QUERIES], num_classes, temperature)
        for first in range(0, len(queries), QUERIES)
    ]
    return np.concatenate(answers)


def _keep_nearest(
    similarity: NDArray[np.float32], labels: NDArray[np.int32], kept: NDArray[np.float32], voters: NDArray[np.int32]
) -> None:
    """Merges a block into the k nearest so far (num_queries, k), which are sorted and changed in place."""
    k = kept.shape[1]
    floor = kept[:, -1:]
    if similarity.shape[1] > k and np.isneginf(floor).any():  # the first block: no candidate is below its own k-th
        floor = np.nextafter(np.partition(similarity, -k, axis=1)[:, [-k]], np.float32(-np.inf))
    rows, columns = np.nonzero(similarity > floor)
    changed = np.unique(rows)
    if not len(changed):
        return
    of = np.concatenate([np.repeat(changed, k), rows])
    near = np.concatenate([kept[changed].ravel(), similarity[rows, columns]])
    who = np.concatenate([voters[changed].ravel(), labels[columns]])
    order = np.lexsort((-near, of))  # stable: earlier references come first among equals
    starts = np.searchsorted(of[order], changed)
    chosen = order[starts[:, None] + np.arange(k)]
    kept[changed], voters[changed] = near[chosen], who[chosen]


def _vote(
    kept: NDArray[np.float32], voters: NDArray[np.int32], num_classes: int, temperature: float
) -> NDArray[np.int64]:
    weights = np.exp((kept.astype(np.float64) - kept[:, :1]) / temperature)
    votes = np.zeros((len(kept), num_classes))
    np.add.at(votes, (np.arange(len(kept))[:, None], voters), weights)
    answers = votes.argmax(axis=1).astype(np.int64)
    top = votes.max(axis=1, keepdims=True)
    return np.where(np.count_nonzero(votes == top, axis=1) > 1, UNDECIDED, answers)


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
