"""The files of a git revision, as DVC's own file system gives them: those of git, and the outs of its dvc.lock."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from align.errors import DataError, one_line


class RevisionFiles:
    """The outs of the dvc.lock of one commit. Nothing is checked out.

    Args:
        root: the checkout.
        revision: a commit, branch or tag.

    Raises:
        DataError: there is no such commit, or DVC cannot read it.
    """

    def __init__(self, root: Path, revision: str) -> None:
        from dvc.api import DVCFileSystem  # type: ignore[import-untyped]  # DVC ships no types

        logging.getLogger("dvc").setLevel(logging.CRITICAL)  # its errors are raised
        try:
            self._fs: Any = DVCFileSystem(str(root), rev=revision)
            self._cache: Any = self._fs.repo.cache.local
            self._known: dict[str, dict[str, Path]] = {}
            self._fs.exists("dvc.lock")
        except Exception as error:  # noqa: BLE001 (DVC's, git's and YAML's own: in any case the commit cannot be read)
            raise DataError(f"DVC cannot read '{revision}' in {root}: {one_line(error)}") from None

    def files(self, out: str) -> dict[str, Path]:
        """Path within an out -> its place in DVC's cache, where it need not be. Empty: the commit has no such out, or
        the list of its files is neither in the cache nor in the remote.
        """
        if out not in self._known:
            try:
                found = self._fs.find(out, detail=True)
            except Exception:  # noqa: BLE001 (as above; a list that is gone is an error of its own)
                found = {}
            md5s = {PurePosixPath("/", path): one.get("dvc_info", {}).get("md5") for path, one in found.items()}
            self._known[out] = {
                path.relative_to(PurePosixPath("/", out)).as_posix(): Path(self._cache.oid_to_path(md5))
                for path, md5 in md5s.items()
                if md5
            }
        return self._known[out]

    def fetch(self, path: str, to: Path) -> bool:
        """Copies a file from DVC's remote (the one of `core.remote`); False if it does not have it."""
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = to.with_name(f".{to.name}.part")
        try:
            self._fs.get_file(path, str(beside))
        except Exception:  # noqa: BLE001 (boto's, paramiko's ...: in any case the file is not to be had)
            return False
        beside.replace(to)
        return True
