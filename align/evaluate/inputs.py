"""What `align evaluate` reads in addition to the evaluation sets: the test split as a set."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from align.formats.evaluation_set import EvaluationImage, EvaluationSet
from align.formats.shards import iter_samples


def shards_test_set(shards: Path, max_images: int) -> list[EvaluationSet]:
    """The first `max_images` images of the test split, as a retrieval set named `test`; no set if there is no image."""
    images = [
        EvaluationImage(sample.key, sample.image, sample.key, sample.texts, None, None, "query")
        for sample in islice(iter_samples(shards, "test"), max_images)
    ]
    description = "held-out clusters of the training sources"
    return [EvaluationSet("test", "retrieval", description, images, (), ())] if images else []
