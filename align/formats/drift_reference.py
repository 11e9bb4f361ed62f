"""`data/policy/reference.json`: the dataset that drift is measured against, which people chose.

`align validate --set-reference` writes it, people commit it, `align validate` reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from align.durable.files import to_json, write_text
from align.formats.json_file import StoredModel, read_if_exists

REFERENCE = "reference.json"

#: Bucket -> share of the kept pairs, 0 to 1, in the order of the buckets.
Distribution = dict[str, float]


class DriftReference(StoredModel):
    """The dataset that drift is measured against.

    Attributes:
        data: its digest.
        keep_rate: share of its pairs that were kept, 0 to 1.
        distributions: name -> histogram of its kept pairs.
        by: who made it the reference.
        on: the day, such as 2026-01-31.
    """

    data: str
    keep_rate: float
    distributions: dict[str, Distribution]
    by: str
    on: str


class _ReferenceFile(StoredModel):
    schema_version: Literal[1] = 1
    reference: DriftReference | None


def read_reference(policy: Path) -> DriftReference | None:
    """The reference that people committed; None if there is none yet. Raises FormatError if the file has another
    schema_version or layout.
    """
    stored = read_if_exists(_ReferenceFile, policy / REFERENCE, "write it with `align validate --set-reference`")
    return stored.reference if stored else None


def write_reference(reference: DriftReference, policy: Path) -> None:
    """Writes `reference.json`."""
    write_text(policy / REFERENCE, to_json(_ReferenceFile(reference=reference).model_dump()))
