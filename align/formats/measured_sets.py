"""The sets that `align evaluate` measures, and digests that tell whether two measurements are of the same items.

A set's digest covers its items (the pictures' bytes, texts, concepts, classes, splits, templates) and the code that
measures. Two models with equal digests of a set were asked the same queries about the same gallery in the same way.
The evaluation digest names all sets of a measurement.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from align.formats.evaluation_set import EvaluationImage, EvaluationSet, Unreadable
from align.formats.evaluation_sets.named import named_sets
from align.formats.shards import iter_samples
from align.interfaces.store import FetchTar, Files
from align.project.provenance import digest

#: What turns embeddings into figures, with all that it imports: the towers and the preprocessing, too.
_MEASURES = "align.evaluate.measure"
#: The set made of the test split.
TEST = "test"


def measured_sets(
    evaluation: Path, shards: Path, max_test_images: int, files: Files, fetch: FetchTar | None
) -> list[EvaluationSet]:
    """Every set of a checkout: those of `paths.evaluation`, and at most so many images of the test split.

    Files reads what a suite names; `fetch` gets tars that are not in `shards` but in an object store. Raises DataError,
    CorruptError, FormatError, ConfigError if a set or the shards are missing or damaged.
    """
    return [*named_sets(evaluation, files), *shards_test_set(shards, max_test_images, fetch)]


def shards_test_set(shards: Path, max_images: int, fetch: FetchTar | None) -> list[EvaluationSet]:
    """The first `max_images` images of the test split, as a retrieval set named `test`; no set if there is no image."""
    images = [
        EvaluationImage(sample.key, sample.key, sample.texts, None, "query")
        for sample in islice(iter_samples(shards, "test", fetch), max_images)
    ]

    def pictures(positions: Sequence[int]) -> Iterator[bytes | Unreadable]:
        wanted = set(positions)
        samples = islice(iter_samples(shards, "test", fetch), max(wanted, default=-1) + 1)
        yield from (sample.image for position, sample in enumerate(samples) if position in wanted)

    description = "held-out clusters of the training sources"
    return [EvaluationSet(TEST, "retrieval", description, images, (), (), pictures)] if images else []


def set_digests(sets: Iterable[EvaluationSet]) -> dict[str, str]:
    """Name -> digest, of the items with their pictures and of the code that measures them."""
    return {one.name: _set_digest(one, digest(_MEASURES)) for one in sets}


def _set_digest(one: EvaluationSet, code: str) -> str:
    total = hashlib.sha256(_line(code, one.name, one.kind, one.classes, one.templates, one.repeats))
    for image, picture in zip(one.images, one.digests, strict=True):
        total.update(_line(image.key, picture.hex(), image.concept, image.texts, image.label, image.split))
    return total.hexdigest()


def evaluation_digest(digests: Mapping[str, str]) -> str:
    """Hex sha256 that names sets by their digests: set -> digest."""
    return hashlib.sha256(_line(sorted(digests.items()))).hexdigest()


def _line(*values: object) -> bytes:
    return json.dumps(values, ensure_ascii=True).encode() + b"\n"
