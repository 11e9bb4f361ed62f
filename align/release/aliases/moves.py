"""What is written when the alias `champion` moves: the alias first, then one entry in the history.

Every call begins with `settle`: if the alias is not where the last entry says, somebody moved it in MLflow, or a call
was killed before its entry; then the history gets an entry `by hand`. The champion that a rollback goes back to is read
from the history.

In one checkout a lock of the kernel keeps two commands apart (LOCK). Between checkouts and machines there is only
MLflow's server, which cannot compare and set: of two who move the alias within the same tenths of a second, one entry
may replace the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from align.display.console import say
from align.formats.champion_moves import ChampionState, Kind, Move
from align.services.tracking.registry import Registry

#: The lock by which only one process of a checkout moves the alias at a time. In the working directory, like everything
#: that runs share.
LOCK = Path(".align/locks/champion")


def settle(registry: Registry, model: str) -> ChampionState:
    """The champion and its history, once the history has every move; says what was noticed.

    Raises:
        FormatError: a tag of the history was changed.
        ServiceError: MLflow is unavailable or refuses.
    """
    state = registry.champion_state(model)
    if state.champion == (state.moves[-1].to if state.moves else None):
        return state
    gone = state.champion is None
    why = "the alias was removed in MLflow, or its version deleted" if gone else "moved in MLflow"
    noticed = record(registry, state, "by hand", state.champion, why, {}, "unknown")
    way = f"from {noticed.before or 'none'} to {noticed.to or 'none'}"
    say(f"note: somebody moved the champion of '{model}' by hand, {way}; see `align champion`")
    return registry.champion_state(model)


def record(
    registry: Registry,
    state: ChampionState,
    kind: Kind,
    to: int | None,
    why: str,
    figures: Mapping[str, float],
    who: str,
) -> Move:
    """Writes the next entry in the history, and returns it.

    Args:
        registry: MLflow's.
        state: what `settle` returned, on which this was decided.
        kind: of the move.
        to: number of the version that became the champion, or stays it.
        why: one sentence.
        figures: what it was decided on.
        who: the user, the flow run, or the person who approved.
    """
    last = state.moves[-1] if state.moves else None
    made = Move(
        number=last.number + 1 if last else 1, kind=kind, at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), who=who,
        before=last.to if last else None, to=to, why=why, figures=figures,
    )  # fmt: skip
    registry.set_model_tag(state.model, made.key, made.text())
    return made
