"""Whether a model tells who does what to whom: SugarCrepe, Winoground and ARO, from similarities to figures.

In all of them a right caption (or picture) has to be *strictly* nearer than each wrong one: a model that maps both to
one point is wrong. ARO's own code takes the first of equal scores, which is the right caption in the order sets and the
wrong one in the others; on real-valued scores both agree.

The interval resamples the images, as several rows share one, and the examples of Winoground.

Sources: Hsieh et al., SugarCrepe (2023); Thrush et al., Winoground (2022); Yuksekgonul et al., When and why
vision-language models behave like bags-of-words (2023).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Score
from align.evaluate.protocols.scoring import Figure, scores
from align.statistics.intervals import Scored

#: ARO leaves out pairs of attributes with fewer rows.
LEAST_ROWS_OF_ATTRIBUTE = 25


def in_groups(
    right: NDArray[np.floating],
    wrong: NDArray[np.floating],
    groups: Sequence[str],
    images: Sequence[Hashable],
    *,
    kept: Collection[str] | None = None,
    num_resamples: int,
    seed: int,
) -> dict[str, Score]:
    """SugarCrepe, and ARO's Visual Genome Relation and Attribution.

    `GROUP/accuracy` of each category (`add_att`, ...), relation or pair of attributes; `mean_per_group`; `accuracy`
    over all rows. ARO's own table has the mean. Of relations it leaves out those that are symmetric, of attributes
    those with fewer rows than LEAST_ROWS_OF_ATTRIBUTE.

    Args:
        right: (num_rows,) similarity of the image and its caption.
        wrong: (num_rows,) of the image and the changed caption.
        groups: (num_rows,).
        images: (num_rows,) the image of each row.
        kept: groups that have a figure of their own and are in the mean; None: all.

    Raises:
        DataError: as `choose_right`, the lengths differ, or no group is kept.
    """
    if right.ndim != 1 or right.shape != wrong.shape:
        raise DataError(f"{right.shape} similarities of right captions, {wrong.shape} of wrong ones")
    hits = choose_right(np.stack([right, wrong], axis=1))
    _fit(groups, hits)
    _fit(images, hits)
    of = np.asarray(groups)
    parts: Mapping[str, Scored] = {
        str(name): Scored(hits[of == name], [images[row] for row in np.flatnonzero(of == name).tolist()])
        for name in np.unique(of)
        if kept is None or name in kept
    }
    if not parts:
        name, number = Counter(groups).most_common(1)[0]
        raise DataError(f"no group is left for the mean; the largest, {name}, has {number:,} rows")
    figures = {f"{name}/accuracy": Figure([part], 1 / 2) for name, part in parts.items()}
    figures["accuracy"] = Figure([Scored(hits, images)], 1 / 2)
    figures["mean_per_group"] = Figure(list(parts.values()), 1 / 2)
    return scores(figures, num_resamples=num_resamples, seed=seed)


def choices(
    similarity: NDArray[np.floating], images: Sequence[Hashable], *, num_resamples: int, seed: int
) -> dict[str, Score]:
    """`accuracy`: the share of rows whose caption beats all others; ARO's COCO and Flickr30K Order have four others.

    Args:
        similarity: (num_rows, num_choices) of the image and its caption, then the wrong ones.
        images: (num_rows,) the image of each row: its rows are drawn together.

    Raises:
        DataError: as `choose_right`.
    """
    hits = choose_right(similarity)
    _fit(images, hits)
    figure = Figure([Scored(hits, images)], 1 / similarity.shape[1])
    return scores({"accuracy": figure}, num_resamples=num_resamples, seed=seed)


def winoground(similarity: NDArray[np.floating], *, num_resamples: int, seed: int) -> dict[str, Score]:
    """`text_score` (each image prefers its caption), `image_score` (each caption its image), `group_score` (both).

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
        for name, right, chance in (
            ("text_score", text, 1 / 4),
            ("image_score", image, 1 / 4),
            ("group_score", text & image, 1 / 6),
        )
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


def _fit(labels: Sequence[Hashable], hits: NDArray[np.float64]) -> None:
    if len(labels) != len(hits):
        raise DataError(f"{len(labels)} labels for {len(hits)} rows")


def _finite(similarity: NDArray[np.floating]) -> None:
    if not np.isfinite(similarity).all():
        raise DataError("similarities are not finite: the model's embeddings are broken; train it again")
