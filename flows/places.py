"""Where a run works: right here, or in a git worktree of its own. One run at a time in either place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from align.config import load_params
from align.errors import DataError
from flows import checkout
from flows.locks import locked

#: Inside the checkout, ignored by git: locks and worktrees.
STATE = Path(".align")


class Request(BaseModel):
    """What to run. The UI shows it as a form."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(default="demo", description="The result becomes branch run/NAME.")
    ref: str | None = Field(default=None, description="A branch, tag or commit to run; empty: HEAD of the checkout.")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description='Parameters to change, such as {"filter.min_words": 4}.'
    )
    snapshot_dirty: bool = Field(
        default=False,
        description="HEAD of a checkout with changes: run a snapshot of it, tagged dirty, instead of refusing.",
    )


@dataclass(frozen=True)
class Place:
    """A checkout to work in; `dirty` says that it is a snapshot of changes that nobody committed."""

    root: Path
    dirty: bool = False


@contextmanager
def right_here(root: Path, name: str, log: Callable[[str], None]) -> Iterator[Place]:
    """The user's checkout, as it stands."""
    with locked(root / STATE / "locks" / "checkout", f"run '{name}'", log):
        yield Place(root)


@contextmanager
def of_its_own(root: Path, request: Request, log: Callable[[str], None]) -> Iterator[Place]:
    """A worktree at the requested revision with the requested parameters.

    A second run of equal files and parameters waits for the first, and then finds every stage in DVC's cache.

    Raises:
        DataError: no such revision, or HEAD is asked for and the checkout has changes.
        ConfigError: an override names an unknown parameter.
    """
    commit, dirty = _source(root, request)
    tree = checkout.resolve(root, commit, "tree")
    key = hashlib.sha256(json.dumps([tree, request.overrides], sort_keys=True).encode()).hexdigest()[:16]
    with (
        locked(root / STATE / "locks" / key, f"run '{request.name}'", log),
        checkout.worktree(root, commit, root / STATE / "worktrees" / key, request.overrides) as path,
    ):
        log(f"working in {path}, made from {commit[:10]}")
        yield Place(path, dirty)


def _source(root: Path, request: Request) -> tuple[str, bool]:
    if request.ref not in (None, "", "HEAD"):
        return checkout.resolve(root, str(request.ref)), False
    changed = checkout.changes(root)
    if not changed:
        return checkout.resolve(root, "HEAD"), False
    if not request.snapshot_dirty:
        raise DataError(
            f"{root} has changes that are not committed ({', '.join(changed[:3])}{', …' if changed[3:] else ''}): "
            "commit them, name another ref, or ask for snapshot_dirty"
        )
    return checkout.snapshot(root, "snapshot of uncommitted changes"), True


def parse_overrides(root: Path, overrides: list[str]) -> dict[str, Any]:
    """`section.key=value` -> {section.key: value}, the value read as YAML.

    Raises:
        ConfigError: malformed, or an unknown parameter.
    """
    values = load_params(root / "params.yaml", overrides).values
    parsed: dict[str, Any] = {}
    for override in overrides:
        key = override.partition("=")[0]
        node: Any = values
        for part in key.split("."):
            node = node[part]
        parsed[key] = node
    return parsed
