"""How the aliases `champion` and `previous` move: whole or not at all, and each move once in the history.

A move is several writes, and MLflow has no transaction over them. So the move is written first, as one tag (the
intent); then the aliases and the tags of the versions; then the entry in the history; then the intent is removed. Every
call begins with `settle`, which finishes an intent that is left: all its writes can be made twice. If its version was
deleted meanwhile, it undoes it instead.

Two at once. In one checkout a lock of the kernel keeps them apart (LOCK). Between checkouts and machines there is only
MLflow, whose registry cannot compare and set. So a call reads that there is no intent, writes its own, waits SETTLE_S,
and reads it back (Fischer's mutual exclusion; in L. Lamport, "A fast mutual exclusion algorithm", 1987). Of two, only
the one that wrote last finds its own, and the other ends with one line and has moved nothing. That holds if no write
arrives later than SETTLE_S after the read before it: a call measures that, and withdraws where it took longer. Who
finishes an intent of somebody else waits twice as long before.

What is not guaranteed: a process that is stopped for seconds (SIGSTOP, a frozen machine) between its last look and its
next write may move an alias back after somebody else finished its move and made another. It looks again at its end and
repairs that, unless it is killed then; the next call takes such an alias for one that was moved by hand, and says so.
Who moves an alias in MLflow at that very moment is not kept out either, as MLflow knows no locks.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

from align.errors import DataError, LockedError, ServiceError
from align.formats.champion_moves import (
    DERIVED,
    INTENT,
    ChampionState,
    Kind,
    Move,
    earlier_champions,
    time_of,
)
from align.services.mlflow_address import who_acts
from align.services.registry import (
    CHAMPION,
    PREVIOUS,
    PROMOTED,
    PROMOTED_BECAUSE,
    REPLACED,
    ROLLED_BACK,
    ROLLED_BACK_BECAUSE,
    Registry,
    Version,
)

#: Of all processes of a checkout, one moves the aliases at a time. In the working directory, as what runs share.
LOCK = Path(".align/locks/champion")
#: Seconds; see above.
SETTLE_S = 2.0
#: A call that finds others at work so often gives up.
_ATTEMPTS = 10


def now() -> str:
    """The time as tags have it, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def settle(registry: Registry, model: str) -> ChampionState:
    """The champion and its history, once nothing is half done: no intent is left, and the history has every move.

    Finishes what a killed call left, derives the history of a registry that is older than histories, and records a
    move that was made by hand in MLflow.

    Raises:
        FormatError: a tag of the history was changed.
        ServiceError: MLflow is unavailable or refuses, or others move the aliases all the time.
    """
    for _ in range(_ATTEMPTS):
        state = registry.champion_state(model)
        if state.unfinished is not None:
            sleep(2 * SETTLE_S)  # who began it may be at work, and needs no help
            if registry.champion_state(model) == state:
                _finish(registry, state, state.unfinished)
        elif missing := _underived(registry, state):
            for each in reversed(missing):
                registry.set_model_tag(model, each.key, each.text())
        elif state.champion != (state.moves[-1].to if state.moves else None):
            _notice(registry, state)
        else:
            return state
    raise ServiceError(f"the aliases of model '{model}' are moved by others all the time; nothing was moved here")


def move(
    registry: Registry,
    state: ChampionState,
    kind: Kind,
    to: int | None,
    why: str,
    figures: Mapping[str, float],
    who: str | None = None,
) -> Move:
    """Makes one move: the aliases, the tags of the versions, the history.

    Args:
        registry: MLflow's.
        state: what `settle` returned, on which this move was decided.
        kind: of the move.
        to: number of the version that becomes the champion, or stays it.
        why: one sentence.
        figures: what it was decided on.
        who: None: the user, or the flow run.

    Returns:
        The entry in the history.

    Raises:
        DataError: the version was deleted meanwhile; nothing was moved.
        LockedError: somebody else moved the aliases meanwhile; nothing was moved.
        ServiceError: MLflow is unavailable or refuses; the next call finishes what was begun.
    """
    model = state.model
    existing = {version.number for version in registry.versions(model)}
    number, before = (state.moves[-1].number + 1, state.moves[-1].to) if state.moves else (1, None)
    made = Move(
        id=uuid.uuid4().hex, number=number, kind=kind, at=now(), who=who or who_acts(), before=before, to=to,
        previous=None, why=why, figures=figures,
    )  # fmt: skip
    previous = next(earlier_champions([*state.moves, made], to, existing), None)
    made = made.model_copy(update={"previous": previous})
    read = monotonic()
    if registry.champion_state(model) != state:
        raise _lost(model)
    registry.set_model_tag(model, INTENT, made.text())
    took = monotonic() - read
    if took > SETTLE_S:
        _withdraw(registry, model, made)
        raise ServiceError(
            f"MLflow took {took:.1f} s for one tag of model '{model}': too slow to keep two moves apart "
            f"(at most {SETTLE_S:g} s), so nothing was moved; run it again"
        )
    sleep(SETTLE_S)
    after = registry.champion_state(model)
    if after.unfinished is None or after.unfinished.id != made.id:
        if made.id not in {entry.id for entry in after.moves}:  # else another call has finished it
            raise _lost(model)
        return made
    if after.champion != state.champion or after.moves != state.moves:  # what was decided is not what there is
        _withdraw(registry, model, made)
        raise _lost(model)
    if not _finish(registry, after, after.unfinished):
        raise DataError(f"version {to} of model '{model}' was deleted meanwhile; nothing was moved")
    return after.unfinished


