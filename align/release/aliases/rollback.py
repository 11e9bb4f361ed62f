"""rollback: makes the previous champion the champion again. Each further call goes one champion back."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from align.config import Params
from align.config.release import RegisterConfig
from align.display.console import say, show
from align.durable.locks import locked
from align.release.aliases.champion import take_back
from align.release.aliases.moves import LOCK
from align.services.tracking.address import require_store
from align.services.tracking.registry import CHAMPION
from align.services.tracking.tracker import Tracker


@dataclass(frozen=True)
class Rollback:
    """Version numbers of the champion now, of the one that it replaced, and of one before it, if any is left; why."""

    champion: int
    replaced: int
    previous: int | None
    why: str


def rollback(model: str, reason: str, tracker: Tracker) -> Rollback:
    """Moves `champion` to the champion before it in the history.

    A version may have been the champion more than once. One that was rolled back is passed over, so that repeated
    rollbacks end; so is one that was deleted. If a rollback was cut short, this call only finishes it.

    Args:
        model: name of the registered model.
        reason: kept in the history, and as a tag of the version that is rolled back.
        tracker: MLflow.

    Raises:
        DataError: there is no champion, or no champion before it.
        LockedError: somebody else moved the alias at the same time.
        ServiceError: MLflow is unavailable or refuses.
    """
    move = take_back(tracker, model, reason)
    assert move.to is not None and move.before is not None
    registry = tracker.registry
    left = registry.champion_state(model).previous({version.number for version in registry.versions(model)})
    return Rollback(move.to, move.before, left, move.why)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align rollback`."""
    model = params.section(RegisterConfig).model_name
    require_store()
    with locked(LOCK, "align rollback", say):
        done = rollback(model, args.reason, Tracker())
    left = "" if done.previous is not None else "; no champion before it is left"
    show(f"{model} version {done.champion} is the {CHAMPION} again{left}; {done.replaced} was rolled back: {done.why}")
