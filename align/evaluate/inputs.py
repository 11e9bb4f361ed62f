"""What `align evaluate` reads beside the evaluation sets: the filter's held-out pairs and the test split, as sets."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from align.formats.evaluation_set import HELD_OUT, EvaluationImage, EvaluationSet, load_sets
from align.formats.shards import iter_samples


def held_out_sets(filtered: Path) -> list[EvaluationSet]:
    """The set `held_out` that the filter wrote beside its decisions; none if it held out nothing.

    Raises:
        DataError, CorruptError, FormatError: as `load_sets`.
    """
    folder = filtered / HELD_OUT
    return load_sets(folder) if folder.is_dir() else []


def shards_test_set(shards: Path, max_images: int) -> list[EvaluationSet]:
    """The first `max_images` images of the test split, as a retrieval set named `test`; no set if there is no image."""
    images = [
        EvaluationImage(sample.key, sample.image, sample.key, sample.texts, None, None, "query")
        for sample in islice(iter_samples(shards, "test"), max_images)
    ]
    description = "held-out clusters of the training sources"
    return [EvaluationSet("test", "retrieval", description, images, (), ())] if images else []
