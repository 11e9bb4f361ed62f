"""Drift: how far a dataset has moved from the last one that people accepted as reference.

Of the kept pairs three histograms are compared, besides the keep rate: characters per text, pixels of the image's
shorter side, and language. The measure is the total variation distance, half the sum of |p - q| over all buckets: the
share of pairs that would have to move to another bucket for the two to be equal. It is 0 to 1, symmetric, needs no
smoothing of empty buckets, and a threshold on it can be read aloud ("at most 10 % of the pairs"). Chance alone moves N
pairs in K buckets by about sqrt(K / (2 pi N)): 0.02 for 10,000 pairs in 15 buckets, so thresholds lie well above.

The reference is `data/policy/reference.json`, written by `align validate --set-reference` and committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from align.errors import FormatError
from align.files import to_json, write_text
from align.protocols.sql import Rows

REFERENCE = "reference.json"

#: Bucket -> share, in the order of the buckets.
Distribution = dict[str, float]

#: Lower ends of the buckets; the first begins at 0, the last is open.
_TEXT_LENGTHS = (10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 100, 120, 160, 200)
_SHORT_SIDES_PX = (100, 200, 225, 250, 275, 300, 350, 400, 500, 600, 800, 1000, 1500, 2000, 4000)
#: Languages beyond these count as one: a histogram is for people too.
_MAX_LANGUAGES = 30


class Reference(BaseModel):
    """The dataset that drift is measured against.

    Attributes:
        data: its digest.
        keep_rate: share of the pairs that were kept.
        distributions: of its kept pairs.
        by: who made it the reference.
        on: the day, as 2026-01-31.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    data: str
    keep_rate: float
    distributions: dict[str, Distribution]
    by: str
    on: str


class _ReferenceFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: Literal[1] = 1
    reference: Reference | None


def read_reference(policy: Path) -> Reference | None:
    """The reference that people committed; None where there is none yet.

    Raises:
        FormatError: the file is not what `write_reference` writes.
    """
    path = policy / REFERENCE
    try:
        return _ReferenceFile.model_validate_json(path.read_bytes()).reference
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{path}: {where}: {first['msg']}; write it by `align validate --set-reference`"
        raise FormatError(message) from None


def write_reference(reference: Reference, policy: Path) -> None:
    """Writes `reference.json`."""
    write_text(policy / REFERENCE, to_json(_ReferenceFile(reference=reference).model_dump()))


def distributions(rows: Rows, *, languages: bool) -> dict[str, Distribution]:
    """The histograms of the kept pairs.

    Args:
        rows: runs SQL over `decisions` (key, keep, text, image_id) and `images` (image_id, width_px, height_px).
        languages: whether `decisions` has a column `language`; otherwise that histogram is left out.

    Returns:
        Name (`text_length`, `image_size`, `language`) -> distribution.
    """
    found = {
        "text_length": _shares(rows, "length(text)", "decisions", _TEXT_LENGTHS),
        "image_size": _shares(
            rows, "least(width_px, height_px)", "decisions JOIN images USING (image_id)", _SHORT_SIDES_PX
        ),
    }
    if languages:
        code = "coalesce(language, 'unknown')"
        query = f"SELECT {code} AS code, count(*) AS num FROM decisions WHERE keep GROUP BY {code}"
        counts: list[tuple[str, int]] = sorted(rows(query), key=lambda row: (-row[1], row[0]))
        shown = dict(counts[:_MAX_LANGUAGES])
        if rest := sum(num for _, num in counts[_MAX_LANGUAGES:]):
            shown["others"] = shown.get("others", 0) + rest
        found["language"] = _normalised(shown)
    return found


def _shares(rows: Rows, value: str, table: str, edges: tuple[int, ...]) -> Distribution:
    labels = [f"0-{edges[0] - 1}", *(f"{low}-{high - 1}" for low, high in pairwise(edges))]
    labels.append(f"{edges[-1]}+")
    bucket = " ".join(f"WHEN {value} < {edge} THEN {place}" for place, edge in enumerate(edges))
    bucket = f"CASE {bucket} ELSE {len(edges)} END"
    # a value that is missing is a fault of its own, which other expectations name
    query = f"SELECT {bucket}, count(*) FROM {table} WHERE keep AND {value} IS NOT NULL GROUP BY {bucket}"
    counts: dict[int, int] = dict(rows(query))
    return _normalised({label: counts.get(place, 0) for place, label in enumerate(labels)})


def _normalised(counts: Mapping[str, int]) -> Distribution:
    total = sum(counts.values())
    return {label: round(num / total, 6) if total else 0.0 for label, num in counts.items()}


def distance(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Total variation distance of two distributions, 0 to 1; a bucket that one of them lacks is empty there."""
    return round(sum(abs(one.get(label, 0.0) - other.get(label, 0.0)) for label in one.keys() | other.keys()) / 2, 6)


def drift(keep_rate: float, now: Mapping[str, Distribution], reference: Reference) -> dict[str, float]:
    """How far each figure has moved: `keep_rate` by its absolute change, distributions that both have by `distance`."""
    moved = {"keep_rate": round(abs(keep_rate - reference.keep_rate), 6)}
    for name, before in reference.distributions.items():
        if name in now:
            moved[name] = distance(now[name], before)
    return moved
