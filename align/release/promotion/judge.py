"""What `align promote` decides on a version: both models on the same items, the gates, and a sentence.

Candidate and champion are compared by the ranks that their runs kept, or, where the sets have changed since, by
measuring their registered models on today's sets (`align.release.promotion.evidence`).
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.params import flattened
from align.config.release import PromoteConfig
from align.display.shares import percent, points
from align.errors import DataError
from align.formats.measured_sets import evaluation_digest
from align.formats.query_ranks import QueryRanks
from align.release.promotion import gates
from align.release.promotion.decision import Compared, Gate, Outcome, PromotionDecision, told
from align.release.promotion.evidence import Evidence, evidence, from_run, has, todays_sets, wanted_sets
from align.release.promotion.slices import compared_slices
from align.services.tracking.registry import CANDIDATE, CHAMPION, DATA_DIGEST, MODEL_DIGEST, Version
from align.services.tracking.tracker import REVISION, Tracker
from align.statistics.paired import difference, of_metrics, set_of

#: A tag `align.decided.<digest>` for each group of sets that decided on a version.
DECIDED = "align.decided."


@dataclass(frozen=True)
class Judged:
    """Makes a decision, which takes time and depends only on these two versions."""

    candidate: Version
    champion: Version | None
    decision: PromotionDecision


def version_asked(model: str, tracker: Tracker, number: int | None) -> Version:
    """The version with this number; None: the one with alias `candidate`. Raises DataError if there is none."""
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
    known = {"data": DATA_DIGEST, "model": MODEL_DIGEST, "git": REVISION}
    parts = [f"{word} {version.tags[tag][:12]}" for word, tag in known.items() if tag in version.tags]
    return ", ".join([f"run {version.run_id}", *parts])


def judge(params: Params, tracker: Tracker, candidate: Version, champion: Version | None) -> Judged:
    """Judges a version against the champion.

    Args:
        params: sections `promote`, `evaluate`, `paths` and `store` are read.
        tracker: MLflow.
        candidate: the version.
        champion: the version to be better than; None: there is none.

    Raises:
        DataError: a metric or a set cannot be measured.
        ServiceError: MLflow is unavailable or refuses.
    """
    config = params.section(PromoteConfig)

    def decided(outcome: Outcome, reason: str, **found: Any) -> Judged:
        decision = PromotionDecision(
            outcome=outcome, reason=reason, model=candidate.name, candidate=candidate.number, what=describe(candidate),
            champion=number_of(champion), confidence=config.confidence, margin=config.margin, at=now(), **found,
        )  # fmt: skip
        return Judged(candidate, champion, decision)

    if champion is not None and champion.number == candidate.number:
        return decided("unchanged", f"version {candidate.number} already is the champion")
    mine, theirs, sets_digest = _measured(params, tracker, candidate, champion)
    compared = None if theirs is None else _compare(config, mine.ranks, theirs.ranks)
    rows = _gates(params, tracker, candidate, champion, mine.ranks, compared)
    scores = {
        name: (_mean(mine.ranks, name), None if theirs is None else _mean(theirs.ranks, name))
        for name in config.metrics
    }
    failed = [gate for gate in rows if gate.passed is False]
    versions = [one for one in tracker.registry.versions(candidate.name) if one.number != candidate.number]
    return decided(
        "refused" if failed else "promoted",
        _why_not(failed) if failed else _why(config, scores, champion, compared),
        scores=scores,
        gates=tuple(rows),
        compared=compared,
        measured=tuple(one.origin for one in (mine, theirs) if one is not None),
        sets_digest=sets_digest,
        num_decided=sum(f"{DECIDED}{sets_digest[:16]}" in one.tags for one in versions),
    )


def outlook(params: Params, tracker: Tracker, candidate: Version) -> str:
    """What a promotion would say of a version now, in a sentence, by what the runs recorded: nothing is measured.

    It leaves out the gates over the registered files, and the champion where it was measured on other sets.

    Raises:
        ServiceError: MLflow is unavailable or refuses.
    """
    config, champion = params.section(PromoteConfig), tracker.registry.version_at(candidate.name, CHAMPION)
    if champion is not None and champion.number == candidate.number:
        return f"version {candidate.number} already is the champion"
    if (mine := from_run(candidate, tracker)) is None:
        return f"version {candidate.number} has no ranks: `align promote` measures it"
    theirs = None if champion is None else from_run(champion, tracker)
    try:
        wanted = wanted_sets(map(set_of, config.metrics), {}, mine)
        compared = _compare(config, mine, theirs) if theirs is not None and has(theirs, wanted) else None
        rows = _gates(params, tracker, candidate, champion, mine, compared, files=False)
    except DataError as error:
        return f"a promotion would end now: {error}"
    against = "there is no champion" if champion is None else f"champion {champion.number} was measured on other sets"
    if compared is not None and champion is not None:
        figure = gates.better(config, compared, champion.number).figure
        against = f"{told(compared.difference)} champion {champion.number}: {figure}"
    alarms = next(gate.figure for gate in rows if gate.name == gates.HEALTH)
    failed = [gate for gate in rows if gate.passed is False]
    now = f"would be refused: {_why_not(failed)}" if failed else "fails no gate but those over files, not asked here"
    return f"{against}; health alarms: {alarms}; a promotion now {now}"


def _measured(
    params: Params, tracker: Tracker, candidate: Version, champion: Version | None
) -> tuple[Evidence, Evidence | None, str]:
    """The ranks of both on the same sets, and the digest of the sets that decide."""
    metrics = params.section(PromoteConfig).metrics
    today, recorded = todays_sets(params), from_run(candidate, tracker)
    wanted = wanted_sets(map(set_of, metrics), today, recorded)
    # what decides what `align evaluate` measures, as this command has it
    decides = {section: params.values.get(section, {}) for section in ("paths", "evaluate", "store")}
    source = ["--params", str(params.source)]
    command = [*source, *(f"--set={name}={json.dumps(value)}" for name, value in flattened(decides).items())]

    def of(version: Version, ranks: QueryRanks | None) -> Evidence:
        return evidence(version, ranks, wanted, tracker=tracker, today=today, command=command)

    mine = of(candidate, recorded)
    theirs = None if champion is None else of(champion, from_run(champion, tracker))
    return mine, theirs, evaluation_digest(wanted)


def _compare(config: PromoteConfig, mine: QueryRanks, theirs: QueryRanks) -> Compared:
    by_metric = {
        metric: difference(of_metrics([metric], mine, theirs), confidence=config.confidence)
        for metric in config.metrics
    }
    whole = difference(of_metrics(config.metrics, mine, theirs), confidence=config.confidence)
    return Compared(whole, by_metric, tuple(compared_slices(config, mine, theirs)))


def _gates(
    params: Params,
    tracker: Tracker,
    candidate: Version,
    champion: Version | None,
    ranks: QueryRanks,
    compared: Compared | None,
    *,
    files: bool = True,
) -> list[Gate]:
    config = params.section(PromoteConfig)
    rows = [gates.lineage(candidate), gates.verdict(candidate), gates.not_rolled_back(candidate)]
    rows += [gates.health(candidate, tracker), *gates.above_chance(config, params.section(EvaluateConfig), ranks)]
    if compared is not None and champion is not None:
        rows += [gates.better(config, compared, champion.number), gates.no_slice_worse(config, compared)]
    if files:
        with tempfile.TemporaryDirectory(prefix="align-promote-") as scratch:
            packaged = tracker.model_files(candidate, Path(scratch))
            rows += [gates.registered_bytes(candidate, packaged), gates.prediction(packaged)]
    return rows


def _why_not(failed: Sequence[Gate]) -> str:
    first = f"{failed[0].name}: {failed[0].figure}; needed: {failed[0].bar}"
    others = [gate.name for gate in failed[1:]]
    way_out = next((f"; {gate.way_out}" for gate in failed if gate.way_out), "")
    return first + (f"; also failed: {', '.join(others)}" if others else "") + way_out


def _why(
    config: PromoteConfig,
    scores: Mapping[str, tuple[float, float | None]],
    champion: Version | None,
    compared: Compared | None,
) -> str:
    mine = sum(score for score, _ in scores.values()) / len(scores)
    names = " and ".join(config.metrics)
    if compared is None or champion is None:
        return f"mean of {names} is {percent(mine)}, well above chance, and there was no champion"
    one = compared.difference
    return (
        f"mean of {names} is {percent(mine)}, the champion's (version {champion.number}) {percent(mine - one.value)}; "
        f"better by at least {points(max(one.low, 0.0))} points with {config.confidence:.0%} confidence"
    )


def _mean(ranks: QueryRanks, metric: str) -> float:
    groups = ranks.scored(metric)
    return float(sum(group.values.mean() for group in groups) / len(groups))


def number_of(version: Version | None) -> int | None:
    """A version's number; None without a version."""
    return None if version is None else version.number


def now() -> str:
    """The time, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
