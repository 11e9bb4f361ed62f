"""What DVC says of the stages of a checkout, and what its cache gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from align.services.dvc.repository import dvc_repository, locked_repository


class StageStatus(NamedTuple):
    """What `dvc status` says of a stage: what has changed since dvc.lock.

    Attributes:
        deps: path -> `modified`, `deleted` or `new`; of a file of parameters, each changed one -> the same.
        outs: path -> the same, or `not in cache`.
        other: of the stage itself, such as `changed command`.
        has_run: whether dvc.lock has the stage.
        params: file of parameters -> their values in dvc.lock.
        num_bytes: of its outs in dvc.lock.
    """

    deps: Mapping[str, Any]
    outs: Mapping[str, str]
    other: tuple[str, ...]
    has_run: bool
    params: Mapping[str, Mapping[str, Any]]
    num_bytes: int


def read_status(root: Path) -> dict[str, StageStatus]:
    """The status of each stage of dvc.yaml. The code is what code.yaml says, which is written before.

    DVC says only of a missing dep that it is deleted. If dvc.lock has it otherwise as the out of another stage, it is
    modified, as for `dvc repro --allow-missing`.

    Raises:
        DvcError: DVC refuses, for example because another command works there.
    """
    with locked_repository(root, "status") as repo:
        stages = [stage for stage in repo.index.stages if getattr(stage, "name", None)]  # others are of `dvc add`
        made = {out.fs_path: out.hash_info for stage in stages for out in stage.outs}
        return {stage.name: _status(stage, made) for stage in stages}


def _status(stage: Any, made: Mapping[str, Any]) -> StageStatus:
    changes = [change for changes in stage.status().values() for change in changes]
    named = {what: paths for change in changes if isinstance(change, dict) for what, paths in change.items()}
    deps = dict(named.get("changed deps", {}))
    for dep in stage.deps:
        if deps.get(str(dep)) == "deleted" and made.get(dep.fs_path, dep.hash_info) != dep.hash_info:
            deps[str(dep)] = "modified"
    return StageStatus(
        deps=deps,
        outs=named.get("changed outs", {}),
        other=tuple(change for change in changes if isinstance(change, str)),
        has_run=any(out.hash_info for out in stage.outs),
        params={dep.def_path: dep.hash_info.value or {} for dep in stage.params},
        num_bytes=sum(out.meta.size or 0 for out in stage.outs if out.meta),
    )


def check_out(root: Path) -> None:
    """Checks out all outs that dvc.lock and the files of `dvc add` name, as far as the cache has them.

    Raises:
        DvcError: DVC refuses.
    """
    with dvc_repository(root, "checkout") as repo:
        repo.checkout(allow_missing=True)  # of all stages: if they are named, each takes a second


def unknown_outs(root: Path, outs: Iterable[str]) -> list[str]:
    """Those of the outs, named as in dvc.yaml, that hold what neither dvc.lock nor DVC's cache could give back."""
    with dvc_repository(root, "outs") as repo:
        there = {str(Path(out.fs_path).relative_to(repo.root_dir)): out for out in repo.index.outs if out.exists}
        return [name for name in outs if name in there and not _is_known(there[name])]


def _is_known(out: Any) -> bool:
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.tree import Tree

    _, _, found = build(out.cache, out.fs_path, out.fs, out.hash_name, ignore=out.dvcignore, dry_run=True)
    if found.hash_info == out.hash_info:
        return True
    members = [entry.value for _, _, entry in found] if isinstance(found, Tree) else []
    return all(out.cache.exists(oid) for oid in (found.hash_info.value, *members))
