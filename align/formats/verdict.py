"""`verdict.json`: whether a quality gate passed, and on which data. Later stages require it and depend on it.

It says no more, so that another threshold, a reworded expectation or an acceptance makes no later stage stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from align.durable.files import to_json, write_text
from align.errors import DataError, GateError
from align.formats.json_file import StoredModel, read_if_exists

VERDICT = "verdict.json"
#: Folders below `paths.reports`, one for each gate.
TABLES, SHARDS = "quality", "quality_shards"
#: The tag of runs and versions that says what a gate said of their data, and its value for tars that others made.
QUALITY, NOT_GATED = "align.quality", "not gated"
#: The command that judges, if it is not `validate`.
_COMMANDS = {SHARDS: "validate_shards"}
#: What to run after it, if a later stage has read other data.
_AFTER = {TABLES: ", then `align shard`"}


class Verdict(StoredModel):
    """The file.

    Attributes:
        passed: whether the data may be used.
        failure: the first failed expectation that nobody accepted, in the words of the error; None when passed.
        data: digest of the data that was judged.
    """

    schema_version: Literal[1] = 1
    passed: bool
    failure: str | None
    data: str


def write_verdict(verdict: Verdict, folder: Path) -> None:
    """Writes `verdict.json`."""
    write_text(folder / VERDICT, to_json(verdict.model_dump()))


def judged_data(reports: Path) -> set[str]:
    """The digests of the data that the gates judged last. Raises FormatError if a verdict has another layout."""
    paths = [reports / gate / VERDICT for gate in (TABLES, SHARDS)]
    return {verdict.data for path in paths if (verdict := read_if_exists(Verdict, path, "run its gate again"))}


def require_passed(folder: Path, data: str, where: Path) -> None:
    """Refuses data without a passed verdict in a gate's report.

    Args:
        folder: the report.
        data: digest of what the gate must have judged.
        where: that, or what was made from it, lies; for the error.

    Raises:
        DataError: there is no verdict, or it is about other data.
        FormatError: the verdict has another schema_version or layout.
        GateError: the gate failed.
    """
    command = f"run `align {_COMMANDS.get(folder.name, 'validate')}`"
    path = folder / VERDICT
    verdict = read_if_exists(Verdict, path, f"{command} again")
    if verdict is None:
        raise DataError(f"{path}: no quality verdict on this data; {command} first")
    if verdict.data != data:
        after = _AFTER.get(folder.name, "")
        raise DataError(f"{path}: this verdict is about other data than {where}; {command} with the same paths{after}")
    if not verdict.passed:
        raise GateError(f"{path}: the quality gate failed ({verdict.failure}); see report.html in the same folder")
