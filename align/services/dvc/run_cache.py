"""Results of stages in DVC's run cache, found by what a stage is made from.

`dvc repro` looks there only once everything that a stage reads is checked out. Here the hashes are enough. The name of
an entry is the hash of the stage's command, parameters and deps, so an entry of that name is the result of just this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def lock_entry(stage: Any) -> dict[str, Any]:
    """A stage as dvc.lock has it, with the hashes that its deps and outs have now."""
    from dvc.stage.serialize import to_single_stage_lockfile  # type: ignore[import-untyped]  # DVC ships no types

    entry: dict[str, Any] = json.loads(json.dumps(to_single_stage_lockfile(stage)))
    return entry


def is_kept(stage: Any) -> bool:
    """Whether DVC keeps results of such a stage: it keeps none if the stage reads or writes outside of the checkout."""
    deps = all(dep.protocol == "local" and dep.def_path and dep.hash_info for dep in stage.deps)
    outs = all(out.protocol == "local" and out.is_in_repo and not out.persist for out in stage.outs)
    always = stage.is_callback or stage.always_changed
    return bool(stage.cmd and stage.deps and stage.outs and deps and outs) and not always


def name_of(entry: Mapping[str, Any]) -> str:
    """The name of a stage's entries in the run cache, which is a folder; only the paths of outs count."""
    from dvc.utils import dict_sha256  # type: ignore[import-untyped]  # likewise

    outs = [out["path"] for out in entry.get("outs", ())]
    name: str = dict_sha256({**entry, "outs": outs}, exclude=["size", "nfiles"])
    return name


def folder(repo: Any, name: str) -> Path:
    """Where the entries of a name are."""
    return Path(repo.stage_cache.cache_dir, name[:2], name)


def result(repo: Any, stage: Any, name: str) -> tuple[dict[str, Any], Any] | None:
    """The newest entry of a stage's name, and a stage whose outs are what it says; None without a readable one."""
    from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA  # type: ignore[import-untyped]  # likewise
    from dvc.stage import PipelineStage, create_stage  # type: ignore[import-untyped]  # likewise
    from dvc.stage.loader import StageLoader  # type: ignore[import-untyped]  # likewise
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml  # type: ignore[import-untyped]  # likewise
    from voluptuous import Invalid

    entries = [path for path in folder(repo, name).glob("*") if path.is_file()]
    if not entries:
        return None
    newest = max(entries, key=lambda path: path.stat().st_mtime)
    try:
        entry: dict[str, Any] = COMPILED_LOCK_FILE_STAGE_SCHEMA(load_yaml(str(newest)))
    except (YAMLFileCorruptedError, Invalid):
        return None
    outs = [out["path"] for out in entry["outs"]]
    made = create_stage(PipelineStage, repo, stage.path, wdir=stage.wdir, cmd=entry["cmd"], outs=outs)
    StageLoader.fill_from_lock(made, entry)
    return entry, made


def set_hash(dep: Any, made: Mapping[str, Any]) -> None:
    """Gives a dep the hash of an out that is not checked out: its entry in dvc.lock."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta

    dep.hash_info, dep.meta = HashInfo("md5", made["md5"]), Meta.from_dict({**made})


def member(repo: Any, md5: str, parts: tuple[str, ...]) -> dict[str, Any]:
    """A file in a folder that the cache has, as dvc.lock would have it; empty if it is not known."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    try:
        tree = Tree.load(repo.cache.local, HashInfo("md5", md5))
    except Exception:  # noqa: BLE001 - not in the cache, or damaged there: it is then not known
        return {}
    meta, info = tree.get(parts) or (None, None)
    if info is None:
        return {}
    path = Path(repo.cache.local.oid_to_path(info.value))
    size = meta.size if meta and meta.size is not None else path.stat().st_size if path.exists() else 0
    return {"md5": info.value, "size": size}


def is_known(out: Any) -> bool:
    """Whether the cache, or dvc.lock, has everything that is at an out now."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.tree import Tree

    _, _, found = build(out.cache, out.fs_path, out.fs, out.hash_name, ignore=out.dvcignore, dry_run=True)
    if found.hash_info == out.hash_info:
        return True
    members = [entry.value for _, _, entry in found] if isinstance(found, Tree) else []
    return all(out.cache.exists(oid) for oid in (found.hash_info.value, *members))
