"""A person's word on a promotion: approved, or rejected; who and why. What strangers type is checked here.

With `promote.approval` the gates alone move nothing. The flow `approve` asks in Prefect's UI; `align promote
--approved-by WHO --because WHY` is the same as a command. Nobody proves who they are: the history has the name that was
given, and the user or the flow run that moved the aliases.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from align.display.visible import visible
from align.errors import ConfigError, GateError, without_logins
from align.formats.champion_moves import MAX_WHO, MAX_WHY
from align.release.aliases import moves as alias_moves
from align.release.aliases.champion import settled
from align.services.tracking.address import who_acts
from align.services.tracking.registry import CANDIDATE, Version
from align.services.tracking.tracker import Tracker


@dataclass(frozen=True)
class Approval:
    """What a person said.

    Attributes:
        who: a name, as it was given.
        why: a sentence.
        is_rejection: the person rejected the version.
        candidate: the version that must still be the candidate; None: any.
        champion: the version that must still be the champion; 0: there must be none; None: any.
    """

    who: str
    why: str
    is_rejection: bool = False
    candidate: int | None = None
    champion: int | None = None

    @property
    def signed(self) -> str:
        """Who said it, and who acts."""
        return f"{self.who}, by {who_acts()}"

    def require_judged(self, candidate: Version, champion: Version | None, aliases: Mapping[str, int]) -> None:
        """Raises GateError if candidate or champion are no longer those that the person was shown."""
        is_champion = champion.number if champion else 0
        if self.champion is not None and self.champion != is_champion:
            was, now = (f"version {number}" if number else "none" for number in (self.champion, is_champion))
            number = self.candidate or candidate.number
            raise GateError(
                f"version {number} is not promoted: the champion was {was} when the promotion was judged, "
                f"and now is {now}; run `align promote` again"
            )
        now_candidate = aliases.get(CANDIDATE)
        if self.candidate is not None and self.candidate not in (now_candidate, is_champion):
            raise GateError(
                f"version {self.candidate} is not promoted: it was the candidate when the promotion was judged, "
                f"and now version {now_candidate} is; run `align promote` again, or name the version"
            )


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
    return Approval(who, why, option == "--rejected-by", args.if_candidate, args.if_champion)


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
        LockedError: somebody else moved the alias at the same time.
        ServiceError: MLflow is unavailable or refuses.
    """
    state = settled(tracker, candidate.name)
    why = f"version {candidate.number} was rejected: {rejection.why}"
    alias_moves.move(tracker.registry, state, "rejected", state.champion, why, {}, rejection.signed)
    return f"{candidate.name}: {why} ({rejection.who}); nothing was moved"
