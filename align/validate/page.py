"""What the pages of both quality gates show: what failed, what people accepted, and all expectations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from align.display import html
from align.formats.acceptances import ACCEPTED
from align.formats.drift_reference import REFERENCE, DriftReference
from align.formats.shards import Manifest
from align.interfaces.expectations import Outcome
from align.validate.expectations import DRIFT
from align.validate.report import QualityReport, accept_all, accepted_before, summary
from align.validate.shard_check import Faults


def shards_page(report: QualityReport, manifest: Manifest, faults: Faults) -> str:
    """The page of `align validate_shards`."""
    splits = [(name, len(part.shards), part.num_images, part.num_pairs) for name, part in manifest.splits.items()]
    blocks = [html.heading("What the manifest says"), html.table(("split", "shards", "images", "pairs"), splits)]
    size = f"{manifest.image_px} x {manifest.image_px} px"
    blocks.append(html.paragraph(f"{faults.num_images:,} pictures of {size} were decoded."))
    if faults.examples:
        rows = [(kind.replace("_", "-"), where) for kind, some in faults.examples.items() for where in some]
        blocks += [html.heading("The first faults of each kind"), html.table(("fault", "where"), rows)]
    return gate_page(report, "Quality of the shards", blocks)


def tables_page(
    report: QualityReport,
    figure: Figure | None,
    moved: Mapping[str, float],
    reference: DriftReference | None,
    checked_sets: Iterable[str],
    *,
    lost: Sequence[str],
    has_manifest: bool,
) -> str:
    """The page of `align validate`.

    Args:
        report: the numbers.
        figure: the distributions of the kept pairs; None if they were not measured.
        moved: the figure whose drift was measured -> how far it moved, 0 to 1.
        reference: the reference for drift, or None.
        checked_sets: names of the evaluation sets that the filter searched for.
        lost: a sentence for each source of which nothing was kept.
        has_manifest: whether data/raw has a manifest with which its bytes were compared.
    """
    blocks = [html.paragraph(f"{one[0].upper()}{one[1:]}.") for one in lost]
    blocks.append(html.heading("The kept pairs, and how far they moved"))
    if figure is not None:
        blocks.append(html.plot(figure, alt="text lengths, image sizes and languages of the kept pairs"))
    blocks += _drift(moved, reference)
    names = ", ".join(sorted(checked_sets)) or "none"
    blocks.append(html.paragraph(f"Evaluation sets that the filter searched for in the training images: {names}."))
    if not has_manifest:
        blocks.append(html.paragraph("The raw folder has no manifest.json, so its bytes could not be checked."))
    return gate_page(report, "Data quality", blocks)


def _drift(moved: Mapping[str, float], reference: DriftReference | None) -> list[str]:
    if reference is None:
        advice = (
            "No reference: drift was not measured. If this data is good, `align validate --set-reference` makes it "
            f"the reference; then commit data/policy/{REFERENCE}."
        )
        return [html.paragraph(advice)]
    words = (
        f"The reference was set on {reference.on} by {reference.by}, data {reference.data[:12]}. Of the keep rate "
        "the table shows the change, of a distribution the total variation distance: the share of pairs that would "
        "have to move to another bucket for the two to be equal."
    )
    rows = [(DRIFT[name], value) for name, value in moved.items()]
    return [html.paragraph(words), html.table(("figure", "moved by"), rows)]


_COLUMNS = ("verdict", "expectation", "observed", "in its band", "threshold", "name")


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
    held = [outcome for outcome in report.expectations if outcome.holds]
    shown = [outcome for outcome in held if outcome.accepted or (_band(outcome) and outcome.value != outcome.low)]
    others = [outcome for outcome in held if outcome not in shown]
    parts.append(html.heading("All expectations"))
    parts += [_table(shown)] if shown else []
    parts += [html.fold(f"{len(others):,} {'more ' * bool(shown)}passed", _table(others))] if others else []
    parts.append(html.paragraph(f"Data: {report.data}"))
    return html.page(title, lead, parts)


def _failures(report: QualityReport) -> list[str]:
    if not report.failed:
        return []
    parts = [html.heading("What failed"), _table(report.failed)]
    if report.bands:
        advice = (
            "Correct the data or a rule. Or, if data of this kind is like that, set these bands in params.yaml: what "
            "was measured, and 10 points of room."
        )
        parts += [html.paragraph(advice), html.code(as_yaml(report.bands))]
    else:
        parts.append(html.paragraph("Correct the data, or the thresholds (params.yaml, section validate)."))
    parts.append(html.paragraph(f"Or accept the failures for this data only, and commit data/policy/{ACCEPTED}:"))
    parts.append(html.code(accept_all(report)))
    if before := accepted_before(report):
        parts.append(html.paragraph(f"They were {before.strip(' ()')}."))
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


def _table(outcomes: Iterable[Outcome]) -> str:
    rows = [
        ("accepted" if one.accepted else one.passed, one.what, one.observed, _band(one), one.threshold, one.name)
        for one in outcomes
    ]
    return html.table(_COLUMNS, rows, verdict=0, drawn=3)


def _band(outcome: Outcome) -> str:
    """The band, and the value as a dot in it or beside it; nothing where there is no band."""
    value, low, high = outcome.value, outcome.low, outcome.high
    if value is None or low is None or high is None or low == high:
        return ""
    left, right = min(low, value), max(high, value)
    at, start, end = (6 + 108 * (place - left) / (right - left) for place in (value, low, high))
    return (
        '<svg class=band viewBox="0 0 120 14" aria-hidden=true><rect class=line y="6" width="120" height="2"/>'
        f'<rect class=within x="{start:.1f}" y="2" width="{end - start:.1f}" height="10" rx="2"/>'
        f'<circle cx="{at:.1f}" cy="7" r="4" fill="var(--{"good" if outcome.passed else "bad"})"/></svg>'
    )
