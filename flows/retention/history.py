"""Which revisions stay, and which branches run/NAME go.

Everything that git refers to stays, with its whole history, except the branches of runs: the newest of those stay, the
young ones, those that a worktree has checked out or that people have added commits to, and those that a registered
version or a file of data/policy needs.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.errors import DataError
from align.git import environment, git

LOCK_FILE = "dvc.lock"
RUNS = "refs/heads/run/"
#: The beginning of the message of a run's commit.
_RECORDED = "run "
_MD5 = re.compile(r"md5: ['\"]?([0-9a-f]{32}(?:\.dir)?)\b")


@dataclass(frozen=True)
class RunBranch:
    """A branch that a run recorded, and that may go.

    Attributes:
        ref: such as refs/heads/run/demo.
        commit: its tip.
    """

    ref: str
    commit: str

    @property
    def name(self) -> str:
        """Such as run/demo."""
        return self.ref.removeprefix("refs/heads/")


class History:
    """The revisions of a checkout.

    Args:
        root: the checkout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        lines = git(root, "worktree", "list", "--porcelain").splitlines()
        self.worktrees = [Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")]
        self._heads = [line.removeprefix("HEAD ") for line in lines if line.startswith("HEAD ")]
        self._checked_out = {line.removeprefix("branch ") for line in lines if line.startswith("branch ")}

    def runs(self, *, num_kept: int | None, younger: float) -> list[RunBranch]:
        """The branches of runs beyond the newest `num_kept` and no younger than a time; None: there are none.

        Args:
            num_kept: how many stay.
            younger: seconds since 1970.
        """
        if num_kept is None:
            return []
        form = "--format=%(refname)%00%(objectname)%00%(committerdate:unix)%00%(subject)"
        rows = [line.split("\0") for line in git(self.root, "for-each-ref", form, RUNS).splitlines()]
        rows.sort(key=lambda row: -int(row[2]))
        return [
            RunBranch(ref, commit)
            for ref, commit, time, subject in rows[num_kept:]
            if int(time) < younger and ref not in self._checked_out and subject.startswith(_RECORDED)
        ]

    def kept(self, gone: Collection[RunBranch], versions: Iterable[str]) -> list[str]:
        """The commits that stay: of every ref that does not go, of HEAD in each worktree, and of registered versions.

        Args:
            gone: the branches that go.
            versions: commits of registered versions.
        """
        refs = git(self.root, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        names = {branch.ref for branch in gone}
        tips = [line.split()[1] for line in refs if line.split()[0] not in names]
        starts = [*tips, *(head for head in self._heads if set(head) != {"0"}), *versions]
        return sorted(commit for one in set(starts) if (commit := self.commit(one)) is not None)

    def commit(self, revision: str) -> str | None:
        """The hash of the commit that a revision names; None if there is none, such as for a tag of a file."""
        try:
            return git(self.root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        except DataError:
            return None

    def reachable(self, commits: Sequence[str]) -> set[str]:
        """The commits and everything before them."""
        return set(self._read("rev-list", "--stdin", stdin=commits).decode().split()) if commits else set()

    def records(self, commits: Sequence[str], *, history: bool = True) -> list[bytes]:
        """What git has of DVC's records, dvc.lock and *.dvc, at these commits, and with `history` before them."""
        found = set(commits)
        if history and commits:
            args = ("log", "--full-history", "--format=%H", "--stdin", "--", f"*{LOCK_FILE}", "*.dvc")
            found |= set(self._read(*args, stdin=commits).decode().split())
        blobs = set()
        for commit in found:
            for line in self._read("ls-tree", "-r", "-z", commit).decode("utf-8", "surrogateescape").split("\0"):
                about, _, path = line.partition("\t")
                if path.endswith(".dvc") or path.rpartition("/")[2] == LOCK_FILE:
                    blobs.add(about.split()[2])
        return [self._read("cat-file", "blob", blob) for blob in sorted(blobs)]

    def working_records(self) -> list[bytes]:
        """DVC's records as they are now in the checkout and in each worktree, committed or not."""
        return [
            path.read_bytes()
            for folder in self.worktrees
            for path in (folder / LOCK_FILE, *self._tracked(folder))
            if path.is_file()
        ]

    def remove(self, branch: RunBranch) -> None:
        """Removes a branch that is still at this commit; one that was recorded again meanwhile stays."""
        if self.commit(branch.ref) == branch.commit:
            git(self.root, "update-ref", "-d", branch.ref, branch.commit)

    def _tracked(self, folder: Path) -> list[Path]:
        if not folder.is_dir():  # a worktree that was deleted by hand
            return []
        listed = git(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.dvc")
        return [folder / name for name in listed.split("\0") if name]

    def _read(self, *args: str, stdin: Sequence[str] = ()) -> bytes:
        done = subprocess.run(
            ["git", *args], cwd=self.root, env=environment(), input="\n".join(stdin).encode(), capture_output=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise DataError(f"git {args[0]} in {self.root}: {done.stderr.decode('utf-8', 'replace').strip()}")
        return done.stdout


def md5s_in(record: bytes) -> set[str]:
    """Every md5 that a dvc.lock or a *.dvc names: of outs, and of what they were made from."""
    return set(_MD5.findall(record.decode("utf-8", "replace")))


def with_digest(records: Iterable[bytes], digests: Collection[str]) -> set[str]:
    """Those of the sha256s that are digests of one of the records."""
    return {digest for record in records if (digest := hashlib.sha256(record).hexdigest()) in digests}
