"""Records in data/policy what people decide about a gate's last run: accept a failure, or set the drift reference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from align.errors import ConfigError, DataError, GateError
from align.formats.acceptances import read_acceptances, write_acceptances
from align.formats.drift_reference import DriftReference, write_reference
from align.interfaces.expectations import Acceptance
from align.services.git import git_if_any
from align.validate.report import REPORT, read_report


def accept(names: Sequence[str], reason: str, by: str, on: str, *, reports: Sequence[Path], policy: Path) -> None:
    """Accepts failures of the last run, for the data that it judged: all of them or none.

    A second acceptance of a failure replaces the first.

    Args:
        names: of the expectations.
        reason: why the data may be used; shown in the report and in the lineage of models.
        by: who decides.
        on: the day, such as 2026-01-31.
        reports: the gates' folders.
        policy: data/policy.

    Raises:
        ConfigError: `reason` or `by` is blank.
        DataError: no gate has run, or none has a failure of one of these names.
    """
    if not reason.strip() or not by.strip():
        raise ConfigError('--accept NAMES: say why, --reason "...", and by whom, --by "..." (default: git\'s user)')
    last_reports = [report for folder in reports if (report := read_report(folder)) is not None]
    if not last_reports:
        raise DataError(f"{reports[0] / REPORT}: no such file; run `align validate` first")
    failures = {
        outcome.name: (report.data, outcome)
        for report in reversed(last_reports)
        for outcome in report.expectations
        if not outcome.passed
    }
    if unknown := [name for name in names if name not in failures]:
        raise DataError(
            f"--accept {','.join(unknown)}: no failure of this name in the last run "
            f"(failed: {', '.join(failures) or 'none'})"
        )
    new = [
        Acceptance(
            expectation=name,
            data=data,
            observed=outcome.observed,
            threshold=outcome.threshold,
            reason=reason.strip(),
            by=by.strip(),
            on=on,
        )
        for name in dict.fromkeys(names)
        for data, outcome in [failures[name]]
    ]
    replaced = {(one.expectation, one.data) for one in new}
    others = [one for one in read_acceptances(policy) if (one.expectation, one.data) not in replaced]
    write_acceptances([*others, *new], policy)


def set_reference(reports: Path, policy: Path, by: str, on: str) -> DriftReference:
    """Makes the data of the last run the reference for drift.

    Args:
        reports: the folder of the gate over tables.
        policy: data/policy.
        by: who decides.
        on: the day, such as 2026-01-31.

    Raises:
        ConfigError: nobody is named.
        DataError: the gate has not run yet.
        GateError: the gate failed, and nobody accepted it.
    """
    report = read_report(reports)
    if report is None:
        raise DataError(f"{reports / REPORT}: no verdict yet; run `align validate` first")
    if not report.passed:
        raise GateError(f"--set-reference: the gate failed ({report.failure}); fix or accept it first")
    if not by:
        raise ConfigError('--set-reference: say who decides, --by "..." (git has no user here)')
    metrics = json.loads((reports / "metrics.json").read_bytes())
    reference = DriftReference(
        data=report.data, keep_rate=metrics["quality/keep_rate"], distributions=report.distributions, by=by, on=on
    )
    write_reference(reference, policy)
    return reference


def git_user() -> str:
    """The user that git is configured with, as `Name <email>`; empty without one."""
    name, email = ((git_if_any(Path(), "config", key) or "").strip() for key in ("user.name", "user.email"))
    return f"{name} <{email}>" if name and email else name or email
