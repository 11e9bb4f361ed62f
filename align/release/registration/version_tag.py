"""A tag in git keeps what a registered version was made from: `align/MODEL/vN`.

The tag's commit has the code, the parameters and dvc.lock. Branches of runs may then go, and `dvc gc --all-tags` leaves
the data, the model and the reports of the version in DVC's cache.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from align.services.git import LOCK_FILE, commit_files, git, git_if_any
from align.services.tracking.registry import Version


def keep_in_git(root: Path, version: Version, revision: str, lock: str) -> str | None:
    """Tags the commit of a version, unless that was done before; returns the name of the tag.

    Where that commit has no dvc.lock, as after `dvc repro` by hand, one on top of it gets the files of the checkout. No
    tag is ever moved: a version of the same number in another registry gets `align/MODEL/vN-2`.

    Args:
        root: what the version was made in.
        version: of the registry.
        revision: of the code; it may end in `-dirty`.
        lock: the digest of dvc.lock, as the tags of a version have it.

    Returns:
        None if there is no repository, or no commit to tag.

    Raises:
        DataError: git refuses.
    """
    if (commit := _id(root, f"{revision.removesuffix('-dirty') or 'HEAD'}^{{commit}}")) is None:
        return None
    made = None if revision.endswith("-dirty") else _id(root, f"{commit}:./{LOCK_FILE}")
    is_uncommitted = made is None and (root / LOCK_FILE).is_file()
    if is_uncommitted:
        made = git(root, "hash-object", LOCK_FILE)
    base = re.sub(r"[^\w-]+", "-", version.name)
    for number in itertools.count(1):
        name = f"align/{base}/v{version.number}" + (f"-{number}" if number > 1 else "")
        tagged = _id(root, f"refs/tags/{name}^{{commit}}")
        if tagged is None:
            break
        if _id(root, f"{tagged}:./{LOCK_FILE}") == made or version.tags.get("align.dvc_lock", "") != lock:
            return name
    if is_uncommitted:
        commit = commit_files(root, [LOCK_FILE], f"what {version.name} version {version.number} was made from")
    git(root, "update-ref", f"refs/tags/{name}", commit, "")
    return name


def _id(root: Path, name: str) -> str | None:
    """The hash of a git object; None if there is none of this name, or no repository."""
    found = git_if_any(root, "rev-parse", "--verify", "--quiet", name)
    return found.strip() if found else None
