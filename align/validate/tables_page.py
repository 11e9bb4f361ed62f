"""The page of `align validate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from align.display import html
from align.formats.drift_reference import REFERENCE, DriftReference
from align.validate.expectations import DRIFT
from align.validate.page import gate_page
from align.validate.report import QualityReport


def tables_page(
    report: QualityReport,
    figure: bytes | None,
    moved: Mapping[str, float],
    reference: DriftReference | None,
    checked_sets: Iterable[str],
    *,
    has_manifest: bool,
) -> str:
    """The page of `align validate`.

    Args:
        report: the numbers.
        figure: the distributions of the kept pairs as PNG; None where they were not measured.
        moved: the figure whose drift was measured -> how far it moved, 0 to 1.
        reference: the reference for drift, or None.
        checked_sets: names of the evaluation sets that the filter searched for.
        has_manifest: whether data/raw has a manifest with which its bytes were compared.
    """
    blocks = [html.heading("The kept pairs, and how far they moved")]
    if figure is not None:
        blocks.append(html.picture(figure, alt="text lengths, image sizes and languages of the kept pairs"))
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
