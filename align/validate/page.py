"""What the pages of both quality gates show: what failed, what people accepted, and all expectations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from align.display import html
from align.formats.acceptances import ACCEPTED
from align.interfaces.expectations import Outcome
from align.validate.report import QualityReport, accept_all, summary

_COLUMNS = ("expectation", "name", "observed", "threshold", "verdict")


def gate_page(report: QualityReport, title: str, blocks: Sequence[str]) -> str:
    """The page of a gate. `blocks` come between what failed and all expectations."""
    failed, num_accepted = report.failed, report.num_accepted
    num_passed = sum(outcome.passed for outcome in report.expectations)
    cards = [
        ("passed", f"{num_passed:,}", "good"),
        ("failed", f"{len(failed):,}", "bad" if failed else ""),
        ("accepted", f"{num_accepted:,}", "warn" if num_accepted else ""),
    ]
    lead = f"Failed. {report.failure}" if failed else f"{summary(report).capitalize()}."
    parts = [html.cards(cards), *_failures(report), *_acceptances(report.expectations), *blocks]
    if report.tighter:
        parts.append(html.heading("Bands that can be tighter"))
        parts.append(
            html.paragraph(
                "If this data is good, these values of params.yaml stop later data that differs by more than 10 points."
            )
        )
        parts.append(html.code(as_yaml(report.tighter)))
    parts += [html.heading("All expectations"), html.table(_COLUMNS, map(_line, report.expectations), verdict=4)]
    parts.append(html.paragraph(f"Data: {report.data}"))
    return html.page(title, lead, parts)


def _failures(report: QualityReport) -> list[str]:
    if not report.failed:
        return []
    parts = [html.heading("What failed"), html.table(_COLUMNS, map(_line, report.failed), verdict=4)]
    if report.bands:
        parts.append(
            html.paragraph(
                "Correct the data or a rule. Or, if data of this kind is like that, set these bands in params.yaml: "
                "what was measured, and 10 points of room."
            )
        )
        parts.append(html.code(as_yaml(report.bands)))
    else:
        parts.append(html.paragraph("Correct the data, or the thresholds (params.yaml, section validate)."))
    parts.append(html.paragraph(f"Or accept the failures for this data only, and commit data/policy/{ACCEPTED}:"))
    parts.append(html.code(accept_all(report)))
    return parts


def as_yaml(bands: Mapping[str, Any]) -> str:
    """Values of section `validate` as lines for params.yaml."""
    lines = ["validate:"]
    for key, value in bands.items():
        if isinstance(value, Mapping):
            lines += [f"  {key}:", *(f"    {reason}: {band}" for reason, band in value.items())]
        else:
            lines.append(f"  {key}: {value}")
    return "\n".join(lines)


def _acceptances(outcomes: Iterable[Outcome]) -> list[str]:
    rows = [
        (one.what, one.observed, one.threshold, one.accepted.by, one.accepted.on, one.accepted.reason)
        for one in outcomes
        if one.accepted is not None
    ]
    columns = ("expectation", "observed", "threshold", "accepted by", "on", "because")
    return [html.heading("Failures that people accepted"), html.table(columns, rows)] if rows else []


def _line(outcome: Outcome) -> tuple[str, str, str, str, bool | str]:
    verdict = "accepted" if outcome.accepted else outcome.passed
    return outcome.what, outcome.name, outcome.observed, outcome.threshold, verdict
