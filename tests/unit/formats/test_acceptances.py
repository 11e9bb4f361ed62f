"""data/policy/accepted.json."""

from pathlib import Path

import pytest

from align.errors import FormatError
from align.formats.acceptances import read_acceptances, write_acceptances
from align.interfaces.expectations import Acceptance
from tests.support import ROOT

ACCEPTANCE = Acceptance(
    expectation="keep-rate",
    data="a" * 64,
    observed="0.7",
    threshold="0.71 to 0.9",
    reason="few icons",
    by="Ada",
    on="2026-01-31",
)


def test_acceptances_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert read_acceptances(tmp_path) == ()
    write_acceptances([ACCEPTANCE], tmp_path)
    assert read_acceptances(tmp_path) == (ACCEPTANCE,)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "accepted.json").write_text('{"schema_version": 1, "accepted": [{"expectation": "b"}]}')
    with pytest.raises(FormatError, match=r"accepted\.json: accepted\.0\.data: "):
        read_acceptances(tmp_path)


def test_the_committed_acceptances_are_readable() -> None:
    read_acceptances(ROOT / "data" / "policy")
