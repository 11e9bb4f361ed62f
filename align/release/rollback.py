"""rollback: makes the previous champion the champion again. Each further call goes one champion back."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

from align.config import Params
from align.config.register import RegisterConfig
from align.console import show
from align.errors import DataError
from align.services.tracking import CHAMPION, PREVIOUS, REPLACED, ROLLED_BACK, ROLLED_BACK_BECAUSE, Tracker


@dataclass(frozen=True)
class Rollback:
    """Version numbers of the champion now, and of the one that it replaced."""

    champion: int
    replaced: int


def rollback(model: str, reason: str, tracker: Tracker) -> Rollback:
    """Moves `champion` to `previous`, and `previous` to the champion before that, if any.

    Args:
        model: name of the registered model.
        reason: kept as a tag of the version that is rolled back.
        tracker: MLflow.

    Raises:
        DataError: there is no champion, or no champion before it.
        ServiceError: MLflow is unavailable or refuses.
    """
    champion, previous = tracker.version_at(model, CHAMPION), tracker.version_at(model, PREVIOUS)
    if champion is None:
        raise DataError(f"model '{model}' has no version with alias '{CHAMPION}'; there is nothing to roll back")
    if previous is None:
        raise DataError(f"model '{model}' has no version with alias '{PREVIOUS}': no champion before {champion.number}")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    tracker.set_version_tags(champion, {ROLLED_BACK: now, ROLLED_BACK_BECAUSE: reason})
    tracker.set_alias(previous, CHAMPION)
    before = previous.tags.get(REPLACED)
    if before is None:
        tracker.delete_alias(model, PREVIOUS)
    else:
        tracker.set_alias(tracker.version(model, int(before)), PREVIOUS)
    return Rollback(champion=previous.number, replaced=champion.number)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `align rollback`."""
    parser.add_argument("--reason", default="no reason given", help="kept as a tag of the version that is rolled back")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align rollback`."""
    model = params.section(RegisterConfig).model_name
    done = rollback(model, args.reason, Tracker())
    show(f"{model} version {done.champion} is the {CHAMPION} again; {done.replaced} was rolled back: {args.reason}")
