"""The numbers of a quality gate: what was expected and observed, and which failures a person accepted.

Two gates make such a report, `align validate` over tables and `align validate_shards`. Each writes a folder:

    report.json    every expectation, its observed value, and who accepted what
    metrics.json   the counts alone
    verdict.json   whether the data may be used (`align.formats.verdict`), which later stages depend on
    report.html    the same for people (`align.validate.page`)

A failure is accepted by name, with a reason, for one digest of the data. For other data it must be accepted again,
even if only a take-down has changed it; the report and the error say who accepted it before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from align.display.report import Report, write_report
from align.durable.files import write_bytes, write_text
from align.errors import FormatError, GateError
from align.formats.verdict import Verdict, write_verdict
from align.interfaces.expectations import Acceptance, Outcome

REPORT = "report.json"
PAGE = "report.html"


class QualityReport(Report):
    """The numbers.

    Attributes:
        data: digest of what was judged.
        passed: whether every expectation passed or was accepted.
        failure: the first failed expectation that nobody accepted, in the words of the error; None when passed.
        expectations: all outcomes, in the order of the gate.
        distributions: name -> bucket -> share of the kept pairs, the base of drift; empty at the gate over shards.
        bands: values of section `validate` with which failed bands would hold, see `align.validate.statistics`.
    """

    data: str
    passed: bool
    failure: str | None
    expectations: tuple[Outcome, ...]
    distributions: dict[str, dict[str, float]]
    bands: dict[str, Any]

    @property
    def failed(self) -> list[Outcome]:
        """The failures that nobody accepted."""
        return [outcome for outcome in self.expectations if not outcome.holds]

    @property
    def num_accepted(self) -> int:
        """How many failures people accepted."""
        return sum(outcome.accepted is not None for outcome in self.expectations)


def judge(
    outcomes: Iterable[Outcome],
    *,
    data: str,
    accepted: Sequence[Acceptance],
    prefix: str,
    metrics: Mapping[str, float | int],
    distributions: Mapping[str, dict[str, float]] | None = None,
    bands: Mapping[str, Any] | None = None,
) -> QualityReport:
    """Combines outcomes and acceptances into a report.

    Args:
        outcomes: of all expectations.
        data: digest of what was judged; only acceptances of this data count.
        accepted: all entries of the policy.
        prefix: of the metrics, such as `quality`.
        metrics: what else the stage measured.
        distributions, bands: see `QualityReport`.
    """
    ours = {item.expectation: item for item in accepted if item.data == data}
    before = {item.expectation: item for item in accepted if item.expectation not in ours}
    judged = tuple(
        outcome
        if outcome.passed
        else outcome.model_copy(
            update={"accepted": ours.get(outcome.name), "accepted_before": before.get(outcome.name)}
        )
        for outcome in outcomes
    )
    failed = [outcome for outcome in judged if not outcome.holds]
    failure = None
    if failed:
        first = failed[0]
        failure = f"{first.name}: {first.what}: observed {first.observed}, expected {first.threshold}"
    return QualityReport(
        metrics={
            f"{prefix}/num_expectations": len(judged),
            f"{prefix}/num_failed": len(failed),
            f"{prefix}/num_accepted": sum(outcome.accepted is not None for outcome in judged),
            **metrics,
        },
        data=data,
        passed=not failed,
        failure=failure,
        expectations=judged,
        distributions=dict(distributions or {}),
        bands=dict(bands or {}),
    )


def summary(report: QualityReport) -> str:
    """A passed report in half a line."""
    num, accepted = len(report.expectations), report.num_accepted
    if accepted:
        return f"passed: {num - accepted:,} of {num:,} expectations hold, {accepted:,} accepted by people"
    return f"passed: all {num:,} expectations hold"


def write_gate(report: QualityReport, page: str, part: Path, figures: Mapping[str, bytes] | None = None) -> None:
    """Writes the gate's files into a new folder: that the gate failed is published, too.

    Args:
        report: the numbers.
        page: report.html.
        part: the folder.
        figures: file name -> PNG bytes.
    """
    write_report(report, part)
    write_verdict(Verdict(passed=report.passed, failure=report.failure, data=report.data), part)
    write_text(part / PAGE, page)
    for name, data in (figures or {}).items():
        write_bytes(part / name, data)


def require_holds(report: QualityReport, folder: Path) -> None:
    """Says that the gate failed, whose folder is published.

    Raises:
        GateError: it did; the message has the expectation's name, the observed value and the threshold.
    """
    if report.failure is not None:
        names = [outcome.name for outcome in report.failed]
        more = f" ({len(names) - 1} more failed: {', '.join(names[1:])})" if names[1:] else ""
        set_them = ", which has the bands to set" if report.bands else ""
        raise GateError(
            f"quality gate: {report.failure}{more}; see {folder / PAGE}{set_them}; "
            f"or accept what failed, for this data: {accept_all(report)}{accepted_before(report)}"
        )


def accept_all(report: QualityReport) -> str:
    """The command that accepts every failure that nobody accepted."""
    return f'align validate --accept {",".join(outcome.name for outcome in report.failed)} --reason "why"'


def accepted_before(report: QualityReport) -> str:
    """Which of the failures people accepted for other data, as the end of a sentence; empty without any."""
    before = [outcome.accepted_before.signed for outcome in report.failed if outcome.accepted_before]
    return f" (accepted for other data: {'; '.join(before)})" if before else ""


def read_report(folder: Path) -> QualityReport | None:
    """A gate's last report, or None.

    Raises:
        FormatError: another version wrote it.
    """
    path = folder / REPORT
    try:
        return QualityReport.model_validate({"metrics": {}, **json.loads(path.read_bytes())})
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError):
        raise FormatError(f"{path}: not a report of this version; run `align validate` again") from None
