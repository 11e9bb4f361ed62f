"""What `align promote` decides: the outcome, the gates as rows, and the comparison that they are about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from align.display.shares import points
from align.release.promotion.slices import Slice
from align.statistics.paired import Difference

Outcome = Literal["promoted", "refused", "unchanged", "unapproved"]
HEADS = ("gate", "figure", "needed", "")


@dataclass(frozen=True)
class Gate:
    """One condition.

    Attributes:
        name: of the condition.
        figure: what was found.
        bar: what was needed.
        passed: None if nothing was recorded that could be judged; this refuses nothing, and says so.
        way_out: of a refusal: what to set or do, and what that costs; may be empty.
    """

    name: str
    figure: str
    bar: str
    passed: bool | None
    way_out: str = ""

    @property
    def verdict(self) -> str:
        """The outcome in a word."""
        return "not recorded" if self.passed is None else "passed" if self.passed else "FAILED"


@dataclass(frozen=True)
class Compared:
    """Candidate and champion on the same items.

    Attributes:
        difference: of the mean of the metrics.
        by_metric: metric -> difference.
        slices: see `align.release.promotion.slices`.
    """

    difference: Difference
    by_metric: Mapping[str, Difference]
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class PromotionDecision:
    """The decision on a version, the candidate.

    Attributes:
        outcome: `unchanged`: the candidate is the champion already; `unapproved`: every gate lets it, but a person has
            to approve it (`promote.approval`).
        reason: one sentence with the numbers.
        model: name of the registered model.
        candidate: version number.
        what: what the candidate is: its run, data, model and revision.
        champion: version number of the champion before the decision; None if there was none.
        confidence, margin: those of section `promote`.
        at: when, UTC.
        scores: metric -> (candidate's, champion's or None); this and what follows is empty if nothing changes.
        gates: one row each.
        compared: None without a champion.
        measured: where the ranks of candidate and champion come from, in words.
        sets_digest: names the sets that decide; they have decided on `num_decided` other versions before.
    """

    outcome: Outcome
    reason: str
    model: str
    candidate: int
    what: str
    champion: int | None
    confidence: float
    margin: float
    at: str
    scores: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    compared: Compared | None = None
    measured: tuple[str, ...] = ()
    sets_digest: str = ""
    num_decided: int = 0

    @property
    def detectable(self) -> float | None:
        """The smallest true difference that a comparison of this size finds with a chance of 80 %."""
        return None if self.compared is None else self.compared.difference.detectable(self.margin)

    def figures(self) -> dict[str, Any]:
        """The numbers of the decision, short enough for a tag."""
        found: dict[str, Any] = {name: round(mine, 6) for name, (mine, _) in self.scores.items()}
        if self.compared is not None:
            one = self.compared.difference
            found |= {"difference": round(one.value, 6), "low": round(one.low, 6), "high": round(one.high, 6)}
            found |= {"num_units": one.num_units, "detectable": round(min(self.detectable or 0.0, 1.0), 6)}
        return found | {"margin": self.margin, "confidence": self.confidence, "decided_before": self.num_decided}

    def as_dict(self, page: str | None) -> dict[str, Any]:
        """For `--json`; `page` is the file of the page."""
        names = ("outcome", "reason", "model", "candidate", "champion", "at", "sets_digest")
        return {name: getattr(self, name) for name in names} | {
            "figures": self.figures(),
            "gates": [
                {"name": gate.name, "figure": gate.figure, "needed": gate.bar, "passed": gate.passed}
                for gate in self.gates
            ],
            "slices": [
                {"name": one.name, "num_units": one.num_units, "num_queries": one.num_queries, "worse": one.worse}
                | ({"difference": one.difference.value, "low": one.difference.low, "high": one.difference.high}
                   if one.difference else {})
                for one in (self.compared.slices if self.compared else ())
            ],
            "page": page,
        }  # fmt: skip


def told(difference: Difference) -> str:
    """Whether a model is better than another, by both bounds; before the other's name."""
    return "better than" if difference.low > 0 else "worse than" if difference.high < 0 else "not told apart from"


def bound(value: float) -> str:
    """As `points`, of a bound, or of what can be found; in words beyond what a difference can be."""
    return points(value) if abs(value) < 1 else "unknown: too few concepts"


def table_lines(decision: PromotionDecision) -> Iterator[str]:
    """The gates as lines of a terminal."""
    rows = [HEADS, *((gate.name, gate.figure, gate.bar, gate.verdict) for gate in decision.gates)]
    name, verdict = (max(len(row[column]) for row in rows) for column in (0, 3))
    for row in rows:
        yield f"{row[3]:<{verdict}}  {row[0]:<{name}}  {row[1]}{f'  (needed: {row[2]})' if row[2] != HEADS[2] else ''}"


def explanation(decision: PromotionDecision) -> list[str]:
    """What the decision means, in plain words, a paragraph each."""
    lines = []
    if decision.compared is None:
        lines.append("There was no champion, so nothing was compared: the other gates decide alone.")
    else:
        one = decision.compared.difference
        lines += [
            "The decision is about this model, not about its recipe: another seed of the same recipe is another model. "
            "It says how this model answers queries like these sets' ones. Whether the recipe is better takes several "
            "seeds of both.",
            f"Both models were asked the same queries, about {one.num_units:,} concepts. Concepts are drawn again and "
            f"again, all queries about one together (paired bootstrap, studentised). Of two equally good models at "
            f"most {1 - decision.confidence:.0%} are promoted by chance.",
            "Power: the true difference in points that so many concepts show with a chance of 80 % is "
            f"{bound(decision.detectable or 0.0)}. A smaller one is mostly refused: it may well be there.",
        ]
    times = "once" if decision.num_decided == 1 else f"{decision.num_decided} times"
    lines.append(
        "These sets have decided on no other version before."
        if decision.num_decided == 0
        else f"These sets have decided {times} before, on other versions. Each look at the same sets picks a little of "
        "what is good on them by chance: after many, take new sets."
    )
    return lines
