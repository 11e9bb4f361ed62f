"""rollback: makes the previous champion the champion again. Each further call goes one champion back."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass

from align.config import Params
from align.config.register import RegisterConfig
from align.console import say, show
from align.errors import DataError
from align.locks import locked
from align.release.promote import LOCK
from align.services.mlflow_address import require_store
from align.services.registry import CHAMPION, PREVIOUS, REPLACED, ROLLED_BACK, ROLLED_BACK_BECAUSE, Version
from align.services.tracking import Tracker


@dataclass(frozen=True)
class Rollback:
    """Version numbers of the champion now, of the one that it replaced, and of the one before it, if any is left."""

    champion: int
    replaced: int
    previous: int | None


def rollback(model: str, reason: str, tracker: Tracker) -> Rollback:
    """Moves `champion` to `previous`, and `previous` to the champion before that, if any.

    A version may have been the champion more than once. One that was rolled back is passed over, so that repeated
    rollbacks end.

    Args:
        model: name of the registered model.
        reason: kept as a tag of the version that is rolled back.
        tracker: MLflow.

    Raises:
        DataError: there is no champion, or no champion before it.
        ServiceError: MLflow is unavailable or refuses.
    """
    champion, previous = tracker.registry.version_at(model, CHAMPION), tracker.registry.version_at(model, PREVIOUS)
    if champion is None:
        raise DataError(f"model '{model}' has no version with alias '{CHAMPION}'; there is nothing to roll back")
    if previous is None:
        raise DataError(f"model '{model}' has no version with alias '{PREVIOUS}': no champion before {champion.number}")
    versions = {version.number: version for version in tracker.registry.versions(model)}
    left = _not_rolled_back(previous, versions, {champion.number})
    if left is None:
        raise DataError(f"model '{model}': every champion before {champion.number} was rolled back")
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    tracker.registry.set_version_tags(champion, {ROLLED_BACK: now, ROLLED_BACK_BECAUSE: reason})
    tracker.registry.set_alias(left, CHAMPION)
    before = _not_rolled_back(_replaced(left, versions), versions, {champion.number, left.number})
    if before is None:
        tracker.registry.delete_alias(model, PREVIOUS)
    else:
        tracker.registry.set_alias(before, PREVIOUS)
    return Rollback(left.number, champion.number, before.number if before else None)


def _not_rolled_back(version: Version | None, versions: Mapping[int, Version], seen: set[int]) -> Version | None:
    """The version itself, or the nearest champion before it, that is not among `seen` and was not rolled back."""
    passed: set[int] = set()
    while version is not None and version.number not in passed:
        if version.number not in seen and ROLLED_BACK not in version.tags:
            return version
        passed.add(version.number)
        version = _replaced(version, versions)
    return None


def _replaced(version: Version, versions: Mapping[int, Version]) -> Version | None:
    """The champion that a version replaced; None for the first one, and for one that was deleted."""
    return versions.get(int(version.tags.get(REPLACED, 0)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `align rollback`."""
    parser.add_argument("--reason", default="no reason given", help="kept as a tag of the version that is rolled back")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align rollback`."""
    model = params.section(RegisterConfig).model_name
    require_store()
    with locked(LOCK, "align rollback", say):
        done = rollback(model, args.reason, Tracker())
    left = "" if done.previous is not None else f"; no champion before it is left, so alias '{PREVIOUS}' is removed"
    show(
        f"{model} version {done.champion} is the {CHAMPION} again{left}; {done.replaced} was rolled back: {args.reason}"
    )
