"""A measured set that is neither retrieval nor one class a picture: what the report and its page show of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from align.evaluate.protocols.recall import Score
from align.formats.evaluation_set import EvaluationSet


@dataclass(frozen=True)
class Answered:
    """A measured set that has no ranks.

    Attributes:
        source: the set, without the pictures that were left out.
        scores: such as `add_att/accuracy`.
        num_texts: that the pictures were compared with.
        groups: category, relation or class -> `num_rows`, of rows or pictures, and its figure.
        faults: key -> why a row or picture was left out.
    """

    source: EvaluationSet
    scores: dict[str, Score]
    num_texts: int
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
