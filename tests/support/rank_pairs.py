"""Pairs of models by simulation: ranks of clustered queries in several sets, of models that are equally good or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.formats.query_ranks import IMAGE_TO_TEXT, KNN, TEXT_TO_IMAGE, ZERO_SHOT, QueryRanks, Ranked

#: What a concept, a concept for one model, a query, and a query for one model add to how well a query is answered.
CONCEPT, CONCEPT_OF_MODEL, QUERY, QUERY_OF_MODEL = 1.2, 0.6, 0.6, 0.8


@dataclass(frozen=True)
class SimulatedSet:
    """A set: its concepts by number (sets may share some), queries per concept and protocol, size of the gallery."""

    name: str
    concepts: Sequence[int]
    per_concept: int
    num_items: int
    protocols: tuple[str, ...] = (IMAGE_TO_TEXT, TEXT_TO_IMAGE)
    num_classes: int = 0


#: As the demo's: `classes` shares concepts with the others.
SETS = (
    SimulatedSet("concepts", range(200), 3, 600),
    SimulatedSet("vendor", range(200, 500), 1, 300),
    SimulatedSet("classes", range(100, 400), 1, 20, (ZERO_SHOT, KNN), 20),
)
FEW = (SimulatedSet("few", range(12), 4, 40),)


def pair(rng, sets=SETS, better=0.0):
    """A candidate and a champion that were asked the same queries of these sets; the candidate answers each query so
    much better. 0: they differ by chance only.
    """
    num_concepts = 1 + max(max(one.concepts) for one in sets)
    concepts = rng.normal(0, CONCEPT, num_concepts)
    of_model = rng.normal(0, CONCEPT_OF_MODEL, (2, num_concepts))
    ranked = ({}, {})
    for one in sets:
        ids = np.repeat(np.array(one.concepts), one.per_concept)
        labels = tuple(f"class {index % one.num_classes}" for index in ids) if one.num_classes else None
        for protocol in one.protocols:
            shared = concepts[ids] + rng.normal(0, QUERY, len(ids))
            for model, parts in enumerate(ranked):
                score = shared + of_model[model][ids] + rng.normal(0, QUERY_OF_MODEL, len(ids))
                score += better if model == 0 else 0.0
                ranks = np.clip(np.exp(2.0 - 1.2 * score), 1, one.num_items).astype(np.int64)
                parts[one.name, protocol] = Ranked(
                    queries=tuple(map(str, range(len(ids)))), clusters=tuple(map(str, ids)), labels=labels,
                    ranks=ranks, num_correct=np.ones(len(ids), np.int64), num_items=one.num_items,
                )  # fmt: skip
    digests = {one.name: one.name * 8 for one in sets}
    return QueryRanks(digests, ranked[0]), QueryRanks(digests, ranked[1])
