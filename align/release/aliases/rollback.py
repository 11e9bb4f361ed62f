"""rollback: makes the last champion that passed its gates the champion again. Each call goes one back."""

from __future__ import annotations

import argparse

from align.config import Params
from align.config.release import RegisterConfig
from align.display.console import say, show
from align.durable.locks import locked
from align.release.aliases.champion import take_back
from align.release.aliases.moves import LOCK
from align.services.tracking.address import require_store
from align.services.tracking.registry import CHAMPION
from align.services.tracking.tracker import Tracker


def main(params: Params, args: argparse.Namespace) -> None:
    """`align rollback`. Raises as `take_back`."""
    model = params.section(RegisterConfig).model_name
    require_store()
    with locked(LOCK, "align rollback", say):
        tracker = Tracker()
        move, registry = take_back(tracker, model, args.why), tracker.registry
        before = registry.champion_state(model).previous({version.number for version in registry.versions(model)})
    left = "" if before is not None else "; no champion before it is left"
    show(f"{model} version {move.to} is the {CHAMPION} again{left}; {move.before} was rolled back: {move.why}")
