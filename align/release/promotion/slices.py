"""Slices: parts of the evaluation in which the candidate must not be worse than the champion.

Each set is one, with all its ways of asking together, and so is each class of a set of classes, and each language of a
set of pairs: of the texts that are asked, and of the images whose right texts are in it. A slice counts against the
candidate only if its upper bound is below minus the margin: an uncertain difference refuses nothing. There are many
slices, so each one's confidence is raised (Bonferroni: what is left of it is divided by their number). Thus the chance
that any slice of an equally good model is found worse stays what one bound's would be. (Holm's method would find the
same first slice, and the first one decides.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.config.release import PromoteConfig
from align.formats.query_ranks import KNN, PROTOCOLS, ZERO_SHOT, QueryRanks, Ranked
from align.statistics.intervals import Scored
from align.statistics.paired import Difference, Part, difference

#: Slices of fewer concepts refuse nothing: nobody can tell.
MIN_UNITS = 10


@dataclass(frozen=True)
class Slice:
    """A part of the evaluation.

    Attributes:
        name: of the set, and the class or language.
        num_queries: in all ways of asking together.
        difference: candidate minus champion, bounds at the raised confidence; None: too few concepts to tell.
        worse: by more than the margin.
    """

    name: str
    num_queries: int
    num_units: int
    difference: Difference | None
    worse: bool


def compared_slices(config: PromoteConfig, candidate: QueryRanks, champion: QueryRanks) -> list[Slice]:
    """The slices of all sets that both were measured on, sets first. A set whose items differ is left out.

    If a whole set is in one language, that is not a slice of its own; nor are texts of unknown language.
    """
    shared = {name for name, digest in candidate.sets.items() if champion.sets.get(name) == digest}
    all_parts = {
        name: parts
        for name, parts in [
            *_sets(candidate, champion),
            *_classes(candidate, champion),
            *_languages(candidate, champion),
        ]
        if parts[0].name in shared
    }
    units = {
        name: len({cluster for part in parts for cluster in part.differences.clusters})
        for name, parts in all_parts.items()
    }
    num_tested = sum(number >= MIN_UNITS for number in units.values())
    confidence = 1 - (1 - config.confidence) / max(num_tested, 1)
    found = []
    for name, parts in all_parts.items():
        enough = units[name] >= MIN_UNITS
        measured = difference(parts, confidence=confidence) if enough else None
        worse = measured is not None and measured.high < -config.slice_margin
        num_queries = sum(len(part.differences.values) for part in parts)
        found.append(Slice(name, num_queries, units[name], measured, worse))
    return found


def _sets(candidate: QueryRanks, champion: QueryRanks) -> Iterator[tuple[str, list[Part]]]:
    for name in candidate.sets:
        protocols = _protocols(candidate, champion, name)
        if protocols:
            yield name, [_part(name, len(protocols), mine, theirs) for mine, theirs in protocols.values()]


def _classes(candidate: QueryRanks, champion: QueryRanks) -> Iterator[tuple[str, list[Part]]]:
    for name in candidate.sets:
        protocols = _protocols(candidate, champion, name)
        labelled = {key: pair for key, pair in protocols.items() if key in (ZERO_SHOT, KNN)}
        labels = {label for mine, _ in labelled.values() for label in mine.labels or ()}
        for label in sorted(labels):
            yield (
                f"{name}: {label}",
                [_part(name, len(labelled), mine, theirs, mine.labels, label) for mine, theirs in labelled.values()],
            )


def _languages(candidate: QueryRanks, champion: QueryRanks) -> Iterator[tuple[str, list[Part]]]:
    for name in candidate.sets:
        protocols = [(*both, both[0].languages) for both in _protocols(candidate, champion, name).values()]
        codes = {code for *_, told in protocols for code in told}
        for code in sorted(code for code in codes if code is not None and len(codes) > 1):
            asked = [one for one in protocols if code in one[2]]
            yield f"{name}: language {code}", [_part(name, len(asked), *one, code) for one in asked]


def _protocols(candidate: QueryRanks, champion: QueryRanks, name: str) -> Mapping[str, tuple[Ranked, Ranked]]:
    """The ways of asking about a set that both have, without those that repeat queries or learn from a set."""
    return {
        protocol: (part, champion.ranked[of, protocol])
        for (of, protocol), part in candidate.ranked.items()
        if of == name and (of, protocol) in champion.ranked and len(part.queries) and protocol in PROTOCOLS
    }


def _part(
    name: str,
    number: int,
    mine: Ranked,
    theirs: Ranked,
    told: Sequence[str | None] | None = None,
    value: str | None = None,
) -> Part:
    """The queries with this value, a class or a language; None: all."""
    one, other = (part.recall(1) if part.labels is not None else part.mean_recall() for part in (mine, theirs))
    chosen = np.array([value is None or each == value for each in told or [None] * len(mine.queries)])
    clusters = [cluster for cluster, is_in in zip(mine.clusters, chosen, strict=True) if is_in]
    return Part(name, 1 / number, Scored((one - other)[chosen], clusters))
