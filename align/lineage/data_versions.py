"""Versions of the data, as git and DVC keep them: which there are, their files, and how they are done away with.

What a stage made is written in every dvc.lock that git knows and in DVC's run cache; the bytes lie in DVC's cache under
their md5, a folder as a list of its files. All of that is read as it lies there. Remotes are asked by a program of its
own, `flows.remote_objects`, since they may be anything that DVC speaks to, and nothing in this library imports DVC.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.errors import DataError, ServiceError

LOCK_FILE = "dvc.lock"
CHECKOUT, RUN_CACHE = "checkout", "run cache"
_FOLDER = ".dir"
_REMOTE = re.compile(r"remote\..+\.url")


@dataclass(frozen=True)
class StageRun:
    """A stage as it ran once.

    Attributes:
        name: of the stage; empty in the run cache, which does not keep it.
        deps: path -> md5, with `.dir` behind that of a folder.
        outs: likewise.
        where: who knows of it: a branch or commit, `checkout`, or `run cache`.
    """

    name: str
    deps: Mapping[str, str]
    outs: Mapping[str, str]
    where: str


@dataclass(frozen=True)
class Removal:
    """What became of some objects in one place.

    Attributes:
        place: for people.
        removed: md5s that were there and are gone.
        left: md5 -> why it is still there; `*` -> why nobody could look.
    """

    place: str
    removed: tuple[str, ...]
    left: Mapping[str, str]


class DataVersions:
    """The history of one checkout. Knows nothing where there is no git or no DVC.

    Args:
        root: the checkout.
        scratch: a folder for objects that come from a remote, and for laid out versions; the caller removes it.

    Attributes:
        tracked: whether DVC keeps this checkout's data.
        cache: DVC's cache, or None.
        unreachable: remote -> why nobody could look there, as far as one was asked.
    """

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root, self._scratch = root, scratch
        self._asked: set[str] = set()
        self.unreachable: dict[str, str] = {}
        self.tracked = (root / ".dvc").is_dir()
        self.cache = Path((root / self._dvc("cache", "dir").strip()).resolve()) if self.tracked else None

    # --- which versions there are

    def lock(self, revision: str) -> dict[str, str]:
        """Out path -> md5 of all stages, as the dvc.lock of a revision says.

        Raises:
            DataError: no such revision, or it has no dvc.lock.
        """
        if self._git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") is None:
            raise DataError(f"'{revision}' names no commit in {self._root}, and no folder")
        text = self._git("show", f"{revision}:{LOCK_FILE}")
        if text is None:
            raise DataError(
                f"'{revision}' has no {LOCK_FILE}, the record of a run; name a run's branch, such as run/demo"
            )
        return {path: md5 for run in _runs(text, revision) for path, md5 in run.outs.items()}

    def runs(self) -> list[StageRun]:
        """Every stage that the checkout, git or the run cache remembers; equal ones once."""
        texts: list[tuple[str, str]] = []
        lock = self._root / LOCK_FILE
        if lock.is_file():
            texts.append((lock.read_text("utf-8"), CHECKOUT))
        branches = (self._git("for-each-ref", "--format=%(objectname) %(refname:short)") or "").splitlines()
        names = dict(line.split(" ", 1) for line in reversed(branches))
        commits = (self._git("log", "--all", "--full-history", "--format=%H", "--", LOCK_FILE) or "").splitlines()
        for commit in commits:
            text = self._git("show", f"{commit}:{LOCK_FILE}")
            if text is not None:  # None: the commit removed it
                texts.append((text, names.get(commit, commit[:10])))
        if self.cache is not None:
            for path in sorted((self.cache / "runs").glob("*/*/*")):
                texts.append((path.read_text("utf-8"), RUN_CACHE))
        found: dict[tuple[tuple[tuple[str, str], ...], ...], StageRun] = {}
        for text, where in texts:
            for run in _runs(text, where):
                found.setdefault((tuple(sorted(run.deps.items())), tuple(sorted(run.outs.items()))), run)
        return list(found.values())

    def other_checkouts(self) -> list[Path]:
        """Worktrees of the same repository: checkouts of their own that share the cache."""
        lines = (self._git("worktree", "list", "--porcelain") or "").splitlines()
        found = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
        return [path for path in found if path.resolve() != self._root.resolve()]

    # --- their files

    def files(self, md5: str) -> dict[str, str] | None:
        """Path within the out -> md5 of each of its files (a single file has the path ``); None: gone everywhere."""
        if not md5.endswith(_FOLDER):
            return {"": md5}
        listing = self.object(md5)
        if listing is None:
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(listing.read_bytes())}

    def files_in_checkout(self, out: str) -> dict[str, str]:
        """`files` of an out as the checkout's dvc.lock has it now; empty where it has none."""
        text = (self._root / LOCK_FILE).read_text("utf-8")
        md5s = [run.outs[out] for run in _runs(text, CHECKOUT) if out in run.outs]
        return (self.files(md5s[0]) or {}) | {"*": md5s[0]} if md5s else {}

    def object(self, md5: str) -> Path | None:
        """The file with these bytes, from the cache or else from a remote; None: gone everywhere."""
        self.fetch([md5])
        return self._local(md5)

    def fetch(self, md5s: Iterable[str]) -> None:
        """Brings objects that the cache lacks from the remotes into the scratch folder, as far as they have them."""
        lacking = [md5 for md5 in md5s if md5 not in self._asked and self._local(md5) is None]
        self._asked |= set(lacking)
        for name in self.remotes() if lacking else ():
            try:
                self._ask("copy", name, lacking, "--to", str(self._scratch / "objects"))
            except ServiceError as error:
                self.unreachable[name] = str(error)
            lacking = [md5 for md5 in lacking if self._local(md5) is None]

    def has(self, md5: str) -> bool:
        """Whether the object is at hand, without asking a remote."""
        return self._local(md5) is not None

    def lay_out(self, md5: str, *patterns: str) -> Path | None:
        """A folder of links to an out's files whose paths match; None: some of them are gone everywhere."""
        files = self.files(md5)
        if files is None:
            return None
        chosen = {path: one for path, one in files.items() if any(PurePosixPath(path).match(p) for p in patterns)}
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

    # --- doing away with them

    def remotes(self) -> dict[str, str]:
        """Name -> URL of every remote that DVC is told of."""
        if not self.tracked:
            return {}
        lines = (line.partition("=") for line in self._dvc("config", "--list").splitlines())
        found = {key.split(".", 1)[1].removesuffix(".url"): url for key, _, url in lines if _REMOTE.fullmatch(key)}
        return dict(sorted(found.items()))

    def remove(self, md5s: Iterable[str]) -> Iterator[Removal]:
        """Removes these objects from the cache and from every remote; one Removal a place, remotes last."""
        # Lists of files go last: what is left after a failure is found again through them.
        names = sorted(set(md5s), key=lambda md5: (md5.endswith(_FOLDER), md5))
        if self.cache is None or not names:
            return
        there = {md5: path for md5 in names if (path := _cached(self.cache, md5)).is_file()}
        left = {}
        for md5, path in there.items():
            try:
                path.unlink()
            except OSError as error:
                left[md5] = error.strerror or str(error)
        yield Removal(f"DVC cache {self.cache}", tuple(md5 for md5 in there if md5 not in left), left)
        for name, url in self.remotes().items():
            try:
                answer = self._ask("delete", name, names)
            except ServiceError as error:
                yield Removal(f"DVC remote '{name}' ({url})", (), {"*": str(error)})
            else:
                yield Removal(f"DVC remote '{name}' ({url})", tuple(answer["removed"]), answer["left"])

    def commit(self, stage: str, policy: str) -> bool:
        """Takes a stage's outs as they lie there for what it made; False where that would hide another change.

        Args:
            stage: its name.
            policy: a dependency that may have changed, since the outs were made to obey it.

        Raises:
            DataError: DVC refuses.
        """
        for change in json.loads(self._dvc("status", "--json", stage) or "{}").get(stage, []):
            if not isinstance(change, dict) or set(change) - {"changed deps", "changed outs"}:
                return False
            if set(change.get("changed deps", {})) - {policy}:
                return False
        self._dvc("commit", "--force", stage)
        return True

    def _local(self, md5: str) -> Path | None:
        for base in (self.cache, self._scratch / "objects"):
            if base is not None and (path := _cached(base, md5)).is_file():
                return path
        return None

    def _git(self, *args: str) -> str | None:
        """Its output, or None where it fails or there is no git."""
        try:
            done = subprocess.run(["git", *args], cwd=self._root, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return done.stdout if done.returncode == 0 else None

    def _dvc(self, *args: str) -> str:
        command = [sys.executable, "-m", "dvc", *args]
        done = subprocess.run(command, cwd=self._root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DataError(f"`dvc {' '.join(args)}`: {_last_line(done.stderr)}")
        return done.stdout

    def _ask(self, what: str, remote: str, md5s: Iterable[str], *options: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "flows.remote_objects", what, remote, *options]
        text = "\n".join(md5s)
        done = subprocess.run(command, cwd=self._root, input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceError(f"DVC remote '{remote}': {_last_line(done.stderr)}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer


def _runs(text: str, where: str) -> Iterator[StageRun]:
    """The stages of a dvc.lock, or the one of a file of the run cache."""
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return
    if not isinstance(values, dict):
        return
    for name, stage in (values.get("stages") or ({"": values} if "cmd" in values else {})).items():
        deps, outs = (
            {item["path"]: item["md5"] for item in stage.get(kind, ()) if "md5" in item} for kind in ("deps", "outs")
        )
        yield StageRun(name, deps, outs, where)


def _cached(base: Path, md5: str) -> Path:
    return base / "files" / "md5" / md5[:2] / md5[2:]


def _last_line(text: str) -> str:
    lines = [line.removeprefix("ERROR: ") for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
