"""champion: says which version is the champion, since when and why, and which one it was at any time before.

`make_champion` and `take_back` are the two moves that people ask for: the alias, then the entry in the history
(`align.release.aliases.moves`), then the tags of the version that say why.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from align.config import Params
from align.config.release import RegisterConfig
from align.display.console import say, show, show_json
from align.display.shares import percent
from align.durable.files import to_json
from align.durable.locks import locked
from align.errors import ConfigError, DataError, LockedError
from align.formats.champion_moves import Move, last_before, time_of
from align.release.aliases.moves import LOCK, record, settle
from align.services.tracking.address import require_store, who_acts
from align.services.tracking.registry import (
    CHAMPION,
    PROMOTED,
    PROMOTED_BECAUSE,
    ROLLED_BACK,
    ROLLED_BACK_BECAUSE,
    Version,
)
from align.services.tracking.tracker import Tracker

#: The table's columns; the reasons are last, since they may be long.
_COLUMNS = ("when (UTC)", "what", "from", "to", "who", "why")


def make_champion(
    tracker: Tracker,
    version: Version,
    *,
    replaces: int | None,
    why: str,
    figures: Mapping[str, float],
    who: str | None = None,
) -> Move:
    """Makes a version the champion; one entry in the history.

    Args:
        tracker: MLflow.
        version: the one that becomes the champion.
        replaces: number of the champion that it was compared with; None: there was none.
        why: one sentence.
        figures: what the decision was made on.
        who: who decided; None: the user, or the flow run.

    Raises:
        LockedError: somebody else moved the alias meanwhile; nothing was moved.
        ServiceError: MLflow is unavailable or refuses, for example as the version was deleted meanwhile.
    """
    registry = tracker.registry
    state = settle(registry, version.name)
    if state.champion != replaces:
        raise LockedError(
            f"version {version.number} was compared with {_champion(replaces)}; since then it is "
            f"{_champion(state.champion)}: nothing was moved; run it again"
        )
    registry.set_alias(version, CHAMPION)
    made = record(registry, state, "promoted", version.number, why, figures, who or who_acts())
    registry.set_version_tags(version, {PROMOTED: made.at, PROMOTED_BECAUSE: made.why})
    return made


def take_back(tracker: Tracker, model: str, why: str | None) -> Move:
    """Makes the last champion before this one that passed its gates the champion again.

    One that was rolled back, or deleted, is passed over, so that repeated calls end. The reason is kept in the
    history, and as a tag of the version that is rolled back.

    Raises:
        ConfigError: a champion that somebody made so by hand would be passed over, and there is no reason.
        DataError: there is no champion, or none before it that passed its gates; or the last move has no entry yet.
        ServiceError: MLflow is unavailable or refuses.
    """
    registry = tracker.registry
    known = registry.champion_state(model).moves
    state = settle(registry, model)
    if len(state.moves) > len(known):  # a rollback that was killed before its entry, and is typed again
        raise DataError(
            f"model '{model}': version {_number(state.champion)} had become its champion without an entry in the "
            "history, which has one now; look at `align champion`, and type it again to go back from there"
        )
    if state.champion is None:
        raise DataError(f"model '{model}' has no version with alias '{CHAMPION}'; there is nothing to roll back")
    versions = {version.number: version for version in registry.versions(model)}
    to = state.previous(set(versions))
    if to is None:
        raise DataError(
            f"model '{model}': no champion before {state.champion} is left: the others were rolled back or deleted, "
            "were made the champion by hand, or there was none"
        )
    if not why and (over := state.passed_over(set(versions))):
        raise ConfigError(
            f"model '{model}': after champion {to}, the last one that passed its gates, somebody made version "
            f"{', '.join(map(str, over))} the champion by hand; to go back past that, say why: --why WHY"
        )
    registry.set_alias(versions[to], CHAMPION)
    made = record(registry, state, "rolled back", to, why or "no reason given", {}, who_acts())
    registry.set_version_tags(versions[state.champion], {ROLLED_BACK: made.at, ROLLED_BACK_BECAUSE: made.why})
    return made


def sentence(move: Move) -> str:
    """A move in words."""
    way = {
        "promoted": f"version {move.to} was promoted",
        "rolled back": f"version {move.before} was rolled back to {_number(move.to)}",
        "by hand": f"from {_number(move.before)} to {_number(move.to)}",
        "rejected": f"version {_number(move.to)} stayed the champion",
    }[move.kind]
    return f"{way}, {move.at}"


def table(moves: Sequence[Move], existing: set[int]) -> list[str]:
    """The history as lines for a terminal, the newest first."""

    def named(number: int | None) -> str:
        return _number(number) if number is None or number in existing else f"{number} (deleted)"

    rows = [
        (move.at, move.kind, named(move.before), named(move.to), move.who, move.why + _figures(move))
        for move in reversed(moves)
    ]
    widths = [max(len(row[column]) for row in [_COLUMNS, *rows]) for column in range(len(_COLUMNS) - 1)]
    return ["  ".join([*(row[i].ljust(width) for i, width in enumerate(widths)), row[-1]]) for row in [_COLUMNS, *rows]]


def _figures(move: Move) -> str:
    return "".join(f"; {name} {percent(value)}" for name, value in move.figures.items())


def _champion(number: int | None) -> str:
    return "no champion" if number is None else f"champion {number}"


def _number(number: int | None) -> str:
    return "none" if number is None else str(number)


def moment(text: str, now: datetime) -> datetime:
    """The time that a person means: a date is its end, and a time without a zone is UTC.

    Raises:
        ConfigError: it is neither, or it lies in the future.
    """
    try:
        when = time_of(text)
        begins = when
        if len(text.strip()) == len("2026-11-01"):
            when = min(when + timedelta(days=1) - timedelta(microseconds=1), max(now, when))
    except (ValueError, OverflowError):
        wanted = "a date such as 2026-11-01, or a time such as 2026-11-01T14:30 (UTC)"
        raise ConfigError(f"--at {text}: expected {wanted}") from None
    if begins > now:
        raise ConfigError(f"--at {text}: that is in the future; it is {now:%Y-%m-%dT%H:%M:%SZ}")
    return when


def main(params: Params, args: argparse.Namespace) -> None:
    """`align champion`.

    Raises:
        ConfigError: `--at` is not a time.
        DataError: MLflow was not used here, has no such model, or the history begins later than `--at`.
    """
    model = params.section(RegisterConfig).model_name
    at = None if args.at is None else moment(args.at, datetime.now(UTC))
    require_store()
    tracker = Tracker()
    if not (versions := tracker.registry.versions(model)):
        raise DataError(f"MLflow has no version of a model '{model}'; run `align register` first")
    with locked(LOCK, "align champion", say):
        state = settle(tracker.registry, model)
    existing = {version.number for version in versions}
    if at is not None:
        then = last_before(state.moves, at)
        if then is None:
            begins = f"begins {state.moves[0].at}" if state.moves else "is empty"
            raise DataError(f"no champion of '{model}' is known at {args.at}: its history {begins}")
        if args.json:
            show_json(
                to_json(
                    {"schema_version": 1, "model": model, "at": args.at, "champion": then.to, "since": _entry(then)}
                )
            )
        else:
            show(f"{model}: the champion at {args.at} was {_version(then.to, existing)}; {sentence(then)}: {then.why}")
        return
    previous = state.previous(existing)
    if args.json:
        history = [_entry(move) for move in state.moves]
        now = {"champion": state.champion, "previous": previous, "by_hand": state.made_by_hand}
        show_json(to_json({"schema_version": 1, "model": model, **now, "history": history}))
        return
    by_hand = ", made so by hand, without passing the gates" if state.made_by_hand else ""
    show(f"{model}: the champion is {_version(state.champion, existing)}{by_hand}; previous: {_number(previous)}")
    if state.moves:
        show(*table(state.moves, existing))


def _version(number: int | None, existing: set[int]) -> str:
    return "no version" if number is None else f"version {number}{'' if number in existing else ' (deleted)'}"


def _entry(move: Move) -> dict[str, Any]:
    """A move for programs."""
    return move.model_dump(mode="json", exclude={"schema_version", "number"})
