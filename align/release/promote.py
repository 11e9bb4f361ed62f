"""promote: a version becomes the champion if every gate lets it; the old champion becomes `previous`.

Without a number it is the candidate, the version that was registered last. Candidate and champion are compared on the
same items: by the ranks that their runs kept, or, where the sets have changed since, by measuring their registered
models on today's sets (`align.release.evidence`). The candidate has to be better by `promote.margin`, with confidence
(`align.release.paired`), and the other gates have to let it (`align.release.gates`, `slices`). If one does not, no
alias moves. Each decision is a table, and a page that is kept with the candidate's run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.promote import PromoteConfig
from align.config.register import RegisterConfig
from align.console import say, show, show_json
from align.errors import DataError, GateError
from align.files import to_json
from align.formats.measured_sets import evaluation_digest
from align.formats.query_ranks import QueryRanks
from align.locks import locked
from align.release import gates
from align.release.decision import Compared, Gate, Outcome, PromotionDecision, table_lines
from align.release.evidence import Evidence, evidence, from_run, todays_sets, wanted_sets
from align.release.paired import difference, of_metrics, set_of
from align.release.promotion_page import write_page
from align.release.slices import compared_slices
from align.services.mlflow_address import require_store
from align.services.registry import CANDIDATE, CHAMPION, PREVIOUS, REPLACED, ROLLED_BACK, Version
from align.services.tracking import Tracker

#: Of all processes of a checkout, one moves the aliases at a time. In the working directory, as what runs share.
LOCK = Path(".align/locks/champion")
#: Each decision's page, below the working directory.
PAGES = Path(".align/promotions")
#: A tag `align.decided.<digest>` for each group of sets that decided on a version.
_DECIDED = "align.decided."
#: MLflow refuses longer tags.
_MAX_TAG = 5000


@dataclass(frozen=True)
class _Judged:
    """What takes time, and depends on these two versions only."""

    candidate: Version
    champion: Version | None
    decision: PromotionDecision


def promote(params: Params, tracker: Tracker, number: int | None = None) -> tuple[PromotionDecision, Path | None]:
    """Judges a version, and makes it the champion if every gate lets it.

    The judging, which may take long where a model is measured, holds no lock: `align rollback` does not wait for it.
    If the champion has changed meanwhile, the version is judged again.

    Args:
        params: sections `promote`, `register`, `evaluate`, `paths` and `store` are read.
        tracker: MLflow.
        number: of the version; None takes the one with alias `candidate`.

    Returns:
        The decision, and its page; None where nothing changes.

    Raises:
        DataError: there is no such version, no candidate, or a metric or set that cannot be measured.
        ServiceError: MLflow is unavailable or refuses.
    """
    model = params.section(RegisterConfig).model_name
    while True:
        judged = _judge(params, tracker, _candidate(model, tracker, number))
        with locked(LOCK, "align promote", say):
            champion = tracker.registry.version_at(model, CHAMPION)
            decision, candidate = judged.decision, _candidate(model, tracker, judged.candidate.number)
            was_taken_back = ROLLED_BACK in candidate.tags and ROLLED_BACK not in judged.candidate.tags
            if _number(champion) != _number(judged.champion) or was_taken_back:
                say("promote: the champion has changed meanwhile; judging again")
                continue
            if decision.outcome == "unchanged":
                return decision, None
            page = _record(decision, candidate, tracker)
            if decision.outcome == "promoted":
                _make_champion(tracker, candidate, champion, decision.reason, decision.figures())
            return decision, page


def _make_champion(
    tracker: Tracker, candidate: Version, champion: Version | None, reason: str, figures: Mapping[str, Any]
) -> None:
    """Moves the aliases, and records when and why."""
    tags = {
        "align.promoted_at": _now(),
        "align.promoted_because": reason,
        "align.promoted_figures": json.dumps(figures, sort_keys=True)[:_MAX_TAG],
    }
    if champion is not None:
        tags[REPLACED] = str(champion.number)
        tracker.registry.set_alias(champion, PREVIOUS)
    tracker.registry.set_version_tags(candidate, tags)
    tracker.registry.set_alias(candidate, CHAMPION)


def _record(decision: PromotionDecision, candidate: Version, tracker: Tracker) -> Path:
    """Writes the page, keeps it with the candidate's run, and tags the version with the decision; returns the page."""
    folder = PAGES / f"{decision.at.translate(str.maketrans('', '', '-:'))}-version-{decision.candidate}"
    page = write_page(decision, folder)
    tracker.log_folder(candidate.run_id, folder, f"promotions/{folder.name}")
    tags = {f"{_DECIDED}{decision.sets_digest[:16]}": f"{decision.outcome} at {decision.at}: {decision.reason}"}
    if decision.outcome == "refused":
        figures = json.dumps(decision.figures(), sort_keys=True)
        tags |= {"align.refused_at": decision.at, "align.refused_because": decision.reason}
        tags |= {"align.refused_figures": figures}
    tracker.registry.set_version_tags(candidate, {name: text[:_MAX_TAG] for name, text in tags.items()})
    return page


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


