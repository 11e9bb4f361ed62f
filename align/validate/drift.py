"""Drift: how far a dataset has moved from the last one that people accepted as reference.

Three histograms of the kept pairs are compared, and the keep rate: characters per text, pixels of the image's shorter
side, and language. The measure is the total variation distance, half the sum of |p - q| over all buckets: the share of
pairs that would have to move to another bucket for the two to be equal. It is 0 to 1, symmetric, needs no smoothing of
empty buckets, and its threshold has a plain meaning ("at most 10 % of the pairs"). Chance alone moves N pairs in K
buckets by about sqrt(K / (2 pi N)): 0.02 for 10,000 pairs in 15 buckets. Thresholds should be well above that.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from align.formats.drift_reference import Distribution, DriftReference
from align.interfaces.sql import Rows

#: Lower ends of the buckets; one more begins at 0, and the last has no upper end.
_TEXT_LENGTHS = (10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 100, 120, 160, 200)
_SHORT_SIDES_PX = (100, 200, 225, 250, 275, 300, 350, 400, 500, 600, 800, 1000, 1500, 2000, 4000)
#: Languages beyond this number are counted as one, since people look at the histogram, too.
_MAX_LANGUAGES = 30


def distributions(rows: Rows) -> dict[str, Distribution]:
    """The histograms of the kept pairs.

    Args:
        rows: runs SQL over `decisions` (key, keep, text, language, image_id) and `images` (image_id, width_px,
            height_px).

    Returns:
        Name (`text_length`, `image_size`, `language`) -> distribution.
    """
    histograms = {
        "text_length": _shares(rows, "length(text)", "decisions", _TEXT_LENGTHS),
        "image_size": _shares(
            rows, "least(width_px, height_px)", "decisions JOIN images USING (image_id)", _SHORT_SIDES_PX
        ),
    }
    code = "coalesce(language, 'unknown')"
    query = f"SELECT {code} AS code, count(*) AS num FROM decisions WHERE keep GROUP BY {code}"
    counts: list[tuple[str, int]] = sorted(rows(query), key=lambda row: (-row[1], row[0]))
    shown = dict(counts[:_MAX_LANGUAGES])
    if rest := sum(num for _, num in counts[_MAX_LANGUAGES:]):
        shown["others"] = shown.get("others", 0) + rest
    return histograms | {"language": _normalised(shown)}


def _shares(rows: Rows, value: str, table: str, edges: tuple[int, ...]) -> Distribution:
    labels = [f"0-{edges[0] - 1}", *(f"{low}-{high - 1}" for low, high in pairwise(edges))]
    labels.append(f"{edges[-1]}+")
    bucket = " ".join(f"WHEN {value} < {edge} THEN {index}" for index, edge in enumerate(edges))
    bucket = f"CASE {bucket} ELSE {len(edges)} END"
    # other expectations count missing values
    query = f"SELECT {bucket}, count(*) FROM {table} WHERE keep AND {value} IS NOT NULL GROUP BY {bucket}"
    counts: dict[int, int] = dict(rows(query))
    return _normalised({label: counts.get(index, 0) for index, label in enumerate(labels)})


def _normalised(counts: Mapping[str, int]) -> Distribution:
    total = sum(counts.values())
    return {label: round(num / total, 6) if total else 0.0 for label, num in counts.items()}


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Total variation distance of two distributions, 0 to 1; a bucket that one lacks counts as empty."""
    return round(sum(abs(one.get(label, 0.0) - other.get(label, 0.0)) for label in one.keys() | other.keys()) / 2, 6)


def drift(keep_rate: float, now: Mapping[str, Distribution], reference: DriftReference) -> dict[str, float]:
    """How far each figure moved: the keep rate by its absolute change, distributions that both have by `distance`."""
    moved = {"keep_rate": round(abs(keep_rate - reference.keep_rate), 6)}
    for name, before in reference.distributions.items():
        if name in now:
            moved[name] = distance(now[name], before)
    return moved
