"""`data/policy/accepted.json`: failures of a quality gate that people accepted, by name, each for one version of data.

`align validate --accept` writes it, people commit it, both gates read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from align.durable.files import to_json, write_text
from align.formats.json_file import StoredModel, read_if_exists
from align.interfaces.expectations import Acceptance

ACCEPTED = "accepted.json"


class _AcceptedFile(StoredModel):
    schema_version: Literal[1] = 1
    accepted: tuple[Acceptance, ...]


def read_acceptances(policy: Path) -> tuple[Acceptance, ...]:
    """The acceptances that people committed; none if there is no such file. Raises FormatError if the file has another
    schema_version or layout.
    """
    stored = read_if_exists(_AcceptedFile, policy / ACCEPTED, "correct it, or write it with `align validate --accept`")
    return stored.accepted if stored else ()


def write_acceptances(acceptances: Iterable[Acceptance], policy: Path) -> None:
    """Writes `accepted.json`, in the order given."""
    write_text(policy / ACCEPTED, to_json(_AcceptedFile(accepted=tuple(acceptances)).model_dump()))
