"""Image + text queries (paper section 7), and how well an answer fits labelled ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from align.formats.labelled_queries import names


def share_named(images: Sequence[Iterable[str]], expected: Sequence[str]) -> float:
    """Share in [0, 1] of images, each given by its texts, with a text that names an expected word; 0 for no image."""
    return sum(names(texts, expected) for texts in images) / len(images) if images else 0.0


def compose(
    image: NDArray[np.float32],
    *,
    plus: NDArray[np.float32] | None = None,
    minus: NDArray[np.float32] | None = None,
    text_weight: float,
) -> NDArray[np.float32]:
    """An image with a text added or taken away: image + text_weight x plus - text_weight x minus, normalised again.

    Args:
        image: (width,), L2-normalised.
        plus: (width,), L2-normalised.
        minus: (width,), L2-normalised.
        text_weight: 2 in the paper.

    Returns:
        (width,) float32, L2-normalised.

    Raises:
        ValueError: the sum is zero, so it has no direction.
    """
    total = image.astype(np.float64)
    if plus is not None:
        total = total + text_weight * plus
    if minus is not None:
        total = total - text_weight * minus
    norm = np.linalg.norm(total)
    if not norm > 0:
        raise ValueError("image and text cancel each other out")
    return np.asarray(total / norm, dtype=np.float32)
