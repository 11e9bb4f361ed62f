"""DVC's cache and its remotes as items to remove. Imports DVC, which has no command for single objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dvc.lock import LockError  # type: ignore[import-untyped]  # DVC ships no types
from dvc.repo import Repo  # type: ignore[import-untyped]  # DVC ships no types

from align.errors import LockedError, ServiceError
from align.services.store import Objects as Store
from flows.log import one_line
from flows.remote_objects import delete, require_reachable
from flows.retention.item import Item, dispose, size_of
from flows.retention.objects import Objects


@contextmanager
def dvc_locked(root: Path) -> Iterator[None]:
    """Keeps DVC's commands in the checkout out while the block runs.

    Raises:
        LockedError: one is at work.
    """
    if not (root / ".dvc").is_dir():
        yield
        return
    lock = Repo(str(root)).lock
    try:
        lock.lock()
    except LockError:
        raise LockedError("a DVC command is at work in this checkout; wait for its end, and run again") from None
    try:
        yield
    finally:
        lock.unlock()


def in_cache(cache: Path, objects: Objects) -> Iterator[Item]:
    """Entries of the run cache, then objects; lists of files last, since they lead to what an interruption leaves."""
    entries = [cache / entry.path for entry in objects.entries]
    if entries:
        names = tuple(path.name[:10] for path in entries)
        yield Item("entries of DVC's run cache", names, sum(map(size_of, entries)), partial(_entries, entries))
    files = [cache / "files" / "md5" / md5[:2] / md5[2:] for md5 in _in_order(objects)]
    if files := [file for file in files if file.is_file()]:
        names = tuple(file.parent.name + file.name for file in files)
        yield Item("objects of DVC's cache", names, sum(map(size_of, files)), partial(_unlink, files))


def in_remote(root: Path, name: str, objects: Objects) -> Iterator[Item]:
    """The same of a remote.

    Raises:
        ServiceError: it does not answer; or DVC's settings have no remote of that name.
    """
    md5s, runs = _in_order(objects), [entry.path for entry in objects.entries]
    if not md5s and not runs:
        return
    try:
        repo = Repo(str(root))
        odb = repo.cloud.get_remote_odb(name)
        require_reachable(odb, Path(repo.root_dir))
        if odb.fs.protocol == "local" and not Path(odb.path).parents[1].exists():
            return  # a folder in the checkout, which the first push makes
        base = repo.cloud.get_remote_odb(name, hash_name="md5-dos2unix").path  # of the run cache, and old objects
        sizes = {md5: odb.fs.info(path)["size"] for md5 in md5s if odb.fs.exists(path := odb.oid_to_path(md5))}
        old = [path for run in runs if odb.fs.exists(path := odb.fs.join(base, *run.split("/")))]
    except Exception as error:  # noqa: BLE001 (each file system has its own errors; the user sees them)
        raise _unavailable(name, error) from None
    if sizes or old:
        remove = partial(_remove, odb, name, list(sizes), old)
        yield Item(f"objects of DVC's remote '{name}'", (*sizes, *old), sum(sizes.values()), remove)


def in_store(store: Store, objects: Objects) -> Iterator[Item]:
    """Tars in the store of objects.

    Raises:
        ServiceError: it does not answer.
        DataError: there is no such bucket or folder.
    """
    if objects.tars:
        store.require_reachable()
    if found := {sha: size for sha, size in objects.tars.items() if store.exists(sha)}:
        yield Item("tars of the object store", tuple(found), sum(found.values()), partial(_tars, store, list(found)))


def _remove(odb: Any, name: str, md5s: list[str], old: list[str]) -> None:
    try:
        for path in old:
            if odb.fs.exists(path):
                odb.fs.remove(path)
        answer = delete(odb, md5s)
    except Exception as error:  # noqa: BLE001 (as in `in_remote`)
        raise _unavailable(name, error) from None
    if left := answer["left"]:
        raise ServiceError(f"DVC remote '{name}': {len(left):,} objects are still there: {next(iter(left.values()))}")


def _unavailable(name: str, error: Exception) -> ServiceError:
    reason = one_line(error)
    return ServiceError(f"DVC remote '{name}': {reason}; run `align gc` again when it works")


def _in_order(objects: Objects) -> Sequence[str]:
    return sorted(objects.md5s, key=lambda md5: (md5.endswith(".dir"), md5))


def _entries(files: list[Path]) -> None:
    """Removes entries; a folder whose last one goes, goes in one step: DVC fails where it finds an empty one."""
    for folder in sorted({file.parent for file in files}):
        if folder.is_dir() and set(folder.iterdir()) <= set(files):
            dispose(folder)
    _unlink(files)


def _unlink(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _tars(store: Store, names: list[str]) -> None:
    for sha256 in names:
        store.delete(sha256)
