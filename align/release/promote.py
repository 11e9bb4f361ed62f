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
from dataclasses import dataclass, replace
from typing import Literal

from align.config import Params
from align.config.promote import PromoteConfig
from align.config.register import RegisterConfig
from align.console import say, show
from align.errors import DataError, GateError
from align.locks import locked
from align.release.alias_moves import LOCK
from align.release.approval import Approval, add_approval_arguments, approval_of, reject, write_decision
from align.release.champion import make_champion, settled
from align.services.mlflow_address import require_store
from align.services.registry import CANDIDATE, CHAMPION, PREVIOUS, ROLLED_BACK, ROLLED_BACK_BECAUSE, Version
from align.services.tracking import Tracker, metric_name


@dataclass(frozen=True)
class PromotionDecision:
    """The decision on a version, the candidate.

    Attributes:
        outcome: `unchanged`: the candidate already is the champion. `unapproved`: it is good enough, and a person has
            to approve it (`promote.approval`).
        reason: one sentence with the numbers.
        candidate: version number.
        what: what the candidate is: its run, data, model and revision.
        champion: version number of the champion before the decision; None if there was none.
        scores: metric -> (candidate's, champion's or None).
    """

    outcome: Literal["promoted", "refused", "unchanged", "unapproved"]
    reason: str
    candidate: int
    what: str
    champion: int | None
    scores: Mapping[str, tuple[float, float | None]]


def promote(
    config: PromoteConfig, model: str, tracker: Tracker, number: int | None = None, approval: Approval | None = None
) -> PromotionDecision:
    """Compares a version with the champion, and moves the alias `champion` if the version is good enough.

    Args:
        config: section `promote`.
        model: name of the registered model.
        tracker: MLflow.
        number: of the version; None takes the one with alias `candidate`.
        approval: of a person; None: nobody was asked.

    Raises:
        GateError: what was approved is not what would be moved.
        LockedError: somebody else moved the aliases at the same time.
        DataError: there is no such version, no candidate, or a metric was not measured.
        ServiceError: MLflow is unavailable or refuses.
    """
    settled(tracker, model)  # what a killed call left half moved, and what was moved by hand
    candidate, champion = _candidate(model, tracker, number), tracker.registry.version_at(model, CHAMPION)
    if approval is not None:
        approval.require_judged(candidate, champion, tracker.registry.aliases(model))
    decision = _decide(config, tracker, candidate, champion)
    if decision.outcome == "promoted" and config.approval and approval is None:
        return replace(decision, outcome="unapproved")
    if decision.outcome == "promoted":
        _make_champion(
            tracker,
            candidate,
            champion,
            decision.reason,
            {name: ours for name, (ours, _) in decision.scores.items()},
            approval,
        )
    elif decision.outcome == "refused":
        tracker.registry.set_version_tags(
            candidate, {"align.refused_at": _now(), "align.refused_because": decision.reason}
        )
    return decision


def check(config: PromoteConfig, model: str, tracker: Tracker) -> str:
    """Judges the champion after the fact: by the gates, and one moved by hand also against the one that it replaced.

    Returns:
        A sentence.

    Raises:
        GateError: it would not have been promoted; the message says why.
        DataError: there is no champion, or a metric was not measured.
        ServiceError: MLflow is unavailable or refuses.
    """
    state = settled(tracker, model)
    if state.champion is None:
        raise DataError(f"model '{model}' has no champion to check")
    versions = {version.number: version for version in tracker.registry.versions(model)}
    by_hand = state.last if state.moved_by_hand else None
    replaced = by_hand.before if by_hand else None
    decision = _decide(config, tracker, versions[state.champion], versions.get(replaced or 0))
    how = f", moved by hand at {by_hand.at}," if by_hand else ""
    name = f"{model} version {state.champion}, the champion{how}"
    if decision.outcome == "refused":
        raise GateError(f"{name} would not be promoted: {decision.reason}")
    return f"{name} passes the gates"


def _make_champion(
    tracker: Tracker,
    candidate: Version,
    champion: Version | None,
    reason: str,
    figures: Mapping[str, float],
    approval: Approval | None,
) -> None:
    """The one place where `promote` moves aliases."""
    replaces = champion.number if champion else None
    why, who = (f"{reason}; approved: {approval.why}", approval.signed) if approval else (reason, None)
    make_champion(tracker, candidate, replaces=replaces, why=why, figures=figures, who=who)


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
    parser.add_argument("--check", action="store_true", help="judge the champion that is; moves nothing")
    add_approval_arguments(parser)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align promote`. Raises GateError if the version is refused, or waits for an approval."""
    config, names = params.section(PromoteConfig), params.section(RegisterConfig)
    approval = approval_of(args)
    require_store()
    with locked(LOCK, "align promote", say):
        tracker = Tracker()
        if approval is not None and approval.is_rejection:
            show(reject(tracker, _candidate(names.model_name, tracker, args.version), approval))
            return
        if args.check:
            show(check(config, names.model_name, tracker))
            return
        decision = promote(config, names.model_name, tracker, args.version, approval)
    write_decision(args.decision, decision)
    what = decision.what if args.version is not None else f"the {CANDIDATE}: {decision.what}"
    name = f"{names.model_name} version {decision.candidate} ({what})"
    if decision.outcome == "refused":
        raise GateError(f"{name} is not promoted: {decision.reason}")
    if decision.outcome == "unapproved":
        asks = f"{name} is good enough ({decision.reason}), and waits for a person's approval (promote.approval)"
        if args.decision is None:
            how = f"align promote --version {decision.candidate} --approved-by WHO --because WHY"
            raise GateError(f"{asks}: {how}")
        show(asks)
        return
    if decision.outcome == "unchanged":
        show(f"{names.model_name}: {decision.reason} ({what})")
        return
    before = f" (before: version {decision.champion}, now '{PREVIOUS}')" if decision.champion is not None else ""
    show(f"{name} is the {CHAMPION}{before}: {decision.reason}")
