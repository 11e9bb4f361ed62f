"""How the alias `champion` moves: whole or not at all, and each move once in the history.

MLflow has no transaction over several writes. So the entry in the history is written first, as not done; then the alias
moves; then tags of the version say why; then the entry is done. Every call begins with `settle`, which finishes an
entry that is not done: each write can be made twice. If its version was deleted meanwhile, it takes the entry back
instead. The champion that a rollback goes back to is read from the history.

In one checkout a lock of the kernel keeps two commands apart (LOCK). Between checkouts and machines there is only
MLflow's server, which cannot compare and set. If two people move the alias there within the same tenths of a second,
both may write the same entry, and the later one stays. A call that finds another entry in the place of its own puts the
alias where that entry says, and ends with one line. So the alias ends where the last entry says, and usually one of the
two is told that nothing was moved. If both were told that they moved it, the history has only the second move.

This is not guaranteed: a process that is stopped for longer (SIGSTOP, a frozen machine) may replace an entry that
others wrote meanwhile, or move the alias back after them. It looks again afterwards and puts the alias right, unless it
is killed first; the next call then records the alias as moved by hand.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from align.errors import DataError, LockedError
from align.formats.champion_moves import ChampionState, Kind, Move
from align.services.tracking.address import who_acts
from align.services.tracking.registry import (
    CHAMPION,
    PROMOTED,
    PROMOTED_BECAUSE,
    ROLLED_BACK,
    ROLLED_BACK_BECAUSE,
    Registry,
    Version,
)

#: The lock by which only one process of a checkout moves the alias at a time. In the working directory, like everything
#: that runs share.
LOCK = Path(".align/locks/champion")
#: How often a call may find others at work before it gives up.
_ATTEMPTS = 10


def settle(registry: Registry, model: str) -> ChampionState:
    """The champion and its history, once nothing is half done, and the history has every move.

    Finishes what a killed call left, and records a move that was made by hand in MLflow.

    Raises:
        FormatError: a tag of the history was changed.
        LockedError: somebody else moves the alias at the same time.
        ServiceError: MLflow is unavailable or refuses.
    """
    for _ in range(_ATTEMPTS):
        state = registry.champion_state(model)
        if state.unfinished is not None:
            _finish(registry, model, state.unfinished)
        elif state.champion != (state.moves[-1].to if state.moves else None):
            gone = state.champion is None
            why = "the alias was removed in MLflow, or its version deleted" if gone else "moved in MLflow"
            noticed = _entry(state, "by hand", state.champion, why, {}, "unknown")
            registry.set_model_tag(model, noticed.key, noticed.text())
        else:
            return state
    raise _lost(model)


def move(
    registry: Registry,
    state: ChampionState,
    kind: Kind,
    to: int | None,
    why: str,
    figures: Mapping[str, float],
    who: str | None = None,
) -> Move:
    """Makes one move: the history, the alias, the tags of the versions.

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
        LockedError: somebody else moved the alias meanwhile; nothing was moved.
        ServiceError: MLflow is unavailable or refuses; the next call finishes what was begun.
    """
    made = _entry(state, kind, to, why, figures, who or who_acts())
    if registry.champion_state(state.model) != state:
        raise _lost(state.model)
    registry.set_model_tag(state.model, made.key, made.text())
    is_left = _is_last(registry.champion_state(state.model), made) and not made.done
    if is_left and not _finish(registry, state.model, made):
        raise DataError(f"version {to} of model '{state.model}' was deleted meanwhile; nothing was moved")
    return made.model_copy(update={"done": True})


def _entry(state: ChampionState, kind: Kind, to: int | None, why: str, figures: Mapping[str, float], who: str) -> Move:
    """The next entry; it is done from the start if the alias stays."""
    last = state.moves[-1] if state.moves else None
    return Move(
        id=uuid.uuid4().hex, number=last.number + 1 if last else 1, kind=kind,
        at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), who=who, before=last.to if last else None, to=to, why=why,
        figures=figures, done=kind in ("by hand", "rejected"),
    )  # fmt: skip


def _finish(registry: Registry, model: str, begun: Move) -> bool:
    """Makes the writes of a move after its entry; each may have been made before. False: the entry was taken back."""
    versions = _versions(registry, model)
    to, before = versions.get(begun.to or 0), versions.get(begun.before or 0)
    if to is None:  # deleted, and its alias with it
        if before is not None:
            registry.set_alias(before, CHAMPION)
            if begun.kind == "rolled back":
                registry.delete_version_tags(before, [ROLLED_BACK, ROLLED_BACK_BECAUSE])
        registry.delete_model_tag(model, begun.key)
        return False
    registry.set_alias(to, CHAMPION)
    after = registry.champion_state(model)
    last = after.moves[-1] if after.moves else begun
    if last.id != begun.id and (theirs := _versions(registry, model).get(last.to or 0)) is not None:
        registry.set_alias(theirs, CHAMPION)  # others have written the last entry
    if _is_last(after, begun):
        if begun.kind == "promoted":
            registry.set_version_tags(to, {PROMOTED: begun.at, PROMOTED_BECAUSE: begun.why})
        elif before is not None:
            registry.set_version_tags(before, {ROLLED_BACK: begun.at, ROLLED_BACK_BECAUSE: begun.why})
        registry.set_model_tag(model, begun.key, begun.model_copy(update={"done": True}).text())
    return True


def _is_last(state: ChampionState, made: Move) -> bool:
    """Whether an entry is the last one. If it is not, others have finished it, and moved on.

    Raises:
        LockedError: the history does not have it: somebody else wrote another one in its place.
    """
    if made.id not in {entry.id for entry in state.moves}:
        raise _lost(state.model)
    return state.moves[-1].id == made.id


def _versions(registry: Registry, model: str) -> dict[int, Version]:
    return {version.number: version for version in registry.versions(model)}


def _lost(model: str) -> LockedError:
    return LockedError(
        f"somebody else moved the champion of model '{model}' at the same time; nothing was moved here: run it again"
    )
