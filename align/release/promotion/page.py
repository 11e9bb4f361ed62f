"""The page of a promotion: the decision, its gates, what was compared and what that means. HTML, and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from align.display.figure import BAD, GOOD, INK, SOFT, Interval, forest
from align.display.html import cards, heading, page, paragraph, plot, table
from align.display.shares import percent, points
from align.display.visible import markdown_table, plain_markdown
from align.durable.files import write_text
from align.release.promotion.decision import HEADS, Compared, PromotionDecision, bound, explanation
from align.statistics.paired import Difference

PAGE, MARKDOWN = "promotion.html", "promotion.md"
#: More slices than this are not drawn; the table has all.
_MAX_DRAWN = 40
_METRICS = ("metric", "candidate", "champion", "difference", "lower bound", "upper bound")
_SLICES = ("verdict", "slice", "concepts", "queries", "difference", "lower bound", "upper bound")


def write_page(decision: PromotionDecision, folder: Path) -> Path:
    """Writes `promotion.html` and `promotion.md` into a folder; returns the first."""
    write_text(folder / MARKDOWN, "\n".join(_markdown(decision)) + "\n")
    write_text(folder / PAGE, _html(decision))
    return folder / PAGE


def title(decision: PromotionDecision) -> str:
    """The decision in a line."""
    said = "waits for a person's approval" if decision.outcome == "unapproved" else decision.outcome
    return f"{decision.model} version {decision.candidate}: {said}"


def _html(decision: PromotionDecision) -> str:
    blocks = [cards(_cards(decision)), heading("Gates"), _gates(decision)]
    blocks += [heading("What this means"), *map(paragraph, explanation(decision))]
    if (compared := decision.compared) is not None:
        blocks += [
            heading("Candidate minus champion"),
            plot(_figure(decision, compared), alt="differences with their bounds, in percentage points"),
            table(_METRICS, _metrics(decision)),
            heading("Slices"),
            paragraph(
                "Bounds of slices are wider: with so many slices, one of an equally good model would look worse by "
                "chance. A slice refuses only if its upper bound is below minus its margin. Unknown: too few concepts."
            ),
            table(_SLICES, _slices(compared)),
        ]
    blocks += [heading("How it was measured"), *map(paragraph, _origin(decision))]
    return page(title(decision), decision.reason, blocks)


def _cards(decision: PromotionDecision) -> Iterator[tuple[str, str, str]]:
    good = {"promoted": "good", "refused": "bad"}.get(decision.outcome, "")
    yield "outcome", decision.outcome, good
    if decision.compared is not None:
        one = decision.compared.difference
        yield "difference, points", points(one.value), ""
        yield f"{decision.confidence:.0%} lower bound", bound(one.low), good if one.low > decision.margin else "bad"
        yield "concepts compared", f"{one.num_units:,}", ""
        yield "found with 80 % chance", bound(decision.detectable or 0.0), ""
    yield "earlier decisions by these sets", f"{decision.num_decided}", "warn" if decision.num_decided > 9 else ""


def _gates(decision: PromotionDecision) -> str:
    rows = [
        [gate.verdict if gate.passed is None else gate.passed, gate.name, gate.figure, gate.bar]
        for gate in decision.gates
    ]
    return table(["verdict", *HEADS[:3]], rows, verdict=0)


def _metrics(decision: PromotionDecision) -> Iterator[list[str]]:
    assert decision.compared is not None
    for name, (mine, theirs) in decision.scores.items():
        one = decision.compared.by_metric[name]
        yield [name, percent(mine), percent(theirs or 0.0), *_bounds(one)]
    yield ["mean", "", "", *_bounds(decision.compared.difference)]


def _slices(compared: Compared) -> Iterator[list[str]]:
    for one in compared.slices:
        numbers = _bounds(one.difference) if one.difference else ["", "", ""]
        said = "too few concepts to tell" if one.difference is None else "WORSE" if one.worse else ""
        yield [said, one.name, f"{one.num_units:,}", f"{one.num_queries:,}", *numbers]


def _bounds(one: Difference) -> list[str]:
    bounds = (points(value) if abs(value) < 1 else "unknown" for value in (one.low, one.high))
    return [points(one.value), *bounds]


def _origin(decision: PromotionDecision) -> Iterator[str]:
    yield f"Candidate: {decision.what}."
    yield from (f"{line[0].upper()}{line[1:]}." for line in decision.measured)
    yield f"The sets that decide have digest {decision.sets_digest}. Decided at {decision.at}."


def _figure(decision: PromotionDecision, compared: Compared) -> Figure:
    """Each metric, their mean, and each slice: the difference with both bounds, and the margin."""
    metrics = [_interval(name, one, INK) for name, one in compared.by_metric.items()]
    mean = _interval("mean of the metrics", compared.difference, GOOD if decision.outcome == "promoted" else BAD)
    told = [one for one in compared.slices if one.difference is not None][:_MAX_DRAWN]
    slices = [_interval(one.name, one.difference, BAD if one.worse else SOFT) for one in told if one.difference]
    groups = [("", [*metrics, mean]), *([("Slices", slices)] if slices else [])]
    return forest(groups, about="candidate minus champion", margin=decision.margin)


def _interval(name: str, one: Difference, colour: str) -> Interval:
    return Interval(name, one.value, one.low, one.high, colour)


def _markdown(decision: PromotionDecision) -> Iterator[str]:
    yield from (f"# {plain_markdown(title(decision))}", "", plain_markdown(decision.reason), "")
    gates = [[one.verdict, one.name, one.figure, one.bar] for one in decision.gates]
    yield markdown_table(["verdict", *HEADS[:3]], gates)
    for line in explanation(decision):
        yield from ("", line)
    if decision.compared is not None:
        metrics, slices = _metrics(decision), _slices(decision.compared)
        yield from ("", "## Candidate minus champion, percentage points", "", markdown_table(_METRICS, metrics))
        yield from ("", "## Slices", "", markdown_table(_SLICES, slices))
    yield from ("", "## How it was measured")
    for line in _origin(decision):
        yield from ("", plain_markdown(line))
