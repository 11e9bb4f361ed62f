"""Records a run in git as a branch of its own: the code, the parameters and dvc.lock, in one commit on top of HEAD.

The branch is run/<name>; if that exists with another result, run/<name>-2, -3, ... An existing branch is never moved,
so the commits that MLflow's tags name stay in a branch. Works on git's objects and refs only: HEAD, the index and the
files of the user's checkout stay as they are.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from align.config import load_params
from align.config.params import PARAMS_FILE
from align.errors import ConfigError, DataError
from align.services.git import LOCK_FILE, commit_files, git

#: New files of these names are part of a run, even if git does not track them yet; `dvc add` writes `*.dvc`.
NEW = ("align", "flows", "data/policy", LOCK_FILE, "*.dvc")
#: A file's name has at most 255 bytes; git adds `.lock`, and a repeated run its number.
MAX_NAME_BYTES = 200
#: How often another run may take the name before us.
_TRIES = 100
#: The number that `record` appends. A longer number comes from a person: it is a date.
_SUFFIX = r"(?:-([2-9]|[1-9]\d{1,3}))?"


@dataclass(frozen=True)
class Recorded:
    """A run in git.

    Attributes:
        name: of the branch, without `run/`.
        commit: its tip.
        is_new: False if an earlier run had the same result; its branch is this one.
    """

    name: str
    commit: str
    is_new: bool


def check_name(root: Path, name: str) -> None:
    """Raises ConfigError if branch run/<name> cannot be written: the name is invalid, or a branch is in its way."""
    try:
        num_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"run name '{name}': not UTF-8") from None
    if num_bytes > MAX_NAME_BYTES:
        raise ConfigError(f"run name '{name[:40]}…': {num_bytes} bytes long; at most {MAX_NAME_BYTES}")
    if name.startswith("-"):
        raise ConfigError(f"run name '{name}': begins with a dash, so commands would take it for an option")
    try:
        git(root, "check-ref-format", f"refs/heads/run/{name}")
    except (DataError, ValueError):  # ValueError: a null byte
        raise ConfigError(f"run name '{name}': run/{name} is not a valid branch name") from None
    parts = f"run/{name}".split("/")
    around = {"/".join(parts[:number]) for number in range(1, len(parts))}
    for branch in git(root, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/run").splitlines():
        if branch in around or branch.startswith(f"run/{name}/"):
            raise ConfigError(
                f"run name '{name}': git has a branch {branch}, and none beside it can be called run/{name}; give the "
                "run another name"
            )


def valid_name(text: str) -> str:
    """The most similar name that `check_name` accepts, for a text that a person typed in Prefect's field."""
    name = re.sub(r"[^\w.]+", "-", text.encode("utf-8", "replace").decode())
    name = re.sub(r"\.{2,}", ".", name).encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore").strip("-.")
    return re.sub(r"\.lock$", "-lock", name) or "run"


def next_name(root: Path, name: str) -> str:
    """The name that a run's branch gets, unless an earlier run has the same result."""
    return _numbered(name, max(_branches(root, name), default=0) + 1)


def snapshot(root: Path, message: str) -> str:
    """Commits the files as they are now on top of HEAD: tracked ones, NEW ones, and new evaluation sets and queries.

    Returns the commit. What git ignores is not in it.
    """
    return commit_files(root, [*NEW, *_measured(root)], message)


def record(root: Path, name: str, message: str) -> Recorded:
    """Makes a branch of a snapshot of the checkout, unless a run of this name had the same result.

    The same result means the same files on the same commit, or on that run itself. Several runs may do this at the same
    time.
    """
    commit = snapshot(root, message)
    for tries_left in reversed(range(_TRIES)):
        branches = _branches(root, name)
        for number, tip in sorted(branches.items()):
            if _is_same(root, tip, commit):
                return Recorded(_numbered(name, number), tip, is_new=False)
        new = _numbered(name, max(branches, default=0) + 1)
        try:  # the empty string: there must be no such branch yet
            git(root, "update-ref", "--create-reflog", "-m", message, f"refs/heads/run/{new}", commit, "")
        except DataError:
            if not tries_left:
                raise
            continue
        return Recorded(new, commit, is_new=True)
    raise AssertionError


def _branches(root: Path, name: str) -> dict[int, str]:
    """The branches of this name: 1 for run/<name>, k for run/<name>-k -> commit."""
    prefix = f"refs/heads/run/{name}"
    lines = git(root, "for-each-ref", "--format=%(objectname) %(refname)", prefix, f"{prefix}-*").splitlines()
    found = {}
    for commit, _, branch in (line.partition(" ") for line in lines):
        if match := re.fullmatch(re.escape(prefix) + _SUFFIX, branch):
            found[int(match[1] or 1)] = commit
    return found


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _is_same(root: Path, tip: str, commit: str) -> bool:
    one, other = (git(root, "show", "--no-patch", "--format=%T %P", each).split(" ") for each in (tip, commit))
    return one == other or other == [one[0], tip]


def _measured(root: Path) -> list[str]:
    """The evaluation sets and the labelled queries, as far as they lie in the checkout."""
    if not (root / PARAMS_FILE).is_file():
        return []
    values = load_params(root / PARAMS_FILE).values
    found = []
    for value in (values.get("paths", {}).get("evaluation"), values.get("index", {}).get("queries")):
        path = Path(os.path.normpath(root / value)) if isinstance(value, str) else root
        if path != root and path.is_relative_to(root) and not path.is_symlink():
            found.append(f":(literal){path.relative_to(root).as_posix()}")
    return found
