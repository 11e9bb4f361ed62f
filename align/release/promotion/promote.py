"""promote: makes a version the champion if every gate allows it; `align rollback` goes back to the old one.

Without a number it is the candidate, the version that was registered last. It has to be better than the champion on the
same items by `promote.margin`, with confidence (`align.statistics.paired`), and the other gates have to allow it
(`gates`, `slices`). If one refuses, no alias
moves. Each decision is a table, and a page that is kept with the candidate's run.

With `promote.approval` the gates alone move nothing. The flow `approve` asks in Prefect's UI; `align promote
--approved-by WHO --because WHY` is the same as a command. What they type is checked here. Nobody proves who they are:
the history has the name that was given, and the user or the flow run that moved the aliases.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

from align.config import Params
from align.config.release import PromoteConfig, RegisterConfig
from align.display.console import say, show, show_json
from align.display.visible import visible
from align.durable.files import clear_leftovers, is_temporary, to_json, without_temporary_names, write_text
from align.durable.locks import locked
from align.errors import ConfigError, GateError, without_logins
from align.formats.champion_moves import MAX_WHO, MAX_WHY
from align.release.aliases.champion import make_champion
from align.release.aliases.moves import LOCK, record, settle
from align.release.promotion.decision import PromotionDecision, table_lines
from align.release.promotion.evidence import PAGES
from align.release.promotion.judge import DECIDED, judge, number_of, version_asked
from align.release.promotion.page import write_page
from align.services.signing import require_signed
from align.services.tracking.address import require_store, who_acts
from align.services.tracking.registry import CANDIDATE, CHAMPION, ROLLED_BACK, Version
from align.services.tracking.tracker import Tracker


@dataclass(frozen=True)
class Approval:
    """What a person said.

    Attributes:
        who: a name, as it was given.
        why: a sentence.
        is_rejection: the person rejected the version.
    """

    who: str
    why: str
    is_rejection: bool = False

    @property
    def signed(self) -> str:
        """Who said it, and who acts."""
        return f"{self.who}, by {who_acts()}"


def approval_of(args: argparse.Namespace) -> Approval | None:
    """What the person who typed the command says; None if they say nothing.

    Raises:
        ConfigError: name or reason is missing, empty or too long.
    """
    given = {"--approved-by": args.approved_by, "--rejected-by": args.rejected_by}
    option = next((option for option, value in given.items() if value is not None), None)
    if option is None:
        if args.because is not None:
            raise ConfigError("--because: say who, too: --approved-by WHO, or --rejected-by WHO")
        return None
    if args.because is None:
        raise ConfigError(f"{option}: say why, too: --because WHY")
    who, why = _words(option, given[option], MAX_WHO), _words("--because", args.because, MAX_WHY)
    return Approval(who, why, option == "--rejected-by")


def _words(option: str, text: str, most: int) -> str:
    """One line without logins. Raises ConfigError if nothing is left, or it is too long."""
    words = visible(without_logins(" ".join(text.split())))
    if not words:
        raise ConfigError(f"{option}: expected words, not an empty text")
    if len(words) > most:
        raise ConfigError(f"{option}: {len(words):,} characters; at most {most:,} are kept")
    return words


def reject(tracker: Tracker, candidate: Version, rejection: Approval) -> str:
    """Records that a person rejected a version; nothing moves. Returns a sentence.

    Raises:
        ServiceError: MLflow is unavailable or refuses.
    """
    state = settle(tracker.registry, candidate.name)
    why = f"version {candidate.number} was rejected: {rejection.why}"
    record(tracker.registry, state, "rejected", state.champion, why, {}, rejection.signed)
    return f"{candidate.name}: {why} ({rejection.who}); nothing was moved"


#: `--json` without a file.
_STDOUT = "-"
#: MLflow refuses longer tags.
_MAX_TAG = 5000


def promote(
    params: Params,
    tracker: Tracker,
    number: int | None = None,
    approval: Approval | None = None,
    expect_champion: int | None = None,
) -> tuple[PromotionDecision, Path | None]:
    """Judges a version, and makes it the champion if every gate lets it.

    Judging may take long if a model is measured, so it holds no lock: `align rollback` does not wait for it. If the
    champion has changed meanwhile, the version is judged again.

    Args:
        params: sections `promote`, `register`, `evaluate`, `paths` and `store` are read.
        tracker: MLflow.
        number: of the version; None takes the one with alias `candidate`.
        approval: of a person; None: nobody was asked.
        expect_champion: the version that must be the champion still; 0: there must be none; None: any.

    Returns:
        The decision, and its page; None if nothing changes.

    Raises:
        GateError: the champion is not the expected one.
        LockedError: somebody else moved the alias at the same time.
        DataError: there is no such version, no candidate, or a metric or set that cannot be measured.
        CorruptError: the version is not signed as it has to be.
        ServiceError: MLflow is unavailable or refuses.
    """
    model = params.section(RegisterConfig).model_name
    with locked(LOCK, "align promote", say):
        settle(tracker.registry, model)  # records what was moved by hand
    while True:
        asked, champion = version_asked(model, tracker, number), tracker.registry.version_at(model, CHAMPION)
        _require_champion(expect_champion, asked, champion)
        require_signed(tracker.registry, asked)
        judged = judge(params, tracker, asked, champion)
        with locked(LOCK, "align promote", say):
            champion = tracker.registry.version_at(model, CHAMPION)
            decision, candidate = judged.decision, version_asked(model, tracker, judged.candidate.number)
            was_taken_back = ROLLED_BACK in candidate.tags and ROLLED_BACK not in judged.candidate.tags
            if number_of(champion) != number_of(judged.champion) or was_taken_back:
                say("promote: the champion has changed meanwhile; judging again")
                continue
            _require_champion(expect_champion, candidate, champion)
            if decision.outcome == "unchanged":
                return decision, None
            if decision.outcome == "promoted" and params.section(PromoteConfig).approval and approval is None:
                decision = replace(decision, outcome="unapproved")
            page = _record(decision, candidate, tracker)
            if decision.outcome == "promoted":
                who, more = (approval.signed, f"; approved: {approval.why}") if approval else (None, "")
                why, figures = f"{decision.reason}{more}", decision.figures()
                make_champion(tracker, candidate, replaces=number_of(champion), why=why, figures=figures, who=who)
            return decision, page


def _require_champion(expected: int | None, candidate: Version, champion: Version | None) -> None:
    is_champion = champion.number if champion else 0
    if expected not in (None, is_champion):
        was, now = (f"version {number}" if number else "none" for number in (expected, is_champion))
        raise GateError(
            f"version {candidate.number} is not promoted: the champion was {was} when the promotion was judged, "
            f"and now is {now}; run `align promote` again"
        )


def _record(decision: PromotionDecision, candidate: Version, tracker: Tracker) -> Path:
    """Writes the page, keeps it with the candidate's run, and tags the version with the decision; returns the page."""
    folder = PAGES / f"{decision.at.translate(str.maketrans('', '', '-:'))}-version-{decision.candidate}"
    for part in filter(is_temporary, PAGES.glob("*/.*")):  # of a killed command
        clear_leftovers(without_temporary_names(part))
    page = write_page(decision, folder)
    tracker.log_folder(candidate.run_id, folder, f"promotions/{folder.name}")
    tags = {f"{DECIDED}{decision.sets_digest[:16]}": f"{decision.outcome} at {decision.at}: {decision.reason}"}
    if decision.outcome == "refused":
        figures = json.dumps(decision.figures(), sort_keys=True)
        tags |= {"align.refused_at": decision.at, "align.refused_because": decision.reason}
        tags |= {"align.refused_figures": figures}
    tracker.registry.set_version_tags(candidate, {name: text[:_MAX_TAG] for name, text in tags.items()})
    return page


