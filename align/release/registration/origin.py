"""Where a model comes from: git revision, dvc.lock, policy, flow run, and the stages that DVC took from its cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from align.durable.files import sha256_file, sha256_folder
from align.formats.policy import OPTED_OUT
from align.services.git import git_if_any
from align.services.tracking.address import current_flow_run_id
from align.services.tracking.tracker import FLOW_RUN


@dataclass(frozen=True)
class Origin:
    """Tags of a run and of its model. An empty string means "not known"."""

    git_revision: str
    dvc_lock: str
    flow_run: str
    cached_stages: tuple[str, ...] = ()
    policy_digest: str = ""

    def tags(self) -> dict[str, str]:
        """What is known, as tags of the run and of a new version."""
        tags = {
            "align.git_revision": self.git_revision,
            "align.dvc_lock": self.dvc_lock,
            FLOW_RUN: self.flow_run,
            "align.policy_digest": self.policy_digest,
        }
        return {key: value for key, value in tags.items() if value}


def read_origin(revision: str | None, cached_stages: Sequence[str], policy: Path) -> Origin:
    """The origin of what was made in the working directory.

    Args:
        revision: git revision; None takes the checkout's, with `-dirty` where files differ from it.
        cached_stages: the stages that DVC took from its cache.
        policy: the folder of what people decided about the data; no digest if take-downs came after the filter.
    """
    if revision is None:
        revision = git_if_any(Path(), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or ""
    lock = Path("dvc.lock")
    digest = sha256_file(lock) if lock.is_file() else ""
    decided = sha256_folder(policy) if policy.is_dir() and _was_obeyed(policy / OPTED_OUT, lock) else ""
    return Origin(revision.strip(), digest, current_flow_run_id() or "", tuple(cached_stages), decided)


def _was_obeyed(take_downs: Path, lock: Path) -> bool:
    """Whether the data was filtered with this list: dvc.lock has the MD5 of what the filter read."""
    if not lock.is_file() or not take_downs.is_file():
        return not take_downs.is_file()
    return hashlib.md5(take_downs.read_bytes(), usedforsecurity=False).hexdigest() in lock.read_text("utf-8")
