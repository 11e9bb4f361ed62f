"""The word of a quality gate, `verdict.json`: what later stages ask for before they work, and depend on.

It says only whether the gate passed and on which data, so that another threshold, a reworded expectation or an
acceptance makes no later stage stale.
"""

from __future__ import annotations

import json
from pathlib import Path

from align.errors import DataError, GateError

VERDICT = "verdict.json"
#: Folders below `paths.reports` -> the command that judges.
TABLES, SHARDS = "quality", "quality_shards"
_COMMANDS = {SHARDS: "validate_shards"}


def require_passed(folder: Path, data: str | None = None) -> None:
    """Refuses data without a passed verdict.

    Args:
        folder: of a gate's report.
        data: the digest that it must have judged; None takes the verdict as it is.

    Raises:
        DataError: there is no verdict, or it is about other data.
        GateError: the verdict is "failed".
    """
    command = _COMMANDS.get(folder.name, "validate")
    path = folder / VERDICT
    try:
        verdict = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no quality verdict on this data; run `align {command}` first") from None
    if verdict.get("passed") is not True:
        reason = verdict.get("failure") or "no reason given"
        raise GateError(f"{path}: the quality gate failed ({reason}); see report.html beside it")
    if data is not None and verdict.get("data") != data:
        raise DataError(f"{path}: this verdict is about other data; run `align {command}` again")
