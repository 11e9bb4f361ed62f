"""Where a run works: in the user's checkout, or in a git worktree of its own. Each has a lock for one run at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from align.durable.locks import locked
from align.errors import DataError
from align.services.git import changes, resolve
from flows.checkout.failed_runs import folder_for, kept_if_it_fails
from flows.checkout.leftovers import clear
from flows.checkout.run_branch import snapshot
from flows.checkout.worktree import worktree
from flows.request import Request
from flows.tasks.run_context import STATE


@dataclass(frozen=True)
class Workspace:
    """A checkout to work in.

    Attributes:
        root: the checkout.
        dirty: it is a snapshot with uncommitted changes.
        kept: where its reports and its log will be after a failure; None for a checkout that stays.
    """

    root: Path
    dirty: bool = False
    kept: Path | None = None


@contextmanager
def in_checkout(root: Path, name: str, log: Callable[[str], None]) -> Iterator[Workspace]:
    """The user's checkout, as it is."""
    with locked(root / STATE / "locks" / "checkout", f"run '{name}'", log):
        yield Workspace(root)


@contextmanager
def in_worktree(
    root: Path, request: Request, log: Callable[[str], None], *, inputs: bool = True
) -> Iterator[Workspace]:
    """A worktree at the requested revision with the requested parameters.

    A second run with equal files and parameters waits for the first, and then takes every stage from DVC's cache. The
    worktree is removed at the end; reports and log of a failed run are kept (`flows.checkout.failed_runs`).

    Args:
        root: the checkout.
        request: names the revision and the parameters.
        log: for what happens.
        inputs: see `flows.checkout.worktree`.

    Raises:
        DataError: the revision does not exist, or it is HEAD and the checkout has uncommitted changes.
        ConfigError: an override names an unknown parameter.
    """
    commit, dirty = commit_of(root, request)
    tree = resolve(root, commit, "tree")
    key = hashlib.sha256(json.dumps([tree, request.overrides], sort_keys=True).encode()).hexdigest()[:16]
    name = request.name or "run"
    kept = folder_for(root, name, key)
    path = root / STATE / "worktrees" / key
    with locked(root / STATE / "locks" / key, f"run '{name}'", log):
        clear(root, path, log)  # a killed run may have left it
        with worktree(root, commit, path, request.overrides, inputs=inputs), kept_if_it_fails(path, kept, log, name):
            log(f"working in {path}, made from {commit[:10]}")
            yield Workspace(path, dirty, kept)


def commit_of(root: Path, request: Request) -> tuple[str, bool]:
    """The commit to run, and whether it is a snapshot of uncommitted changes.

    Raises:
        DataError: there is no such commit, or the checkout has changes that the request does not ask for.
    """
    if request.ref not in (None, "", "HEAD"):
        return resolve(root, str(request.ref)), False
    changed = changes(root)
    if not changed:
        return resolve(root, "HEAD"), False
    if not request.snapshot_dirty:
        raise DataError(
            f"{root} has uncommitted changes ({', '.join(changed[:3])}{', …' if changed[3:] else ''}): "
            "commit them, name another ref, or ask for snapshot_dirty"
        )
    return snapshot(root, "snapshot of uncommitted changes"), True
