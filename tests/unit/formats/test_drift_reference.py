"""data/policy/reference.json."""

import json
from pathlib import Path

import pytest

from align.errors import FormatError
from align.formats.drift_reference import DriftReference, read_reference, write_reference
from tests.support import ROOT

REFERENCE = DriftReference(
    data="d", keep_rate=0.5, distributions={"language": {"en": 0.5, "de": 0.5}}, by="Ada", on="2026-01-31"
)


def test_a_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_reference(tmp_path) is None
    write_reference(REFERENCE, tmp_path)
    first = (tmp_path / "reference.json").read_bytes()
    assert read_reference(tmp_path) == REFERENCE
    write_reference(REFERENCE, tmp_path)
    assert (tmp_path / "reference.json").read_bytes() == first


def test_a_broken_reference_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "reference.json").write_text(json.dumps({"schema_version": 2, "reference": None}))
    with pytest.raises(FormatError, match=r"reference\.json: schema_version 2, but .* reads 1; .*--set-reference"):
        read_reference(tmp_path)


def test_the_committed_policy_is_readable() -> None:
    read_reference(ROOT / "data" / "policy")
