"""The pairs of the sample that were labelled by eye, and which of them the rule matches."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.config.filter import FilterConfig
from align.filter.near_duplicates import (
    Fingerprints,
    matches_by_embedding,
    matches_by_hash,
    read_embeddings,
    write_embeddings,
)
from align.pairs.perceptual_hash import image_signals
from align.services.vector_index import RangeIndex
from tests.support.near_duplicates.pictures import MAX_PIXELS
from tests.support.params import load_params

Same = Literal["copy", "mirrored", "no"]


@dataclass(frozen=True)
class LabelledPair:
    """A row of labelled_pairs.csv; docs/near-duplicates.md says what `same` means.

    Attributes:
        cosine: when it was labelled.
    """

    same: Same
    cosine: float
    evaluation: str
    image_id: str
    url: str
    note: str


def labelled_pairs():
    with Path(__file__).with_name("labelled_pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = [LabelledPair(**(row | {"cosine": float(row["cosine"])})) for row in csv.DictReader(file)]
    assert {row.same for row in rows} == {"copy", "mirrored", "no"}
    return rows


def found_by_embedding(pictures, references, network, folder):
    """(image_id, evaluation image) -> cosine, for pairs above the cut."""
    config = load_params().section(FilterConfig)
    views = folder / "views.arrow"
    rows = ((row.name, row.embedding) for row in network.measure(pictures.items(), max_pixels=MAX_PIXELS))
    write_embeddings(views, network.views(references.items(), max_pixels=MAX_PIXELS), network.width)
    seen = read_embeddings(views)
    RangeIndex.write(seen.vectors, folder / "views.faiss")
    find = RangeIndex(folder / "views.faiss").above
    matches = matches_by_embedding(rows, seen, find, config.near_duplicate_cosine_above)
    return {(match.image_id, match.reference): match.cosine for match in matches}


def found_by_hash(pictures, references):
    """(image_id, evaluation image) by perceptual hash and thumbnail."""
    left, right = (
        Fingerprints.of((name, image_signals(data, MAX_PIXELS)) for name, data in images.items())
        for images in (pictures, references)
    )
    matches = matches_by_hash(left, right)
    return {(left.owners[a], right.owners[b]) for a, b in matches}
