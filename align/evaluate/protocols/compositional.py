"""Whether a model tells who does what to whom: SugarCrepe, Winoground and ARO, from similarities to figures.

In all of them a right caption (or picture) has to be *strictly* nearer than each wrong one: a model that maps both to
one point is wrong. ARO's own code takes the first of equal scores, which is the right caption in the order sets and the
wrong one in the others; on real-valued scores both agree.

The interval resamples the images where several rows share one, and the examples of Winoground.

Sources: Hsieh et al., SugarCrepe (2023); Thrush et al., Winoground (2022); Yuksekgonul et al., When and why
vision-language models behave like bags-of-words (2023).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Score
from align.evaluate.protocols.scoring import Figure, scores
from align.intervals import Scored

#: ARO leaves out pairs of attributes with fewer rows.
LEAST_ROWS_OF_ATTRIBUTE = 25


def sugar_crepe(
    right: NDArray[np.floating],
    wrong: NDArray[np.floating],
    categories: Sequence[str],
    images: Sequence[Hashable],
    *,
    num_resamples: int,
    seed: int,
) -> dict[str, Score]:
    """The accuracy of each category (`add_att`, ...), `accuracy` over all rows, `mean` over the categories.

    Args:
        right: (num_rows,) similarity of the image and its caption.
        wrong: (num_rows,) of the image and the changed caption.
        categories: (num_rows,).
        images: (num_rows,) the image of each row.

    Raises:
        DataError: as `choose_right`, or the lengths differ.
    """
    hits = choose_right(np.stack(_same(right, wrong), axis=1))
    return _by_group(hits, categories, images, 0.5, least=1, num_resamples=num_resamples, seed=seed)


def aro_pairs(
    right: NDArray[np.floating],
    wrong: NDArray[np.floating],
    relations: Sequence[str],
    images: Sequence[Hashable],
    *,
    least: int = 1,
    num_resamples: int,
    seed: int,
) -> dict[str, Score]:
    """Visual Genome Relation and Attribution: accuracy of each relation, their `mean`, `accuracy` over all rows.

    `mean` is the figure of the paper's table. Its authors take the mean for relations over those that are not
    symmetric: give their rows only.

    Args:
        right: (num_rows,) similarity of the image and the true caption.
        wrong: (num_rows,) of the image and the swapped caption.
        relations: (num_rows,) the relation, or the pair of attributes, of each row.
        images: (num_rows,) the image of each row.
        least: relations with fewer rows are left out of `mean` and of the table: LEAST_ROWS_OF_ATTRIBUTE for pairs of
            attributes.

    Raises:
        DataError: as `sugar_crepe`, or no relation has that many rows.
    """
    hits = choose_right(np.stack(_same(right, wrong), axis=1))
    return _by_group(hits, relations, images, 0.5, least=least, num_resamples=num_resamples, seed=seed)


def aro_order(
    similarity: NDArray[np.floating], images: Sequence[Hashable], *, num_resamples: int, seed: int
) -> dict[str, Score]:
    """COCO and Flickr30K Order: `accuracy`, the share of rows whose caption beats its four shuffled forms.

    Args:
        similarity: (num_rows, 5) of the image and its caption, then the shuffled ones.
        images: (num_rows,) the image of each row: those of five captions are drawn together.

    Raises:
        DataError: as `choose_right`.
    """
    hits = choose_right(similarity)
    _fit(images, hits)
    figure = Figure([Scored(hits, images)], 1 / similarity.shape[1])
    return scores({"accuracy": figure}, num_resamples=num_resamples, seed=seed)


def winoground(similarity: NDArray[np.floating], *, num_resamples: int, seed: int) -> dict[str, Score]:
    """`text` (each image prefers its caption), `image` (each caption prefers its image), `group` (both).

    Args:
        similarity: (num_examples, 2, 2), of caption c and image i at [:, c, i]; caption and image of one number belong
            together.

    Raises:
        DataError: another shape, or a similarity is not finite.
    """
    if similarity.ndim != 3 or similarity.shape[1:] != (2, 2):
        raise DataError(f"similarities {similarity.shape}: Winoground has two captions and two images an example")
    _finite(similarity)
    own0, own1 = similarity[:, 0, 0], similarity[:, 1, 1]
    caption0_image1, caption1_image0 = similarity[:, 0, 1], similarity[:, 1, 0]
    text = (own0 > caption1_image0) & (own1 > caption0_image1)
    image = (own0 > caption0_image1) & (own1 > caption1_image0)
    examples = range(len(similarity))
    # Of the 24 orders of the four, 6 are right for text, 6 for image, and 4 (both of one's own first) for both.
    figures = {
        name: Figure([Scored(right.astype(np.float64), examples)], chance)
        for name, right, chance in (("text", text, 1 / 4), ("image", image, 1 / 4), ("group", text & image, 1 / 6))
    }
    return scores(figures, num_resamples=num_resamples, seed=seed)


def choose_right(similarity: NDArray[np.floating]) -> NDArray[np.float64]:
    """(num_rows,) 1.0 where the first of (num_rows, num_choices) is strictly greater than all others.

    Raises:
        DataError: there is no row or one choice only, or a similarity is not finite.
    """
    if similarity.ndim != 2 or similarity.shape[1] < 2 or not len(similarity):
        raise DataError(f"similarities {similarity.shape}: expected rows with two or more choices")
    _finite(similarity)
    hits: NDArray[np.float64] = (similarity[:, 0] > similarity[:, 1:].max(axis=1)).astype(np.float64)
    return hits


def _by_group(
    hits: NDArray[np.float64],
    groups: Sequence[str],
    clusters: Sequence[Hashable],
    chance: float,
    *,
    least: int,
    num_resamples: int,
    seed: int,
) -> dict[str, Score]:
    _fit(groups, hits)
    _fit(clusters, hits)
    of = np.asarray(groups)
    names, counts = np.unique(of, return_counts=True)
    parts: Mapping[str, Scored] = {
        str(name): Scored(hits[of == name], [clusters[int(row)] for row in np.flatnonzero(of == name)])
        for name in names[counts >= least]
    }
    if not parts:
        raise DataError(f"no group has {least} rows; the largest has {counts.max()}")
    if reserved := {"accuracy", "mean"} & set(parts):
        raise DataError(f"a group is named {', '.join(sorted(reserved))}, as a figure over all of them")
    figures = {name: Figure([part], chance) for name, part in parts.items()}
    figures["accuracy"] = Figure([Scored(hits, clusters)], chance)
    figures["mean"] = Figure(list(parts.values()), chance)
    return scores(figures, num_resamples=num_resamples, seed=seed)


def _same(right: NDArray[np.floating], wrong: NDArray[np.floating]) -> tuple[NDArray[np.floating], ...]:
    if right.ndim != 1 or right.shape != wrong.shape:
        raise DataError(f"{right.shape} similarities of right captions, {wrong.shape} of wrong ones")
    return right, wrong


def _fit(labels: Sequence[Hashable], hits: NDArray[np.float64]) -> None:
    if len(labels) != len(hits):
        raise DataError(f"{len(labels)} labels for {len(hits)} rows")


def _finite(similarity: NDArray[np.floating]) -> None:
    if not np.isfinite(similarity).all():
        raise DataError("similarities are not finite: the model's embeddings are broken; train it again")
