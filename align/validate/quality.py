"""The verdict of a quality gate: what was expected and observed, which failures a person accepted, and the report.

Two gates write it, `align validate` (tables) and `align validate_shards`. Each leaves in its folder

    report.json    every expectation, its observed value, and who accepted what
    verdict.json   passed or not, and of which data: what later stages depend on, so that a reworded expectation or an
                   acceptance makes no training stale
    report.html    for people

A failure is accepted by name, with a reason, for one digest of the data: other data must be accepted anew. Acceptances
are entries of `data/policy/accepted.json`, which people commit.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from align import html
from align.errors import ConfigError, DataError, FormatError, GateError
from align.files import to_json, write_text
from align.formats.verdict import VERDICT
from align.report import Report, write_report

ACCEPTED = "accepted.json"
REPORT = "report.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Acceptance(_Frozen):
    """One failure that a person takes responsibility for.

    Attributes:
        expectation: its name.
        data: digest of the data that it was accepted for.
        observed: what was seen then.
        threshold: what was asked for then.
        reason: why it may pass.
        by: who says so.
        on: the day, as 2026-01-31.
    """

    expectation: str
    data: str
    observed: str
    threshold: str
    reason: str
    by: str
    on: str


class _AcceptedFile(_Frozen):
    schema_version: Literal[1] = 1
    accepted: tuple[Acceptance, ...]


class Judged(_Frozen):
    """One expectation and what came of it. `name` is what `--accept` takes; `what` is for people."""

    name: str
    what: str
    expectation: str
    observed: str
    threshold: str
    passed: bool
    accepted: Acceptance | None = None

    @property
    def holds(self) -> bool:
        """Whether it stops nothing: passed, or accepted."""
        return self.passed or self.accepted is not None


class QualityReport(Report):
    """The verdict.

    Attributes:
        data: digest of what was judged.
        passed: every expectation holds or was accepted.
        failure: the first failed expectation that nobody accepted, in the words of the error; null when passed.
        expectations: all of them, in the order of the gate.
        distributions: name -> bucket -> share of the kept pairs, the base of drift; empty at the gate over shards.
    """

    data: str
    passed: bool
    failure: str | None
    expectations: tuple[Judged, ...]
    distributions: dict[str, dict[str, float]]


def judge(
    outcomes: Iterable[Mapping[str, Any]],
    *,
    data: str,
    accepted: Sequence[Acceptance],
    prefix: str,
    metrics: Mapping[str, float | int],
    distributions: Mapping[str, dict[str, float]] | None = None,
) -> QualityReport:
    """Puts outcomes and acceptances together.

    Args:
        outcomes: fields of `Judged` but for `accepted`.
        data: digest of what was judged; only its own acceptances count.
        accepted: all entries of the policy.
        prefix: of the metrics, such as `quality`.
        metrics: what else the stage measured.
        distributions: see `QualityReport`.
    """
    ours = {item.expectation: item for item in accepted if item.data == data}
    rows = [Judged(**outcome) for outcome in outcomes]
    judged = tuple(row if row.passed else row.model_copy(update={"accepted": ours.get(row.name)}) for row in rows)
    failed = [row for row in judged if not row.holds]
    failure = None
    if failed:
        first = failed[0]
        failure = f"{first.name}: {first.what}: observed {first.observed}, expected {first.threshold}"
    return QualityReport(
        metrics={
            f"{prefix}/num_expectations": len(judged),
            f"{prefix}/num_failed": len(failed),
            f"{prefix}/num_accepted": sum(row.accepted is not None for row in judged),
            **metrics,
        },
        data=data,
        passed=not failed,
        failure=failure,
        expectations=judged,
        distributions=dict(distributions or {}),
    )


def publish(report: QualityReport, directory: Path, title: str, blocks: Sequence[str]) -> None:
    """Writes report.json, metrics.json, verdict.json and report.html, whatever the verdict.

    Raises:
        GateError: the gate failed; the message has the expectation's name, the observed value and the threshold.
    """
    write_report(report, directory)
    verdict = {"schema_version": 1, "passed": report.passed, "failure": report.failure, "data": report.data}
    write_text(directory / VERDICT, to_json(verdict))
    write_text(directory / "report.html", render(report, title, blocks))
    if report.failure is not None:
        left = sum(not row.holds for row in report.expectations) - 1
        more = f" ({left} more failed)" if left else ""
        raise GateError(f"quality gate: {report.failure}{more}; see {directory / 'report.html'}")


def render(report: QualityReport, title: str, blocks: Sequence[str]) -> str:
    """The verdict as a page that reads well with no network; `blocks` come between what failed and all expectations."""
    rows = report.expectations
    accepted = [row for row in rows if row.accepted is not None]
    failed = [row for row in rows if not row.holds]
    passed = sum(row.passed for row in rows)
    cards = [("passed", f"{passed:,}", "good"), ("failed", f"{len(failed):,}", "bad" if failed else "")]
    cards.append(("accepted", f"{len(accepted):,}", "warn" if accepted else ""))
    lead = f"Failed. {report.failure}" if failed else f"{summary(report).capitalize()}."
    parts = [html.cards(cards)]
    columns = ("expectation", "name", "observed", "threshold", "verdict")
    if failed:
        parts += [html.heading("What failed"), html.table(columns, map(_line, failed), verdict=4)]
        parts.append(
            html.paragraph(
                "Mend the data or the thresholds (params.yaml, section validate). Or accept a failure for this data "
                f'alone: align validate --accept {failed[0].name} --reason "why", and commit data/policy/{ACCEPTED}.'
            )
        )
    if accepted:
        people = [
            (row.what, row.observed, row.threshold, row.accepted.by, row.accepted.on, row.accepted.reason)
            for row in accepted
            if row.accepted is not None
        ]
        names = ("expectation", "observed", "threshold", "accepted by", "on", "because")
        parts += [html.heading("Failures that people accepted"), html.table(names, people)]
    parts += [*blocks, html.heading("All expectations"), html.table(columns, map(_line, rows), verdict=4)]
    parts.append(html.paragraph(f"Data: {report.data}"))
    return html.page(title, lead, parts)


def summary(report: QualityReport) -> str:
    """A passed verdict in half a line."""
    num, accepted = len(report.expectations), sum(row.accepted is not None for row in report.expectations)
    if accepted:
        return f"passed: {num - accepted:,} of {num:,} expectations hold, {accepted:,} accepted by people"
    return f"passed: all {num:,} expectations hold"


def _line(row: Judged) -> tuple[str, str, str, str, bool | str]:
    return row.what, row.name, row.observed, row.threshold, "accepted" if row.accepted else row.passed


def read_accepted(policy: Path) -> tuple[Acceptance, ...]:
    """The acceptances that people committed; none where there is no such file.

    Raises:
        FormatError: the file is not what `accept` writes.
    """
    path = policy / ACCEPTED
    try:
        return _AcceptedFile.model_validate_json(path.read_bytes()).accepted
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            f"{path}: {where}: {first['msg']}; mend it, or write it by `align validate --accept`"
        ) from None


def accept(name: str, reason: str, by: str, on: str, *, reports: Sequence[Path], policy: Path) -> Acceptance:
    """Accepts one failure of the last run, for the data that it judged. A second acceptance replaces the first.

    Args:
        name: the expectation's.
        reason: why it may pass; shown in the report, and in the lineage of models.
        by: who says so.
        on: the day.
        reports: the gates' folders.
        policy: the folder of `accepted.json`.

    Raises:
        ConfigError: the reason or the name is blank.
        DataError: no gate has run, or none has a failure of this name.
    """
    if not reason.strip() or not by.strip():
        raise ConfigError('--accept NAME: say why, --reason "...", and by whom, --by "..." (git knows no user here)')
    known = [report for folder in reports if (report := read_report(folder)) is not None]
    if not known:
        raise DataError(f"{reports[0] / REPORT}: no such file; run `align validate` first")
    for report in known:
        for row in report.expectations:
            if row.name == name and not row.passed:
                made = Acceptance(
                    expectation=name, data=report.data, observed=row.observed, threshold=row.threshold,
                    reason=reason.strip(), by=by.strip(), on=on,
                )  # fmt: skip
                same = (name, report.data)
                others = [one for one in read_accepted(policy) if (one.expectation, one.data) != same]
                write_text(policy / ACCEPTED, to_json(_AcceptedFile(accepted=(*others, made)).model_dump()))
                return made
    failed = [row.name for report in known for row in report.expectations if not row.passed]
    raise DataError(f"--accept {name}: no failure of this name in the last run (failed: {', '.join(failed) or 'none'})")


def read_report(folder: Path) -> QualityReport | None:
    """A gate's last report, None where there is none.

    Raises:
        FormatError: it was written by other code.
    """
    try:
        return QualityReport.model_validate({"metrics": {}, **json.loads((folder / REPORT).read_bytes())})
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError):
        raise FormatError(f"{folder / REPORT}: not a report of this version; run `align validate` again") from None


def git_user() -> str:
    """`Name <email>` as git knows it; empty where it does not."""
    found = []
    for key in ("user.name", "user.email"):
        try:
            done = subprocess.run(["git", "config", key], capture_output=True, text=True, check=False)
        except FileNotFoundError:  # no git
            return ""
        found.append(done.stdout.strip())
    name, email = found
    return f"{name} <{email}>" if name and email else name or email
