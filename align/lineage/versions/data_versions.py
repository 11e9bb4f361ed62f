"""Versions of the data as git and DVC keep them: their files, and how to remove them.

Every dvc.lock in git and DVC's run cache record what a stage made; the bytes are in DVC's cache under their md5, a
folder as a list of its files. This module reads those files directly; for the rest it asks `align.services`. It never
checks out another version, never pushes, and never changes git; it deletes only the objects that `remove` is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from align.errors import DataError, ServiceError
from align.lineage.versions.stage_runs import CHECKOUT, StageRun, parse_runs, recorded_runs
from align.services.dvc import objects
from align.services.dvc.commands import changes_of, record_outs
from align.services.dvc.repository import settings
from align.services.git import LOCK_FILE, git_if_any

_FOLDER = ".dir"


@dataclass(frozen=True)
class RemovedObjects:
    """The result of removing objects from one cache or remote.

    Attributes:
        where: its name, for people.
        removed: md5s of the objects that were deleted.
        left: md5 -> why it could not be deleted; `*` -> why the whole remote could not be reached.
    """

    where: str
    removed: tuple[str, ...]
    left: Mapping[str, str]


class DataVersions:
    """The recorded versions of one checkout's data. Without git or DVC there are none.

    Args:
        root: the checkout.
        scratch: a folder for objects from remotes and for versions laid out as folders; the caller removes it.

    Attributes:
        tracked: whether DVC keeps this checkout's data.
        unreachable: remote -> why it could not be reached, for the remotes that were asked.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root, self._scratch = root, scratch
        self._asked: set[str] = set()
        self.unreachable: dict[str, str] = {}
        self.tracked = (root / ".dvc").is_dir()

    @cached_property
    def cache(self) -> Path | None:
        """DVC's cache, or None."""
        return Path(self._settings["cache"]) if self.tracked else None

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """DVC's, read when somebody needs them."""
        return settings(self._root)

    # --- which versions exist

    def lock(self, revision: str) -> dict[str, str]:
        """Out path -> md5 for all stages, from the dvc.lock of a git revision.

        Raises:
            DataError: the revision does not exist, or it has no dvc.lock.
        """
        if git_if_any(self._root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") is None:
            raise DataError(f"'{revision}' names no commit in {self._root}, and no folder")
        text = git_if_any(self._root, "show", f"{revision}:{LOCK_FILE}")
        if text is None:
            raise DataError(
                f"'{revision}' has no {LOCK_FILE}, the record of a run; name a run's branch, such as run/demo"
            )
        return {path: md5 for run in parse_runs(text, revision) for path, md5 in run.outs.items()}

    def runs(self) -> list[StageRun]:
        """Every run of a stage that the checkout, git or the run cache has recorded; equal ones once."""
        return recorded_runs(self._root, self.cache)

    def other_checkouts(self) -> list[Path]:
        """The other git worktrees of the repository: each has data of its own and shares the cache."""
        lines = (git_if_any(self._root, "worktree", "list", "--porcelain") or "").splitlines()
        paths = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
        return [path for path in paths if path.resolve() != self._root.resolve()]

    # --- their files

    def how_to_get(self, path: str) -> str:
        """What to do if an out's bytes are not available from here; one line."""
        problems = "".join(f" ({why})" for why in self.unreachable.values())
        return (
            f"{path} is neither in DVC's cache nor in a remote that answers{problems}; on a machine that has it, "
            f"`dvc push`, then here `dvc fetch --all-branches {path}`"
        )

    def files(self, md5: str) -> dict[str, str] | None:
        """Path within the out -> md5 of each file (a single file has the path ``); None if its list is gone."""
        if not md5.endswith(_FOLDER):
            return {"": md5}
        listing = self.object(md5)
        if listing is None:
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}

    def files_in_checkout(self, out: str) -> dict[str, str]:
        """`files` of an out by the checkout's dvc.lock, and `*` -> the md5 of their list; empty if it has none."""
        text = (self._root / LOCK_FILE).read_text("utf-8")
        md5s = [run.outs[out] for run in parse_runs(text, CHECKOUT) if out in run.outs]
        return (self.files(md5s[0]) or {}) | {"*": md5s[0]} if md5s else {}

    def object(self, md5: str) -> Path | None:
        """The file with these bytes, from the cache or from a remote; None if all of them lack it."""
        self.fetch([md5])
        return self._local(md5)

    def fetch(self, md5s: Iterable[str]) -> None:
        """Copies objects that the cache lacks from the remotes to the scratch folder, if the remotes have them.

        No object is asked for twice.
        """
        missing = [md5 for md5 in md5s if md5 not in self._asked and self._local(md5) is None]
        self._asked |= set(missing)
        for name in self.remotes() if missing else ():
            try:
                objects.copy(self._root, name, missing, self._scratch / "objects")
            except ServiceError as error:
                self.unreachable[name] = str(error)
            missing = [md5 for md5 in missing if self._local(md5) is None]

    def lay_out(self, md5: str, *patterns: str, ask_remotes: bool = True) -> Path | None:
        """A folder of links to those files of an out whose paths match; None if one of them is gone everywhere.

        Without `ask_remotes`, None if one of them is not on this machine.
        """
        files = self.files(md5)
        if files is None:
            return None
        chosen = matching(files, patterns)
        if ask_remotes:
            self.fetch(chosen.values())
        folder = self._scratch / "versions" / md5.removesuffix(_FOLDER)
        for path, one in chosen.items():
            source, link = self._local(one), folder / path
            if source is None:
                return None
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(source.absolute())
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # --- removing them

    def remotes(self) -> dict[str, str]:
        """Name -> URL of every remote in DVC's settings."""
        return dict(self._settings["remotes"]) if self.tracked else {}

    def remove(self, md5s: Iterable[str]) -> Iterator[RemovedObjects]:
        """Deletes these objects from the cache, then from every remote; one result for each."""
        # Lists of files go last: after a failure they lead to what is left.
        names = sorted(set(md5s), key=lambda md5: (md5.endswith(_FOLDER), md5))
        if self.cache is None or not names:
            return
        cached = {md5: path for md5 in names if (path := objects.place(self.cache, md5)).is_file()}
        left = {}
        for md5, path in cached.items():
            try:
                path.unlink()
            except OSError as error:
                left[md5] = error.strerror or str(error)
        yield RemovedObjects(f"DVC cache {self.cache}", tuple(md5 for md5 in cached if md5 not in left), left)
        for name, url in self.remotes().items():
            where = f"DVC remote '{name}' ({url})"
            try:
                removed, kept = objects.delete(self._root, name, names)
            except ServiceError as error:
                yield RemovedObjects(where, (), {"*": str(error)})
            else:
                yield RemovedObjects(where, tuple(removed), kept)

    def commit(self, stage: str, policy: str) -> bool:
        """Records a stage's present outs as what it made; False if that would hide another change.

        Args:
            stage: its name.
            policy: the one dependency that may have changed, since the outs now obey it.

        Raises:
            DataError: DVC refuses.
        """
        changes = changes_of(self._root, stage)
        if changes.other or changes.deps - {policy}:
            return False
        record_outs(self._root, stage)
        return True

    def _local(self, md5: str) -> Path | None:
        for base in (self.cache, self._scratch / "objects"):
            if base is not None and (path := objects.place(base, md5)).is_file():
                return path
        return None


def matching(files: Mapping[str, str], patterns: Iterable[str]) -> dict[str, str]:
    """Those of an out's files whose paths match a pattern."""
    return {path: md5 for path, md5 in files.items() if any(PurePosixPath(path).match(one) for one in patterns)}
