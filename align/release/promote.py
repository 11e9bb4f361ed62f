"""promote: a version becomes the champion if its metrics are good enough; the old champion becomes `previous`.

Without a number it is the candidate, the version that was registered last. There are two conditions, both set in
params.yaml: the lower 95 % bound of each metric is well above chance, and the mean over the metrics is at least the
champion's plus a gain. If one fails, no alias moves, and the decision says why. A version that was rolled back is not
promoted again until its tag is removed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.config import Params
from align.config.promote import PromoteConfig
from align.config.register import RegisterConfig
from align.console import say, show
from align.errors import DataError, GateError
from align.locks import locked
from align.services.mlflow_address import require_store
from align.services.registry import CANDIDATE, CHAMPION, PREVIOUS, REPLACED, ROLLED_BACK, ROLLED_BACK_BECAUSE, Version
from align.services.tracking import Tracker, metric_name

#: Of all processes of a checkout, one moves the aliases at a time. In the working directory, as what runs share.
LOCK = Path(".align/locks/champion")


@dataclass(frozen=True)
class PromotionDecision:
    """The decision on a version, the candidate.

    Attributes:
        outcome: `unchanged` means that the candidate already is the champion.
        reason: one sentence with the numbers.
        candidate: version number.
        what: what the candidate is: its run, data, model and revision.
        champion: version number of the champion before the decision; None if there was none.
        scores: metric -> (candidate's, champion's or None).
    """

    outcome: Literal["promoted", "refused", "unchanged"]
    reason: str
    candidate: int
    what: str
    champion: int | None
    scores: Mapping[str, tuple[float, float | None]]


def promote(config: PromoteConfig, model: str, tracker: Tracker, number: int | None = None) -> PromotionDecision:
    """Compares a version with the champion, and moves the alias `champion` if the version is good enough.

    Args:
        config: section `promote`.
        model: name of the registered model.
        tracker: MLflow.
        number: of the version; None takes the one with alias `candidate`.

    Raises:
        DataError: there is no such version, no candidate, or a metric was not measured.
        ServiceError: MLflow is unavailable or refuses.
    """
    candidate, champion = _candidate(model, tracker, number), tracker.registry.version_at(model, CHAMPION)
    decision = _decide(config, tracker, candidate, champion)
    if decision.outcome == "promoted":
        tags = {"align.promoted_at": _now(), "align.promoted_because": decision.reason}
        if champion is not None:
            tags[REPLACED] = str(champion.number)
            tracker.registry.set_alias(champion, PREVIOUS)
        tracker.registry.set_version_tags(candidate, tags)
        tracker.registry.set_alias(candidate, CHAMPION)
    elif decision.outcome == "refused":
        tracker.registry.set_version_tags(
            candidate, {"align.refused_at": _now(), "align.refused_because": decision.reason}
        )
    return decision


def _candidate(model: str, tracker: Tracker, number: int | None) -> Version:
    if number is None:
        if (candidate := tracker.registry.version_at(model, CANDIDATE)) is None:
            raise DataError(f"model '{model}' has no version with alias '{CANDIDATE}'; run `align register` first")
        return candidate
    versions = {version.number: version for version in tracker.registry.versions(model)}
    if number not in versions:
        known = f"it has {', '.join(map(str, versions))}" if versions else "it has none: run `align register` first"
        raise DataError(f"model '{model}' has no version {number}; {known}")
    return versions[number]


def describe(version: Version) -> str:
    """What a version is, for people: its MLflow run, and what `align register` recorded of its origin."""
    known = {"data": "align.data_digest", "model": "align.model_digest", "git": "align.git_revision"}
    parts = [f"{word} {version.tags[tag][:12]}" for word, tag in known.items() if tag in version.tags]
    return ", ".join([f"run {version.run_id}", *parts])


def _decide(config: PromoteConfig, tracker: Tracker, candidate: Version, champion: Version | None) -> PromotionDecision:
    ours = tracker.metrics(candidate.run_id)
    theirs = tracker.metrics(champion.run_id) if champion else {}
    scores: dict[str, tuple[float, float | None]] = {}
    for name in config.metrics:
        scores[name] = (_score(ours, name, candidate), _score(theirs, name, champion) if champion else None)

    def decision(outcome: Literal["promoted", "refused", "unchanged"], reason: str) -> PromotionDecision:
        before = champion.number if champion else None
        return PromotionDecision(outcome, reason, candidate.number, describe(candidate), before, scores)

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `align promote`."""
    parser.add_argument(
        "--version",
        type=int,
        metavar="N",
        help=f"promote this version; default: the one with alias '{CANDIDATE}', which `align register` moves",
    )


def main(params: Params, args: argparse.Namespace) -> None:
    """`align promote`. Raises GateError if the version is refused."""
    config, names = params.section(PromoteConfig), params.section(RegisterConfig)
    require_store()
    with locked(LOCK, "align promote", say):
        decision = promote(config, names.model_name, Tracker(), args.version)
    what = decision.what if args.version is not None else f"the {CANDIDATE}: {decision.what}"
    name = f"{names.model_name} version {decision.candidate} ({what})"
    if decision.outcome == "refused":
        raise GateError(f"{name} is not promoted: {decision.reason}")
    if decision.outcome == "unchanged":
        show(f"{names.model_name}: {decision.reason} ({what})")
        return
    before = f" (before: version {decision.champion}, now '{PREVIOUS}')" if decision.champion is not None else ""
    show(f"{name} is the {CHAMPION}{before}: {decision.reason}")
