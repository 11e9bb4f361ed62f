"""promote: the candidate becomes the champion if its metrics are good enough; the old champion becomes `previous`.

There are two conditions, both set in params.yaml: the lower 95 % bound of each metric is well above chance, and the
mean over the metrics is at least the champion's plus a gain. If one fails, no alias moves, and the decision says why. A
version that was rolled back is not promoted again until its tag is removed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from align.config import Params
from align.config.promote import PromoteConfig
from align.config.register import RegisterConfig
from align.console import show
from align.errors import DataError, GateError
from align.services.tracking import (
    CANDIDATE,
    CHAMPION,
    PREVIOUS,
    REPLACED,
    ROLLED_BACK,
    ROLLED_BACK_BECAUSE,
    Tracker,
    Version,
    metric_name,
)


@dataclass(frozen=True)
class PromotionDecision:
    """The decision on the candidate.

    Attributes:
        outcome: `unchanged` means that the candidate already is the champion.
        reason: one sentence with the numbers.
        candidate: version number.
        champion: version number of the champion before the decision; None if there was none.
        scores: metric -> (candidate's, champion's or None).
    """

    outcome: Literal["promoted", "refused", "unchanged"]
    reason: str
    candidate: int
    champion: int | None
    scores: Mapping[str, tuple[float, float | None]]


def promote(config: PromoteConfig, model: str, tracker: Tracker) -> PromotionDecision:
    """Compares the candidate with the champion, and moves the alias `champion` if the candidate is good enough.

    Args:
        config: section `promote`.
        model: name of the registered model.
        tracker: MLflow.

    Raises:
        DataError: there is no candidate, or a metric was not measured.
        ServiceError: MLflow is unavailable or refuses.
    """
    candidate, champion = tracker.version_at(model, CANDIDATE), tracker.version_at(model, CHAMPION)
    if candidate is None:
        raise DataError(f"model '{model}' has no version with alias '{CANDIDATE}'; run `align register` first")
    decision = _decide(config, tracker, candidate, champion)
    if decision.outcome == "promoted":
        tags = {"align.promoted_at": _now(), "align.promoted_because": decision.reason}
        if champion is not None:
            tags[REPLACED] = str(champion.number)
            tracker.set_alias(champion, PREVIOUS)
        tracker.set_version_tags(candidate, tags)
        tracker.set_alias(candidate, CHAMPION)
    elif decision.outcome == "refused":
        tracker.set_version_tags(candidate, {"align.refused_at": _now(), "align.refused_because": decision.reason})
    return decision


def _decide(config: PromoteConfig, tracker: Tracker, candidate: Version, champion: Version | None) -> PromotionDecision:
    ours = tracker.metrics(candidate.run_id)
    theirs = tracker.metrics(champion.run_id) if champion else {}
    scores: dict[str, tuple[float, float | None]] = {}
    for name in config.metrics:
        scores[name] = (_score(ours, name, candidate), _score(theirs, name, champion) if champion else None)

    def decision(outcome: Literal["promoted", "refused", "unchanged"], reason: str) -> PromotionDecision:
        return PromotionDecision(outcome, reason, candidate.number, champion.number if champion else None, scores)

    if champion is not None and champion.number == candidate.number:
        return decision("unchanged", f"version {candidate.number} already is the champion")
    if ROLLED_BACK in candidate.tags:
        because = f"it was rolled back at {candidate.tags[ROLLED_BACK]}: {candidate.tags.get(ROLLED_BACK_BECAUSE, '')}"
        return decision("refused", f"{because}; remove its tag {ROLLED_BACK} to allow its promotion")
    for name in config.metrics:
        low, chance = _score(ours, f"{name}/low", candidate), _score(ours, f"{name}/chance", candidate)
        bar = config.min_times_chance * chance
        if low < bar:
            return decision(
                "refused",
                f"{name}: the lower 95 % bound {low:.4f} is below {config.min_times_chance:g} x chance = {bar:.4f}",
            )
    mine = sum(score for score, _ in scores.values()) / len(scores)
    names = " and ".join(config.metrics)
    if champion is None:
        return decision("promoted", f"mean of {names} is {mine:.4f}, well above chance, and there was no champion")
    other = sum(score or 0.0 for _, score in scores.values()) / len(scores)
    text = f"mean of {names} is {mine:.4f}, the champion's (version {champion.number}) {other:.4f}"
    if mine < other + config.min_gain:
        return decision("refused", f"{text}; needed: at least {other + config.min_gain:.4f}")
    return decision("promoted", text)


def _score(metrics: Mapping[str, float], name: str, version: Version) -> float:
    try:
        return metrics[metric_name(name)]
    except KeyError:
        where = f"run {version.run_id} of {version.name} version {version.number}"
        raise DataError(
            f"{where} has no metric '{name}'; run `align register` again, or correct promote.metrics"
        ) from None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def main(params: Params, args: argparse.Namespace) -> None:
    """`align promote`. Raises GateError if the candidate is refused."""
    config, names = params.section(PromoteConfig), params.section(RegisterConfig)
    decision = promote(config, names.model_name, Tracker())
    if decision.outcome == "refused":
        raise GateError(f"{names.model_name} version {decision.candidate} is not promoted: {decision.reason}")
    if decision.outcome == "unchanged":
        show(f"{names.model_name}: {decision.reason}")
        return
    before = f" (before: version {decision.champion}, now '{PREVIOUS}')" if decision.champion is not None else ""
    show(f"{names.model_name} version {decision.candidate} is the {CHAMPION}{before}: {decision.reason}")