def _judge(params: Params, tracker: Tracker, candidate: Version) -> _Judged:
    config = params.section(PromoteConfig)
    champion = tracker.registry.version_at(candidate.name, CHAMPION)

    def decided(outcome: Outcome, reason: str, **found: Any) -> _Judged:
        empty: dict[str, Any] = {"scores": {}, "gates": (), "compared": None, "measured": (), "sets_digest": ""}
        decision = PromotionDecision(
            outcome=outcome, reason=reason, model=candidate.name, candidate=candidate.number, what=describe(candidate),
            champion=_number(champion), confidence=config.confidence, margin=config.margin, at=_now(),
            **({"num_decided": 0} | empty | found),
        )  # fmt: skip
        return _Judged(candidate, champion, decision)

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
        num_decided=sum(f"{_DECIDED}{sets_digest[:16]}" in one.tags for one in versions),
    )


def _measured(
    params: Params, tracker: Tracker, candidate: Version, champion: Version | None
) -> tuple[Evidence, Evidence | None, str]:
    """The ranks of both on the same sets, and the digest of the sets that decide."""
    metrics = params.section(PromoteConfig).metrics
    today, recorded = todays_sets(params), from_run(candidate, tracker)
    wanted = wanted_sets(map(set_of, metrics), today, recorded)
    source = ["--params", str(params.source)]
    command = [*source, *(f"--set={name}={json.dumps(value)}" for name, value in _values(params).items())]

    def of(version: Version, ranks: QueryRanks | None) -> Evidence:
        return evidence(version, ranks, wanted, tracker=tracker, today=today, command=command)

    mine = of(candidate, recorded)
    theirs = None if champion is None else of(champion, from_run(champion, tracker))
    return mine, theirs, evaluation_digest(wanted)


def _values(params: Params) -> dict[str, Any]:
    """The parameters that decide what `align evaluate` measures, as this command has them."""
    paths, evaluate, store = (params.values.get(name, {}) for name in ("paths", "evaluate", "store"))
    return {
        f"{section}.{name}": value
        for section, values in (("paths", paths), ("evaluate", evaluate), ("store", store))
        for name, value in values.items()
    }


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
) -> list[Gate]:
    config = params.section(PromoteConfig)
    rows = [gates.lineage(candidate), gates.verdict(candidate), gates.not_rolled_back(candidate)]
    rows += [gates.health(candidate, tracker), *gates.above_chance(config, params.section(EvaluateConfig), ranks)]
    if compared is not None and champion is not None:
        rows += [gates.better(config, compared, champion.number), gates.no_slice_worse(config, compared)]
    with tempfile.TemporaryDirectory(prefix="align-promote-") as scratch:
        packaged = tracker.model_files(candidate, Path(scratch))
        rows += [gates.registered_bytes(candidate, packaged), gates.prediction(packaged)]
    return rows


def _why_not(failed: Sequence[Gate]) -> str:
    first = f"{failed[0].name}: {failed[0].figure}; needed: {failed[0].bar}"
    others = [gate.name for gate in failed[1:]]
    return first + (f"; also failed: {', '.join(others)}" if others else "")


def _why(
    config: PromoteConfig,
    scores: Mapping[str, tuple[float, float | None]],
    champion: Version | None,
    compared: Compared | None,
) -> str:
    mine = sum(score for score, _ in scores.values()) / len(scores)
    names = " and ".join(config.metrics)
    if compared is None or champion is None:
        return f"mean of {names} is {mine:.4f}, well above chance, and there was no champion"
    one = compared.difference
    return (
        f"mean of {names} is {mine:.4f}, the champion's (version {champion.number}) {mine - one.value:.4f}; "
        f"better by at least {max(one.low, 0.0):.4f} with {config.confidence:.0%} confidence"
    )


def _mean(ranks: QueryRanks, metric: str) -> float:
    groups = ranks.scored(metric)
    return float(sum(group.values.mean() for group in groups) / len(groups))


def _number(version: Version | None) -> int | None:
    return None if version is None else version.number


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
    parser.add_argument("--json", action="store_true", help="print the decision as JSON")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align promote`. Raises GateError if the version is refused."""
    require_store()
    decision, page = promote(params, Tracker(), args.version)
    what = decision.what if args.version is not None else f"the {CANDIDATE}: {decision.what}"
    name = f"{decision.model} version {decision.candidate} ({what})"
    if args.json:
        show_json(to_json(decision.as_dict(str(page) if page else None)))
    else:
        show(*table_lines(decision) if decision.gates else ())
        show(*(f"page: {page}",) if page else ())
    if decision.outcome == "refused":
        raise GateError(f"{name} is not promoted: {decision.reason}; see {page}")
    if args.json:
        return
    if decision.outcome == "unchanged":
        show(f"{decision.model}: {decision.reason} ({what})")
        return
    before = f" (before: version {decision.champion}, now '{PREVIOUS}')" if decision.champion is not None else ""
    show(f"{name} is the {CHAMPION}{before}: {decision.reason}")