def _lost(model: str) -> LockedError:
    return LockedError(
        f"somebody else moved the aliases of model '{model}' at the same time; nothing was moved here: run it again"
    )


def _withdraw(registry: Registry, model: str, mine: Move) -> None:
    left = registry.champion_state(model).unfinished
    if left is not None and left.id == mine.id:
        registry.delete_model_tag(model, INTENT)


def _finish(registry: Registry, state: ChampionState, begun: Move) -> bool:
    """Makes the writes of a move, in their order; each may have been made before. False: it was undone instead."""
    model = state.model
    versions = {version.number: version for version in registry.versions(model)}
    is_recorded = any(entry.number == begun.number for entry in state.moves)  # only the end is missing
    if not is_recorded and begun.to is not None and begun.to not in versions:
        _undo(registry, state, versions, begun)
        return False
    if not is_recorded:
        _set_aliases(registry, model, versions, begun)
        registry.set_model_tag(model, begun.key, begun.text())
    registry.delete_model_tag(model, INTENT)
    after = registry.champion_state(model)
    if after.unfinished is None and after.last and after.last.number > begun.number:
        _set_aliases(registry, model, versions, after.last)  # this process was stopped, and others moved on
    return True


def _undo(registry: Registry, state: ChampionState, versions: Mapping[int, Version], begun: Move) -> None:
    """The version was deleted, and with it its aliases: the champion before is it again, as if nothing had been."""
    if begun.kind != "by hand" and (before := versions.get(begun.before or 0)) is not None:
        registry.delete_version_tags(before, [ROLLED_BACK, ROLLED_BACK_BECAUSE])
        registry.set_alias(before, CHAMPION)
        _set_previous(
            registry, state.model, versions, next(earlier_champions(state.moves, before.number, set(versions)), None)
        )
    registry.delete_model_tag(state.model, INTENT)


def _set_aliases(registry: Registry, model: str, versions: Mapping[int, Version], made: Move) -> None:
    """The aliases as a move leaves them, and what it says of its versions. `champion` first: others load it."""
    to, before = versions.get(made.to or 0), versions.get(made.before or 0)
    if made.kind == "rejected":
        return
    if made.kind == "promoted" and to is not None:
        registry.set_version_tags(to, {PROMOTED: made.at, PROMOTED_BECAUSE: made.why})
    if made.kind == "rolled back" and before is not None:
        registry.set_version_tags(before, {ROLLED_BACK: made.at, ROLLED_BACK_BECAUSE: made.why})
    if to is not None:
        registry.set_alias(to, CHAMPION)
    _set_previous(registry, model, versions, made.previous)


def _set_previous(registry: Registry, model: str, versions: Mapping[int, Version], number: int | None) -> None:
    if (version := versions.get(number or 0)) is not None:
        registry.set_alias(version, PREVIOUS)
    else:
        registry.delete_alias(model, PREVIOUS)


def _notice(registry: Registry, state: ChampionState) -> None:
    """Records that somebody moved the alias in MLflow, and moves `previous` along.

    Nothing where the state changes meanwhile: another call of ours may be at work, and tags and aliases are not
    read at one moment.
    """
    sleep(SETTLE_S)
    if registry.champion_state(state.model) != state:
        return
    why = "the alias was removed in MLflow, or its version deleted" if state.champion is None else "moved in MLflow"
    try:
        move(registry, state, "by hand", state.champion, why, {}, who="unknown")
    except LockedError:  # settle looks again
        return


def _underived(registry: Registry, state: ChampionState) -> list[Move]:
    """The entries of a registry that is older than histories; none where they are written.

    They are written from the last to the first, so that the first one tells that all are there.
    """
    if state.moves and (state.moves[0].number == 1 or not state.moves[0].id.startswith(DERIVED)):
        return []
    return derived(registry.versions(state.model))


def derived(versions: Sequence[Version]) -> list[Move]:
    """The history as far as the tags tell that versions had before there was one.

    A version has only the time of its last promotion, so an earlier one is missing.
    """
    events: list[tuple[datetime, int, Version]] = []
    for version in versions:
        for is_rollback, tag in enumerate((PROMOTED, ROLLED_BACK)):
            try:
                events.append((time_of(version.tags.get(tag, "")), is_rollback, version))
            except ValueError:
                continue
    moves: list[Move] = []
    existing = {version.number for version in versions}
    for when, is_rollback, version in sorted(events, key=lambda event: (*event[:2], event[2].number)):
        replaced = version.tags.get(REPLACED, "")
        made = Move(
            id=f"{DERIVED}{len(moves) + 1}", number=len(moves) + 1, kind="promoted", who="unknown",
            at=when.strftime("%Y-%m-%dT%H:%M:%SZ"), before=int(replaced) if replaced.isdecimal() else None,
            to=version.number, previous=None, why=version.tags.get(PROMOTED_BECAUSE, ""), figures={},
        )  # fmt: skip
        if is_rollback:
            back = {"kind": "rolled back", "before": version.number, "to": None}
            made = made.model_copy(update={**back, "why": version.tags.get(ROLLED_BACK_BECAUSE, "")})
            to = next(earlier_champions([*moves, made], version.number, existing), None)
            made = made.model_copy(update={"to": to})
        previous = next(earlier_champions([*moves, made], made.to, existing), None)
        moves.append(made.model_copy(update={"previous": previous}))
    return moves
