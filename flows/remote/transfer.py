"""`python -m flows.remote.transfer WHAT STAGE ...`: what both machines do with DVC's remote; a line of JSON.

    check STAGE ...      head: what will not do; nothing is sent
    offer STAGE          head: the result comes from the remote if it is there; else what the stage reads goes there
    accept STAGE REMOTE  worker: what the stage reads comes from there, and the result if it is there meanwhile
    give STAGE           worker: the result goes there
    take STAGE           head: the result comes from there

A result is the stage's outs and its entry in DVC's run cache. `dvc push --run-cache` copies the entries of all stages
of all runs, each time; one stage needs one. An entry's name is the hash of the stage's command, parameters and deps, so
an entry of that name is the result of just this.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dvc.exceptions import OutputNotFoundError  # type: ignore[import-untyped]  # DVC ships no types
from dvc.repo import Repo  # type: ignore[import-untyped]  # likewise
from dvc.stage.cache import RunCacheNotFoundError, _can_hash, _get_stage_hash  # type: ignore[import-untyped]  # likewise

from align.console import say
from align.declared import DVC_FILE
from align.errors import DataError, without_logins
from flows.remote_objects import require_reachable

#: Where DVC keeps the run cache, in a cache and in a remote.
_RUNS = "runs"


def require_remote(repo: Any) -> None:
    """Raises DataError if there is no default remote."""
    if repo.config["core"].get("remote") is None:
        raise DataError("DVC has no default remote: `dvc remote default NAME` (docs/scale.md)")


def address(repo: Any) -> str:
    """Of the default remote, without a login. That of a local one is absolute, however it was written."""
    return without_logins(str(repo.config["remote"][repo.config["core"]["remote"]]["url"]))


def kept(repo: Any, stage: Any) -> list[str]:
    """What the stage reads that DVC keeps, as paths: outs of other stages, or files in them, and what was added."""
    found = {
        str(dep.def_path) for dep in stage.deps if dep.protocol == "local" and dep.def_path and _outs_of(repo, dep)
    }
    return sorted(found)


def offer(repo: Any, stage: Any) -> dict[str, Any]:
    """Brings the result, if the remote has it; else pushes what the stage reads: the outs that hold it, whole."""
    if not take(repo, stage)["found"]:
        makers = {out.stage.addressing for dep in stage.deps if dep.protocol == "local" for out in _outs_of(repo, dep)}
        if makers:
            repo.push(targets=sorted(makers))
        return {"found": False, "remote": address(repo)}
    return {"found": True}


def accept(repo: Any, stage: Any, remote: str) -> dict[str, Any]:
    """Fetches and checks out what the stage reads, and the result if somebody else has made it.

    Raises:
        DataError: the remote is another one than the head's.
    """
    if address(repo) != remote:
        raise DataError(f"this machine's is {address(repo)}, and that of the run {remote}: set it in .dvc/config.local")
    if targets := kept(repo, stage):
        repo.pull(targets=targets)
    return take(repo, stage)


def give(repo: Any, stage: Any) -> dict[str, Any]:
    """Pushes the stage's outs, then its entry: who sees the entry finds the outs."""
    key = _key(stage)
    repo.push(targets=[stage.addressing])
    odb = _runs_of_remote(repo)
    for file in Path(repo.stage_cache._get_cache_dir(key)).iterdir():
        odb.fs.put_file(str(file), odb.fs.join(odb.path, _RUNS, key[:2], key, file.name))
    return {}


