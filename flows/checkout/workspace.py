"""Where a run works: in the user's checkout, or in a git worktree of its own. Each has a lock for one run at a time.

A worktree has a params.yaml of its own. It begins with the results of the checkout's last run, or of the run whose
branch it is made from. It shares with the checkout DVC's cache, the checkpoints, what the filter measured of evaluation
images, and inputs that git ignores.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from align.config import load_params
from align.config.params import PARAMS_FILE, write_params
from align.config.paths import READ, below_root, require_inside
from align.durable.locks import locked
from align.errors import DataError
from align.project.declared import declared_outs
from align.services.dvc.repository import share_cache
from align.services.dvc.stages import check_out
from align.services.git import LOCK_FILE, changes, git, resolve
from flows.checkout.failed_runs import folder_for, kept_if_it_fails
from flows.checkout.leftovers import clear, remove
from flows.checkout.run_branch import snapshot
from flows.request import Request
from flows.tasks.run_context import STATE


@contextmanager
def worktree(
    root: Path, commit: str, path: Path, overrides: Mapping[str, Any], *, inputs: bool = True
) -> Iterator[Path]:
    """Checks out a commit in a new folder, which is removed at the end.

    Args:
        root: the user's checkout.
        commit: what to check out.
        path: the new folder; the caller holds a lock for it, and has cleared it.
        overrides: `section.key` -> value, written into its params.yaml.
        inputs: whether the worktree gets inputs that the checkout has and git does not.

    Raises:
        ConfigError: an override names an unknown parameter, or a path to write to is outside the new folder.
    """
    git(root, "worktree", "add", "--detach", str(path), commit)
    try:
        write_params(path / PARAMS_FILE, overrides)
        values = load_params(path / PARAMS_FILE).values
        require_inside(values.get("paths", {}))
        _share(root, path)
        if (root / LOCK_FILE).exists() and not (path / LOCK_FILE).exists():  # a branch of a run has its own
            shutil.copy(root / LOCK_FILE, path)
        check_out(path)  # results of the last run, and what `dvc add` keeps, such as an imported model
        if inputs:
            _link_inputs(root, path, values)
        yield path
    finally:
        remove(root, path)


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
    worktree is removed at the end; reports and log of a failed run are kept (`flows.checkout.failed_runs`). For
    `inputs` see `worktree`.

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
