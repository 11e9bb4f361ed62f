"""The files of a checkout as they are now, or as a git revision records them: `paths` of params.yaml in a folder.

A revision's files are links into DVC's cache, in a folder for the time of one command. Nothing is checked out, and
nothing is pushed; what the cache lacks may be copied from DVC's remote.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from align.errors import DataError
from align.formats.shards import MANIFEST, read_manifest
from align.services.dvc.revision import RevisionFiles
from align.services.git import LOCK_FILE, git_if_any


class FilesAt:
    """The files of a checkout. `RecordedFiles` are those of a revision.

    Args:
        root: of the checkout; the working directory by default.

    Attributes:
        where: who has them, for people.
    """

    def __init__(self, root: Path = Path()) -> None:
        self._root = root
        self.where = "the checkout's data"

    def folder(self, out: Path, *patterns: str, fetch: bool = False) -> Path:
        """A folder with those of an out's files that match and are on this machine; it need not exist.

        Args:
            out: as section `paths` names it.
            patterns: of the files that are needed.
            fetch: whether to copy from DVC's remote what this machine lacks; small files are copied anyway.
        """
        return self._root / out

    def file(self, out: Path, name: str) -> Path | None:
        """A file of an out; None if it is not available."""
        path = self.folder(out, name) / name
        return path if path.is_file() else None

    def json(self, out: Path, name: str) -> dict[str, Any] | None:
        """A JSON object of an out; None if it is not available, or not one."""
        path = self.file(out, name)
        try:
            values = json.loads(path.read_bytes()) if path else None
        except ValueError:
            return None
        return values if isinstance(values, dict) else None

    def why_missing(self, out: Path) -> str:
        """Why a file of an out is not here, and how to get it; one line."""
        return f"{out} is not in this checkout, or not whole; `dvc checkout {out}` or `dvc repro` makes it"


class RecordedFiles(FilesAt):
    """The files of a revision, as `FilesAt`."""

    def __init__(self, root: Path, revision: str, scratch: Path) -> None:
        super().__init__(scratch)
        self._files = RevisionFiles(root, revision)
        self.where = f"as of {branch_at(root, revision) or revision}"

    def folder(self, out: Path, *patterns: str, fetch: bool = False) -> Path:
        """See `FilesAt`."""
        folder = self._root / out
        for name, cached in self._files.files(out.as_posix()).items() if not out.is_absolute() else ():
            link = folder / name
            if not any(PurePosixPath(name).match(one) for one in patterns) or link.is_file():
                continue
            if cached.is_file():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(cached.absolute())
            elif fetch or name.endswith(".json"):
                self._files.fetch(f"{out.as_posix()}/{name}", link)
        return folder

    def why_missing(self, out: Path) -> str:
        """See `FilesAt`."""
        return (
            f"{out}, {self.where}, is neither in DVC's cache nor in its remote: a purge has ended it, or on a machine "
            f"that has it `dvc push`, then here `dvc fetch --all-branches {out}`"
        )


class Revisions:
    """Opens revisions of a checkout, each once.

    Args:
        root: the checkout.
        scratch: a folder for their links; the caller removes it.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root, self._scratch = root, scratch
        self._opened: dict[str, RecordedFiles] = {}

    def at(self, revision: str) -> RecordedFiles:
        """The files of a revision.

        Raises:
            DataError: it does not exist, it has no dvc.lock, or DVC cannot read it.
        """
        commit = git_if_any(self._root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        if commit is None:
            raise DataError(f"'{revision}' names no commit in {self._root}, and no folder")
        commit = commit.strip()
        if git_if_any(self._root, "cat-file", "-e", f"{commit}:./{LOCK_FILE}") is None:
            raise DataError(
                f"'{revision}' has no {LOCK_FILE}, the record of a run; name a run's branch, such as run/demo"
            )
        if commit not in self._opened:
            self._opened[commit] = RecordedFiles(self._root, commit, self._scratch / commit)
        return self._opened[commit]

    def find(self, digest: str, shards: Path, revisions: Iterable[str]) -> FilesAt | None:
        """The data with this digest: in the checkout, or at one of the revisions that may have it; None: at none.

        Args:
            digest: of the manifest of data/shards.
            shards: data/shards, as dvc.lock names it.
            revisions: in the order of preference.
        """
        if digest == digest_of(shards):
            return FilesAt()
        for revision in revisions:
            try:
                files = self.at(revision)
            except DataError:
                continue
            if digest_of(files.folder(shards, MANIFEST)) == digest:
                return files
        return None


def digest_of(shards: Path) -> str | None:
    """`digest` of the manifest of data/shards; None if there is none, or another layout."""
    try:
        return read_manifest(shards).digest
    except DataError:
        return None


def branch_at(root: Path, commit: str) -> str:
    """The run's branch at a commit; empty: none."""
    names = git_if_any(root, "for-each-ref", "--format=%(refname:lstrip=2)", f"--points-at={commit}", "refs/heads/run")
    return next(iter((names or "").splitlines()), "")
