"""Measures a compositional set: SugarCrepe, Winoground, or ARO; see `align.evaluate.protocols.compositional`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.answered import Answered
from align.evaluate.embed import Towers, embed_pictures, finite
from align.evaluate.protocols.compositional import (
    LEAST_ROWS_OF_ATTRIBUTE,
    choices,
    choose_right,
    in_groups,
    winoground,
)
from align.evaluate.protocols.recall import Score
from align.formats.evaluation_set import Choice, Choices, EvaluationSet
from align.model.embedder import Embeddings

#: Rows whose embeddings are gathered at once.
_BLOCK = 1024


def measure_choices(
    whole: EvaluationSet, towers: Towers, *, num_resamples: int, seed: int, kept: Path | None = None
) -> Answered:
    """Measures a compositional set. Rows of a picture that cannot be shown to the model are left out.

    Raises:
        DataError: no row can be asked, or the embeddings are not finite.
    """
    asked = whole.choices
    if asked is None or not asked.rows:
        raise DataError(f"evaluation set {whole.name}: no row in it")
    positions, embeds, faults = embed_pictures(whole, towers, kept)
    place = {position: index for index, position in enumerate(positions)}
    rows = [row for row in asked.rows if all(image in place for image in row.images)]
    if not rows:
        raise DataError(f"evaluation set {whole.name}: no row has pictures that can be shown to the model")
    left_out = {
        row.key: f"{whole.images[image].key}: {faults[image]}"
        for row in asked.rows for image in row.images if image in faults
    }  # fmt: skip
    texts = {text: index for index, text in enumerate(dict.fromkeys(text for row in rows for text in row.texts))}
    text_embeds = finite(towers.embed_texts(texts), whole.name)
    images = np.array([[place[image] for image in row.images] for row in rows])
    of_row = np.array([[texts[text] for text in row.texts] for row in rows])
    similarity = _similarities(embeds, images, text_embeds, of_row)
    how: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    leave_out = frozenset(whole.asked.leave_out) if whole.asked is not None else frozenset()
    clusters = [whole.images[row.images[0]].concept for row in rows]
    if leave_out and leave_out.isdisjoint(row.group for row in rows):  # published lists name others, too
        raise DataError(
            f"evaluation set {whole.name}: leave_out: it has no rows of any of {', '.join(sorted(leave_out)[:5])}"
        )
    found = _scores(asked, rows, similarity, clusters, leave_out, how)
    groups = {} if asked.protocol == "winoground" else _groups(rows, choose_right(similarity[:, 0]))
    if asked.protocol != "sugarcrepe":  # of relations there are many: they are a table, and no metrics
        found = {name: score for name, score in found.items() if "/" not in name}
    source = whole.select(positions)
    return Answered(source, found, len(texts), groups, {**whole.unusable, **left_out})


def _scores(
    asked: Choices,
    rows: Sequence[Choice],
    similarity: NDArray[np.floating],
    clusters: Sequence[str],
    leave_out: frozenset[str],
    how: dict[str, Any],
) -> dict[str, Score]:
    if asked.protocol == "winoground":
        return winoground(similarity.transpose(0, 2, 1), **how)
    of_image, groups = similarity[:, 0], Counter(row.group for row in rows)
    if asked.protocol == "order" or not any(groups):  # the hub's copies name no groups
        return choices(of_image, clusters, **how)
    least = LEAST_ROWS_OF_ATTRIBUTE if asked.protocol == "attribution" else 1
    kept = {name for name, number in groups.items() if number >= least} - leave_out
    return in_groups(of_image[:, 0], of_image[:, 1], [row.group for row in rows], clusters, kept=kept, **how)


def _groups(rows: Sequence[Choice], hits: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Each group's rows and accuracy; none where the rows have no groups."""
    of = np.array([row.group for row in rows])
    return {
        str(name): {"num_rows": int((of == name).sum()), "accuracy": round(float(hits[of == name].mean()), 6)}
        for name in np.unique(of)
        if name
    }


def _similarities(
    image_embeds: Embeddings, images: NDArray[np.int64], text_embeds: Embeddings, texts: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(num_rows, images of a row, texts of a row); equal embeddings have equal ones, whatever the row."""
    found = np.empty((len(images), images.shape[1], texts.shape[1]), dtype=np.float32)
    for start in range(0, len(images), _BLOCK):
        part = slice(start, start + _BLOCK)
        np.einsum("niw,ntw->nit", image_embeds[images[part]], text_embeds[texts[part]], out=found[part])
    return found
