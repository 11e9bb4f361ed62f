"""A git worktree for one run, with its own params.yaml; it shares DVC's cache and the checkpoints with the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.config import load_params
from align.config.params_file import write_params
from align.config.paths import below_root, require_inside
from align.errors import DataError
from flows.git_repository import git


@contextmanager
def worktree(root: Path, commit: str, path: Path, overrides: Mapping[str, Any]) -> Iterator[Path]:
    """Checks out a commit in a new folder, which is removed at the end.

    Args:
        root: the user's checkout.
        commit: what to check out.
        path: the new folder; the caller holds a lock for it.
        overrides: `section.key` -> value, written into its params.yaml.

    Raises:
        ConfigError: an override names an unknown parameter, or a path to write to is outside the new folder.
    """
    _remove(root, path)  # a killed run may have left one
    git(root, "worktree", "add", "--detach", str(path), commit)
    try:
        write_params(path / "params.yaml", overrides)
        require_inside(load_params(path / "params.yaml").values.get("paths", {}))
        _share(root, path)
        yield path
    finally:
        _remove(root, path)


def _share(root: Path, path: Path) -> None:
    """The user's own DVC settings (credentials of a remote), the cache, and the folder of checkpoints."""
    settings = root / ".dvc" / "config.local"
    if settings.exists():
        shutil.copy(settings, path / ".dvc" / "config.local")
    cache = _dvc(root, "cache", "dir")
    _dvc(path, "cache", "dir", "--local", str((root / cache).resolve()))
    checkpoints = below_root(load_params(root / "params.yaml").values["paths"])["checkpoints"]
    (root / checkpoints).mkdir(parents=True, exist_ok=True)
    (path / checkpoints).parent.mkdir(parents=True, exist_ok=True)
    (path / checkpoints).symlink_to(root / checkpoints)  # they outlive the worktree, so that a cancelled run resumes


def _dvc(root: Path, *args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *args], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"dvc {args[0]} in {root}: {done.stderr.strip()}")
    return done.stdout.strip()


def _remove(root: Path, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    git(root, "worktree", "prune")