def take(repo: Any, stage: Any) -> dict[str, Any]:
    """Brings the entry and what it names into the cache, unless they are there; `found`: whether they now are."""
    key = _key(stage)
    folder = Path(repo.stage_cache._get_cache_dir(key))
    if not _is_whole(repo, stage):
        odb = _runs_of_remote(repo)
        there = odb.fs.join(odb.path, _RUNS, key[:2], key)
        if not odb.fs.exists(there):
            return {"found": False}
        folder.mkdir(parents=True, exist_ok=True)
        for file in odb.fs.find(there):
            part = folder.parent / f".{odb.fs.name(file)}.part"
            odb.fs.get_file(file, str(part))
            part.replace(folder / odb.fs.name(file))
        entry = repo.stage_cache._load(stage)
        if entry is not None:
            for objects in repo.stage_cache._create_stage(entry, wdir=stage.wdir).get_used_objs().values():
                repo.cloud.pull(objects)
    return {"found": _is_whole(repo, stage)}


def _is_whole(repo: Any, stage: Any) -> bool:
    try:
        repo.stage_cache.restore(stage, dry=True)
    except RunCacheNotFoundError:
        return False
    return True


def _key(stage: Any) -> str:
    """The name of the stage's entry, with its deps as they are now.

    Raises:
        DataError: DVC keeps no entry of such a stage.
    """
    stage.save_deps()
    if not _can_hash(stage):
        raise DataError(f"DVC keeps no result of {stage.addressing}: it reads, or writes, what is not in the checkout")
    key: str = _get_stage_hash(stage)
    return key


def _outs_of(repo: Any, dep: Any) -> list[Any]:
    try:
        found: list[Any] = repo.find_outs_by_path(dep.fs_path, recursive=True, strict=False)
    except OutputNotFoundError:
        return []
    return found


def _runs_of_remote(repo: Any) -> Any:
    """The part of the remote with the run cache."""
    return repo.cloud.get_remote_odb(None, "run cache", hash_name="md5-dos2unix")


def check(repo: Any, stages: list[Any]) -> dict[str, Any]:
    """Why the remote, or a stage, will not do, and which deps DVC keeps."""
    refused, name = [], repo.config["core"]["remote"]
    try:
        odb = repo.cloud.get_remote_odb(None)
        require_reachable(odb, Path(repo.root_dir))
        if odb.fs.protocol == "local" and Path(odb.path).is_relative_to(repo.root_dir):
            refused.append(
                f"DVC's remote '{name}' is a folder of this checkout, which no other machine sees: make one in a "
                "bucket the default (docs/scale.md)"
            )
    except Exception as error:  # noqa: BLE001 (DVC's, boto's, paramiko's ...: in any case the remote cannot be used)
        refused.append(f"DVC's remote '{name}': {one_line(error)}")
    for stage in stages:
        outside = [str(dep) for dep in stage.deps if dep.protocol != "local" or not dep.def_path]
        if outside:
            refused.append(
                f"{stage.addressing} reads {outside[0]}, and DVC keeps no result of a stage that reads from elsewhere: "
                f"run it here (cluster.pools: {stage.addressing}: null)"
            )
    return {"refused": refused, "kept": sorted({dep for stage in stages for dep in kept(repo, stage)})}


def one_line(error: BaseException) -> str:
    """What an error of any library says, without logins."""
    return without_logins(" ".join(str(error).split()))[:300] or type(error).__name__


def main() -> int:
    """Returns 1 with one line on stderr if DVC or the remote refuses."""
    parser = argparse.ArgumentParser(prog="flows.remote.transfer", description=(__doc__ or "").splitlines()[0])
    verbs: dict[str, Callable[..., dict[str, Any]]] = {"offer": offer, "accept": accept, "give": give, "take": take}
    parser.add_argument("what", choices=["check", *verbs])
    parser.add_argument("words", nargs="+")
    args = parser.parse_args()
    try:
        repo = Repo()
        require_remote(repo)
        if args.what == "check":
            answer = check(repo, [repo.stage.load_one(DVC_FILE, name) for name in args.words])
        else:
            name, *more = args.words
            answer = verbs[args.what](repo, repo.stage.load_one(DVC_FILE, name), *more)
    except Exception as error:  # noqa: BLE001 (as above)
        say(f"align: error: {one_line(error)}")
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
