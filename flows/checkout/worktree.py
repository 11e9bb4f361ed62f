"""Where a run works: in the user's checkout, or in a git worktree of its own. Each has a lock for one run at a time.

A worktree has a params.yaml of its own. It begins with the results of the checkout's last run, or of the run whose
branch it is made from. It shares with the checkout DVC's cache, the checkpoints, what the filter measured of evaluation
images, and inputs that git ignores. It is removed when its run has succeeded. That of a failed or killed run stays,
with its reports and its log, until the next equal run, or until there are NUM_KEPT newer ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import psutil

from align.config import load_params
from align.config.params import PARAMS_FILE, write_params
from align.config.paths import READ, below_root, require_inside
from align.durable.locks import locked, tried
from align.errors import DataError, LockedError
from align.project.declared import declared_outs
from align.services.dvc.repository import share_cache
from align.services.dvc.stages import check_out
from align.services.git import LOCK_FILE, changes, git, resolve
from flows.checkout.run_branch import snapshot
from flows.request import Request
from flows.run.context import STATE
from flows.run.supervisor import GRACE_S

#: The number of worktrees of failed and killed runs that are kept; older ones are removed.
NUM_KEPT = 5


@contextmanager
def worktree(
    root: Path, commit: str, path: Path, overrides: Mapping[str, Any], *, inputs: bool = True, keep: bool = False
) -> Iterator[Path]:
    """Checks out a commit in a new folder, which is removed at the end.

    Args:
        root: the user's checkout.
        commit: what to check out.
        path: the new folder; the caller holds a lock for it. One of an earlier run is removed.
        overrides: `section.key` -> value, written into its params.yaml.
        inputs: whether the worktree gets inputs that the checkout has and git does not.
        keep: whether it stays if the block fails.

    Raises:
        ConfigError: an override names an unknown parameter, or a path to write to is outside the new folder.
        LockedError: a process that an earlier run started does not end.
    """
    _wait_until_left(path)
    _remove(root, path)
    stays = False
    try:
        git(root, "worktree", "add", "--detach", str(path), commit)
        write_params(path / PARAMS_FILE, overrides)
        values = load_params(path / PARAMS_FILE).values
        require_inside(values.get("paths", {}))
        _share(root, path)
        if (root / LOCK_FILE).exists() and not (path / LOCK_FILE).exists():  # a branch of a run has its own
            shutil.copy(root / LOCK_FILE, path)
        check_out(path)  # results of the last run, and what `dvc add` keeps, such as an imported model
        if inputs:
            _link_inputs(root, path, values)
        stays = keep
        yield path
        stays = False
    finally:
        if not stays:
            _remove(root, path)


def _wait_until_left(path: Path) -> None:
    """A killed run's processes are told to stop, and a trainer saves its checkpoint through the worktree."""
    deadline = time.monotonic() + GRACE_S + 5
    while path.exists() and (pids := [process.pid for process in psutil.process_iter() if _works_in(process, path)]):
        if time.monotonic() > deadline:
            raise LockedError(f"{path}: process {pids[0]} of a killed run still works there")
        time.sleep(0.2)


def _works_in(process: psutil.Process, path: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(path)
    except (psutil.Error, OSError):  # another user's, or it has ended
        return False


def _remove(root: Path, path: Path) -> None:
    """Removes a run's worktree, and git's record of it, even one that a killed `git worktree add` left half made."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(DataError):  # git knows no such worktree. Forced twice, since a half made one is locked
        git(root, "worktree", "remove", "--force", "--force", str(path))


def prune(root: Path, log: Callable[[str], None]) -> None:
    """Removes the worktrees of failed and killed runs but the newest NUM_KEPT."""
    found = sorted((root / STATE / "worktrees").glob("*"), key=lambda path: path.stat().st_mtime_ns)
    (root / STATE / "locks").mkdir(parents=True, exist_ok=True)
    for path in found[:-NUM_KEPT]:
        with tried(root / STATE / "locks" / path.name) as is_over:
            if is_over:  # else a run works there
                _remove(root, path)
                log(f"{path}: removed, since the worktrees of the {NUM_KEPT} newest failed runs are kept")


def _share(root: Path, path: Path) -> None:
    """The user's own DVC settings (credentials of a remote), the cache, and folders that outlive the worktree."""
    settings = root / ".dvc" / "config.local"
    if settings.exists():
        shutil.copy(settings, path / ".dvc" / "config.local")
    share_cache(root, path)
    values = load_params(root / PARAMS_FILE).values
    # a cancelled run resumes from its checkpoints, and a later one does not measure the evaluation images again
    store = values.get("store", {})
    for folder in (below_root(values["paths"])["checkpoints"], store.get("features"), store.get("cache")):
        if folder is not None and not Path(folder).is_absolute():
            (root / folder).mkdir(parents=True, exist_ok=True)
            (path / folder).parent.mkdir(parents=True, exist_ok=True)
            (path / folder).symlink_to((root / folder).resolve())


def _link_inputs(root: Path, path: Path, values: Mapping[str, Any]) -> None:
    """Links inputs that are only in the checkout, such as pairs in mydata/; DVC reads and records their content.

    It links neither files that git tracks, which the worktree has from its commit, nor outs of stages.
    """
    outs = {PurePath(out) for written in declared_outs(path).values() for out in written}
    for key in READ:
        section, _, name = key.partition(".")
        value = values.get(section, {}).get(name)
        if not isinstance(value, str) or "://" in value:
            continue
        source, target = PurePath(value), path / value
        if source.is_absolute() or ".." in source.parts or outs.intersection((source, *source.parents)):
            continue
        if (root / source).exists() and not target.exists() and not git(root, "ls-files", "--", value):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to((root / source).resolve())


@dataclass(frozen=True)
class Workspace:
    """A checkout to work in.

    Attributes:
        root: the checkout.
        dirty: it is a snapshot with uncommitted changes.
    """

    root: Path
    dirty: bool = False


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

    A second run with equal files and parameters waits for the first, and then takes every stage from DVC's cache. For
    `inputs` see `worktree`.

    Raises:
        DataError: the revision does not exist, or it is HEAD and the checkout has uncommitted changes.
        ConfigError: an override names an unknown parameter.
    """
    commit, dirty = commit_of(root, request)
    tree = resolve(root, commit, "tree")
    key = hashlib.sha256(json.dumps([tree, request.overrides], sort_keys=True).encode()).hexdigest()[:16]
    path = root / STATE / "worktrees" / key
    with (
        locked(root / STATE / "locks" / key, f"run '{request.name or 'run'}'", log),
        worktree(root, commit, path, request.overrides, inputs=inputs, keep=True),
    ):
        log(f"working in {path}, made from {commit[:10]}")
        yield Workspace(path, dirty)


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
