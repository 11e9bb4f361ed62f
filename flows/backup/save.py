"""Makes a backup of a checkout whose servers and runs may be at work.

What names something is copied before what it names: the databases, then git (a version names a commit), then the files
as they lie in the checkout, MLflow's files and DVC's cache (a commit's dvc.lock names objects; the run cache before
the objects, lists of files before files). `align gc` waits meanwhile, and everything else only adds.

Left out: the login, DVC's own settings for this machine (config.local: credentials), and what the next run makes again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from align.config import Params
from align.config.paths import PathsConfig
from align.errors import DataError
from align.files import is_temporary, sha256_file, write_text
from align.git import git
from align.locks import locked
from align.services.dvc import dvc
from align.services.locations import is_s3
from align.services.tracking.database import ARTIFACTS, artifacts_beside
from flows.backup.databases import DATABASES
from flows.backup.place import SCHEMA_VERSION, Place
from flows.retention.live import GC, LOCKS
from flows.run_context import STATE

#: Who this checkout is: a backup of another one is never mixed with its own.
IDENTITY = STATE / "project"
BUNDLE = "git/bundle"
CACHE = ".dvc/cache"


@dataclass
class Saved:
    """A backup under way.

    Attributes:
        place: where to.
        known: path -> sha256 and bytes in the last backup, for files that never change.
        files: path -> sha256 and bytes, so far.
        num_new: files that were copied.
        new_bytes: their bytes.
    """

    place: Place
    known: dict[str, list[Any]]
    files: dict[str, list[Any]] = field(default_factory=dict)
    num_new: int = 0
    new_bytes: int = 0

    def add(self, name: str, path: Path) -> None:
        """Copies a file that does not change any more; one that was removed meanwhile is passed over."""
        try:
            size = path.stat().st_size
            sha256, num_bytes = self.known.get(name, ("", -1))
            if num_bytes != size:
                sha256 = sha256_file(path)
            if not self.place.has(sha256):
                self.place.put(path, sha256)
                self.num_new, self.new_bytes = self.num_new + 1, self.new_bytes + size
        except FileNotFoundError:
            return
        self.files[name] = [sha256, size]

    def add_changing(self, name: str, path: Path, scratch: Path) -> None:
        """Copies a file that somebody may be writing: what its digest is of is what is copied."""
        try:
            data = hashlib.sha256()
            with path.open("rb") as source, scratch.open("wb") as copy:
                while block := source.read(1 << 20):
                    data.update(block)
                    copy.write(block)
        except FileNotFoundError:
            return
        if not self.place.has(data.hexdigest()):
            self.place.put(scratch, data.hexdigest())
            self.num_new, self.new_bytes = self.num_new + 1, self.new_bytes + scratch.stat().st_size
        self.files[name] = [data.hexdigest(), scratch.stat().st_size]


def save(root: Path, params: Params, place: Place, *, checkpoints: bool, log: Callable[[str], None]) -> str:
    """Makes a backup. A second one into the same place copies only what is new.

    Args:
        root: the root of the checkout.
        params: its parameters.
        place: where to; empty, or with earlier backups of this checkout.
        checkpoints: whether training checkpoints are copied, too.
        log: for lines about its progress.

    Returns:
        The name of the backup.

    Raises:
        DataError: the place is another project's or lies in the checkout, or a database is damaged.
        ServiceError: a server of the place or of PostgreSQL fails. Nothing is a backup then.
    """
    if not is_s3(place.location) and Path(place.location).resolve().is_relative_to(root.resolve()):
        raise DataError(f"{place.location}: lies in the checkout that is backed up; choose a folder elsewhere")
    with locked(root / LOCKS / GC, "`make backup`", log), tempfile.TemporaryDirectory(prefix="align-") as folder:
        scratch = Path(folder)
        place.claim(identity(root))
        earlier = place.backups()
        known = place.manifest(earlier[-1])["files"] if earlier else {}
        saved = Saved(place, {name: entry for name, entry in known.items() if _never_changes(name)})
        for database in DATABASES:
            if database.is_used(root):
                name, copy = database.save(root, scratch)
                saved.add(name, copy)
                log(f"backup: {database.name}'s database")
        git(root, "bundle", "create", "--quiet", str(scratch / "bundle"), "--all", "HEAD")
        saved.add(BUNDLE, scratch / "bundle")
        branch = git(root, "rev-parse", "--abbrev-ref", "HEAD")
        for name, path in _files(root, params, checkpoints=checkpoints):
            if _never_changes(name):
                saved.add(name, path)
            else:
                saved.add_changing(name, path, scratch / "file")
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "project": identity(root),
            "first_commits": first_commits(root),
            "head": git(root, "rev-parse", "HEAD"),
            "branch": None if branch == "HEAD" else branch,
            "artifacts": artifacts_beside(root.resolve() / "mlflow.db"),
            "files": dict(sorted(saved.files.items())),
        }
        backup = place.finish(datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ"), manifest)
    total = sum(size for _, size in saved.files.values())
    log(f"backup: {len(saved.files):,} files, {total:,} bytes; new {saved.num_new:,} files, {saved.new_bytes:,} bytes")
    return backup


def identity(root: Path) -> str:
    """The id of this checkout's state, made once; a restored checkout has the id of the one that was backed up."""
    file = root / IDENTITY
    if not file.is_file():
        write_text(file, secrets.token_hex(16) + "\n")
    return file.read_text("utf-8").strip()


def first_commits(root: Path) -> list[str]:
    """The commits without parents: what two clones of one repository have in common."""
    return sorted(git(root, "rev-list", "--max-parents=0", "HEAD").split())


def _files(root: Path, params: Params, *, checkpoints: bool) -> Iterator[tuple[str, Path]]:
    """Name in the backup and path of every file, in the order that the module's text says."""
    for listed in git(root, "ls-files", "-z", "--modified", "--others", "--exclude-standard").split("\0"):
        if listed:
            yield from _tree(root, listed)
    yield from _tree(root, ARTIFACTS)
    if (root / ".dvc").is_dir():
        cache = (root / dvc(root, "cache", "dir").strip()).resolve()
        for name in ("runs", "files"):
            found = sorted((cache / name).rglob("*"), key=lambda path: (path.suffix != ".dir", path))
            for path in found:
                if path.is_file() and not path.is_symlink() and not path.name.endswith(".tmp"):
                    yield f"{CACHE}/{path.relative_to(cache).as_posix()}", path
    yield from _tree(root, ".align/remote")
    yield from _tree(root, ".align/failed")
    if checkpoints:
        yield from _tree(root, params.section(PathsConfig).checkpoints.as_posix())


def _tree(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """A file, or every file in a folder; links and what is being written are left out."""
    path = root / name
    for each in sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]:
        if each.is_file() and not each.is_symlink() and not is_temporary(each):
            yield os.fspath(each.relative_to(root)), each


def _never_changes(name: str) -> bool:
    """Whether a file's name says what its bytes are, as in DVC's cache."""
    return name.startswith((f"{CACHE}/files/", ".align/remote/files/"))