def main(params: Params, args: argparse.Namespace) -> None:
    """`align promote`. Raises GateError if the version is refused, or waits for an approval."""
    approval = approval_of(args)
    require_store()
    tracker = Tracker()
    if approval is not None and approval.is_rejection:
        with locked(LOCK, "align promote", say):
            rejected = version_asked(params.section(RegisterConfig).model_name, tracker, args.version)
            show(reject(tracker, rejected, approval))
        return
    decision, page = promote(params, tracker, args.version, approval, args.expect_champion)
    as_json = to_json({"schema_version": 1, **decision.as_dict(str(page) if page else None)})
    if args.json == _STDOUT:
        show_json(as_json)
    else:
        if args.json is not None:
            write_text(Path(args.json), as_json)
        show(*table_lines(decision) if decision.gates else ())
        show(*(f"page: {page}",) if page else ())
    _conclude(decision, page, args)


def _conclude(decision: PromotionDecision, page: Path | None, args: argparse.Namespace) -> None:
    """The last line, as a text or as an error."""
    what = decision.what if args.version is not None else f"the {CANDIDATE}: {decision.what}"
    name = f"{decision.model} version {decision.candidate} ({what})"
    if decision.outcome == "refused":
        raise GateError(f"{name} is not promoted: {decision.reason}; see {page}")
    if decision.outcome == "unapproved":
        asks = f"{name} is good enough ({decision.reason}), and waits for a person's approval (promote.approval)"
        if args.json is None:
            how = f"align promote --version {decision.candidate} --approved-by WHO --because WHY"
            raise GateError(f"{asks}: {how}")
        line = asks
    elif decision.outcome == "unchanged":
        line = f"{decision.model}: {decision.reason} ({what})"
    else:
        before = f" (before: version {decision.champion})" if decision.champion is not None else ""
        line = f"{name} is the {CHAMPION}{before}: {decision.reason}"
    if args.json != _STDOUT:
        show(line)
