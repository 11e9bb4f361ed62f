"""Brings a backup into a checkout of the same repository in which nothing was run, such as a fresh clone.

Every file is checked against its sha256. The databases come last: only with them does a checkout know of runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from align.errors import DataError
from align.files import write_text
from align.git import git
from align.locks import locked
from align.run import running_services
from align.services.dvc import dvc
from align.services.tracking.database import ARTIFACTS, artifacts_beside
from flows.backup.databases import DATABASES, MLFLOW, point_mlflow_here
from flows.backup.place import Place
from flows.backup.save import BUNDLE, CACHE, IDENTITY, first_commits
from flows.retention.live import GC, LOCKS
from flows.run_context import STATE

#: While a restore is under way: the backup's name. The same restore may be repeated after it was interrupted.
_UNFINISHED = STATE / "restoring"
#: Where a branch goes that is here, too, and has other commits.
_OTHER = "backup/"


def restore(root: Path, place: Place, name: str | None, *, log: Callable[[str], None]) -> str:
    """Restores a backup.

    Args:
        root: the root of the checkout.
        place: where the backups are.
        name: of the backup; None: the newest.
        log: for lines about its progress.

    Returns:
        The backup's name.

    Raises:
        DataError: there is no such backup, it is another repository's, or something was run or changed here.
        CorruptError: the backup is damaged. The checkout has no databases then, and the next try may name another one.
        ServiceError: a server fails.
    """
    if place.project() is None:
        raise DataError(f"{place.location}: no backups there")
    names = place.backups()
    if not names:
        raise DataError(f"{place.location}: no backup there was completed")
    if name is not None and name not in names:
        raise DataError(f"{name}: no such backup; there are {', '.join(names[-3:])}")
    name = name or names[-1]
    manifest = place.manifest(name)
    files = {path: (str(sha256), int(size)) for path, (sha256, size) in manifest["files"].items()}
    with locked(root / LOCKS / GC, "`make restore`", log), tempfile.TemporaryDirectory(prefix="align-") as folder:
        _require_fresh(root, manifest, place, name)
        write_text(root / _UNFINISHED, f"{name}\n")
        scratch = Path(folder)
        place.get(*files[BUNDLE], scratch / "bundle")
        _branches(root, scratch / "bundle", manifest, log)
        last = {database.file.as_posix() for database in DATABASES}
        for path, entry in files.items():
            if path not in last and not path.startswith(("databases/", "git/")):
                place.get(*entry, _inside(root, path))
        log(f"restore: {len(files):,} files")
        _protect(root / CACHE)
        for database in DATABASES:
            if (dump := files.get(f"databases/{database.dump}")) is not None:
                place.get(*dump, scratch / database.dump)
                if database.is_empty(root):  # else an interrupted restore has filled it, wholly
                    database.load(scratch / database.dump)
            elif (file := files.get(database.file.as_posix())) is not None:
                place.get(*file, root / database.file)
        if MLFLOW.is_used(root):
            (root / ARTIFACTS).mkdir(exist_ok=True)
            point_mlflow_here(root, manifest["artifacts"], artifacts_beside(root.resolve() / MLFLOW.file))
        write_text(root / IDENTITY, f"{manifest['project']}\n")
        if (root / "dvc.lock").is_file():
            dvc(root, "checkout", "--quiet", "--allow-missing", "--force")
        (root / _UNFINISHED).unlink()
    return name


def _require_fresh(root: Path, manifest: dict[str, Any], place: Place, name: str) -> None:
    """Raises DataError if anything here would be lost, or if this is another repository."""
    if first_commits(root) != manifest["first_commits"]:
        raise DataError(f"{place.location}: backups of another repository; restore into a clone of that one")
    if running_services(root):
        raise DataError("servers of `make up` run here; restore into a checkout in which nothing was run")
    file = root / _UNFINISHED
    if file.is_file():
        return  # what is here is from a restore that was interrupted
    for path in (CACHE, ARTIFACTS, ".align/remote"):
        if (root / path).exists() and (not (root / path).is_dir() or any((root / path).iterdir())):
            raise DataError(f"{root / path}: exists; restore into a checkout in which nothing was run: a fresh clone")
    for database in DATABASES:
        database.require_empty(root)
    if runs := git(root, "for-each-ref", "--count=1", "--format=%(refname:short)", "refs/heads/run/"):
        raise DataError(f"branch {runs} exists; restore into a checkout in which nothing was run: a fresh clone")
    if changed := git(root, "status", "--porcelain"):
        raise DataError(f"the checkout has changes ({changed.splitlines()[0].strip()}); commit or remove them first")


def _branches(root: Path, bundle: Path, manifest: dict[str, Any], log: Callable[[str], None]) -> None:
    """Brings back branches and tags. One that is here and has commits of its own stays; the backup's gets a prefix."""
    git(root, "bundle", "verify", "--quiet", str(bundle))
    git(root, "fetch", "--quiet", "--no-write-fetch-head", "--no-tags", str(bundle), "+refs/*:refs/align-restore/*")
    current = git(root, "rev-parse", "--symbolic-full-name", "HEAD")
    for line in git(root, "for-each-ref", "--format=%(objectname) %(refname)", "refs/align-restore/").splitlines():
        commit, _, restored = line.partition(" ")
        ref = f"refs/{restored.removeprefix('refs/align-restore/')}"
        here = git(root, "for-each-ref", "--format=%(objectname)", ref).strip()
        if ref == current and here != commit and _is_ancestor(root, here, commit):
            git(root, "merge", "--quiet", "--ff-only", commit)
        elif not here or (ref != current and _is_ancestor(root, here, commit)):
            git(root, "update-ref", ref, commit)
        elif here != commit and not _is_ancestor(root, commit, here):
            kept = ref.replace("refs/heads/", f"refs/heads/{_OTHER}", 1)
            if kept != ref:
                git(root, "update-ref", kept, commit)
                log(f"restore: {ref} has other commits here; the backup's are {kept}")
        git(root, "update-ref", "-d", restored)
    if git(root, "rev-parse", "HEAD") != manifest["head"]:
        log(f"restore: the checkout is at another commit than the backup was ({manifest['head'][:10]})")


def _is_ancestor(root: Path, one: str, other: str) -> bool:
    try:
        git(root, "merge-base", "--is-ancestor", one, other)
    except DataError:
        return False
    return True


def _inside(root: Path, name: str) -> Path:
    """The path of a file. Raises DataError if its name leads out of the checkout, or into git's own folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] == (".git",):
        raise DataError(f"{name}: a backup names a file outside of the checkout; it is not restored")
    target = root / path
    if not target.parent.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{name}: a link here leads out of the checkout; restore into a fresh clone")
    return target


def _protect(cache: Path) -> None:
    """Makes objects read-only, as DVC has them."""
    for path in (cache / "files").rglob("*"):
        if path.is_file():
            path.chmod(0o444)
