"""`python -m align.services.dvc.transfer WHAT STAGE ...`: what both machines do with DVC's remote; a line of JSON.

    check STAGE ...      head: what will not do
    offer STAGE          head: the result comes from the remote if it is there; else what the stage reads goes there
    accept STAGE REMOTE READS  worker: what the stage reads comes from there, and the result if it is there meanwhile
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
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from dvc.exceptions import CollectCacheError, DownloadError, OutputNotFoundError  # type: ignore[import-untyped]  # DVC ships no types
from dvc.repo import Repo  # type: ignore[import-untyped]  # likewise
from dvc_data.hashfile.db import get_index

from align.display.console import say, show
from align.errors import AlignError, DataError, one_line, without_logins
from align.project.declared import CODE_FILE, DVC_FILE
from align.services.dvc import run_cache
from align.services.dvc.stores import require_reachable

#: Where DVC keeps the run cache, in a cache and in a remote.
_RUNS = "runs"


def require_remote(repo: Any) -> None:
    """Raises DataError if there is no default remote."""
    if repo.config["core"].get("remote") is None:
        raise DataError("DVC has no default remote: `dvc remote default NAME` (docs/scale.md)")


def address(repo: Any) -> str:
    """The address of the default remote, without a login. It is absolute for a local remote."""
    return without_logins(str(repo.config["remote"][repo.config["core"]["remote"]]["url"]))


def kept(repo: Any, stage: Any) -> list[str]:
    """What the stage reads that DVC keeps, as paths: outs of other stages, or files in them, and what was added."""
    found = {
        str(dep.def_path) for dep in stage.deps if dep.protocol == "local" and dep.def_path and _outs_of(repo, dep)
    }
    return sorted(found)


def offer(repo: Any, stage: Any) -> dict[str, Any]:
    """Brings the result, if the remote has it; else pushes what the stage reads: the outs that hold it, whole."""
    taken = take(repo, stage)
    if not taken["found"]:
        makers = {out.stage.addressing for dep in stage.deps if dep.protocol == "local" for out in _outs_of(repo, dep)}
        if makers:
            repo.push(targets=sorted(makers))
    return taken | {"remote": address(repo), "reads": reads(stage)}


def accept(repo: Any, stage: Any, remote: str, expected: str) -> dict[str, Any]:
    """Fetches and checks out what the stage reads, and the result if somebody else has made it.

    Raises DataError if the remote, or what the stage reads, as JSON of `reads`, is not the same as the head's.
    """
    if address(repo) != remote:
        raise DataError(f"this machine's is {address(repo)}, and that of the run {remote}: set it in .dvc/config.local")
    if targets := kept(repo, stage):
        repo.pull(targets=targets)
    taken = take(repo, stage)
    there, here = json.loads(expected), reads(stage)
    if other := sorted(path for path in there.keys() | here.keys() if there.get(path) != here.get(path)):
        raise DataError(
            f"{stage.addressing} reads {other[0]}, which is not the same on this machine: "
            + (
                "another align is installed here"
                if other[0] == CODE_FILE
                else "does it hold a file that git ignores, or changes? What a stage reads comes from git or from DVC"
            )
        )
    return taken


def give(repo: Any, stage: Any) -> dict[str, Any]:
    """Pushes the stage's outs, then its entry: who sees the entry finds the outs."""
    key = _key(stage)
    get_index(repo.cloud.get_remote_odb(None)).clear()  # DVC's own lists of what the remote has: it may have lost some
    repo.drop_data_index()
    repo.push(targets=[stage.addressing])
    odb = _runs_of_remote(repo)
    for file in run_cache.folder(repo, key).iterdir():
        odb.fs.put_file(str(file), odb.fs.join(odb.path, _RUNS, key[:2], key, file.name))
    return {}


def take(repo: Any, stage: Any) -> dict[str, Any]:
    """Brings the entry and what it names into the cache, unless they are there; `found`: whether they now are.

    An entry whose bytes are gone on both sides is not a result: the stage runs again.
    """
    key = _key(stage)
    folder = run_cache.folder(repo, key)
    if not _is_whole(repo, stage, key):
        odb = _runs_of_remote(repo)
        there = odb.fs.join(odb.path, _RUNS, key[:2], key)
        if not odb.fs.exists(there):
            return {"found": False, "key": key}
        folder.mkdir(parents=True, exist_ok=True)
        for file in odb.fs.find(there):
            part = folder.parent / f".{odb.fs.name(file)}.part"
            odb.fs.get_file(file, str(part))
            part.replace(folder / odb.fs.name(file))
        if found := run_cache.result(repo, stage, key):
            with suppress(CollectCacheError, DownloadError):
                for objects in found[1].get_used_objs().values():
                    repo.cloud.pull(objects)
    return {"found": _is_whole(repo, stage, key), "key": key}


def _is_whole(repo: Any, stage: Any, key: str) -> bool:
    """Whether the cache has an entry of this name, with its outs. What dvc.lock says does not count."""
    found = run_cache.result(repo, stage, key)
    return found is not None and bool(found[1].outs_cached())


def reads(stage: Any) -> dict[str, str]:
    """Path -> hash, of what the stage reads, and of its code; other parameters are in the commit."""
    found = {str(dep.def_path): dep.hash_info.value for dep in stage.deps}
    if isinstance(code := found.get(CODE_FILE), dict):
        found[CODE_FILE] = code[stage.name]
    return {path: value for path, value in found.items() if isinstance(value, str)}


def _key(stage: Any) -> str:
    """The name of the stage's entry, with its deps as they are now.

    Raises:
        DataError: DVC keeps no entry of such a stage.
    """
    stage.save_deps()
    if not run_cache.is_kept(stage):
        raise DataError(f"DVC keeps no result of {stage.addressing}: it reads, or writes, what is not in the checkout")
    return run_cache.name_of(run_cache.lock_entry(stage))


def _outs_of(repo: Any, dep: Any) -> list[Any]:
    try:
        found: list[Any] = repo.find_outs_by_path(dep.fs_path, recursive=True, strict=False)
    except OutputNotFoundError:
        return []
    return [out for out in found if out.use_cache]


def _runs_of_remote(repo: Any) -> Any:
    """The part of the remote with the run cache."""
    return repo.cloud.get_remote_odb(None, "run cache", hash_name="md5-dos2unix")


def check(repo: Any, stages: list[Any]) -> dict[str, Any]:
    """Why the remote or a stage is unsuitable, and which deps DVC keeps.

    Writes a file to the remote, and removes it.
    """
    refused, name = [], repo.config["core"]["remote"]
    try:
        odb = repo.cloud.get_remote_odb(None)
        require_reachable(odb, Path(repo.root_dir))
        _write(odb)
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


def _write(odb: Any) -> None:
    """Shows that the remote can be written. Raises the file system's error."""
    target = odb.fs.join(odb.path, f".check-{uuid4().hex}")
    with tempfile.NamedTemporaryFile() as file:
        odb.fs.makedirs(odb.path, exist_ok=True)
        odb.fs.put_file(file.name, target)
    odb.fs.remove(target)


def main() -> int:
    """Returns 1 with one line on stderr if DVC or the remote refuses."""
    parser = argparse.ArgumentParser(prog="align.services.dvc.transfer", description=(__doc__ or "").splitlines()[0])
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
        say(f"align: error: {'' if isinstance(error, AlignError) else 'DVC: '}{one_line(error)}")
        return 1
    show(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
