"""A git worktree for one run, with its own params.yaml; it shares with the checkout DVC's cache, the checkpoints, what
the filter measured of evaluation images, and inputs that git ignores.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from align.config import load_params
from align.config.params_file import write_params
from align.config.paths import READ, below_root, require_inside
from align.errors import DataError
from align.project.declared import declared_outs
from align.services.dvc.repository import dvc_repository, share_cache
from align.services.git import git


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
        write_params(path / "params.yaml", overrides)
        require_inside(load_params(path / "params.yaml").values.get("paths", {}))
        _share(root, path)
        if kept := list(filter(None, git(path, "ls-files", "-z", "--", "*.dvc").split("\0"))):
            with dvc_repository(path, "checkout") as repo:  # such as an imported model
                repo.checkout([str(path / name) for name in kept], allow_missing=True)
        if inputs:
            _link_inputs(root, path)
        yield path
    finally:
        remove(root, path)


def _share(root: Path, path: Path) -> None:
    """The user's own DVC settings (credentials of a remote), the cache, and folders that outlive the worktree."""
    settings = root / ".dvc" / "config.local"
    if settings.exists():
        shutil.copy(settings, path / ".dvc" / "config.local")
    share_cache(root, path)
    values = load_params(root / "params.yaml").values
    # a cancelled run resumes from its checkpoints, and a later one does not measure the evaluation images again
    for folder in (below_root(values["paths"])["checkpoints"], values.get("store", {}).get("features")):
        if folder is not None and not Path(folder).is_absolute():
            (root / folder).mkdir(parents=True, exist_ok=True)
            (path / folder).parent.mkdir(parents=True, exist_ok=True)
            (path / folder).symlink_to((root / folder).resolve())


def _link_inputs(root: Path, path: Path) -> None:
    """Links inputs that are only in the checkout, such as pairs in mydata/; DVC reads and records their content.

    It links neither files that git tracks, which the worktree has from its commit, nor outs of stages.
    """
    values = load_params(path / "params.yaml").values
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


def remove(root: Path, path: Path) -> None:
    """Removes a run's worktree, and git's record of it, even one that a killed `git worktree add` left half made."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(DataError):  # git knows no such worktree. Forced twice, since a half made one is locked
        git(root, "worktree", "remove", "--force", "--force", str(path))
