"""Reads dvc.lock files and DVC's run cache: which stage made which version of an out, from which dependencies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ruamel.yaml.error import YAMLError

from align.config.params import parse_yaml
from align.services.git import LOCK_FILE, git_if_any

CHECKOUT, RUN_CACHE = "checkout", "run cache"


@dataclass(frozen=True)
class StageRun:
    """One run of a stage.

    Attributes:
        name: of the stage; empty in the run cache, which does not keep it.
        deps: path -> md5; the md5 of a folder ends in `.dir`.
        outs: the same for what it wrote.
        where: who recorded it: a branch or commit, `checkout`, or `run cache`.
    """

    name: str
    deps: Mapping[str, str]
    outs: Mapping[str, str]
    where: str


def parse_runs(text: str, where: str) -> Iterator[StageRun]:
    """The stages of a dvc.lock, or the one stage of a file of the run cache; none if it is not valid YAML."""
    for name, deps, outs in _parsed(text):
        yield StageRun(name, deps, outs, where)


@lru_cache(maxsize=1024)  # one command looks at the same text more than once, and a dvc.lock takes a second
def _parsed(text: str) -> tuple[tuple[str, Mapping[str, str], Mapping[str, str]], ...]:
    """(name, deps, outs) of each stage."""
    try:
        values = parse_yaml(text)
    except YAMLError:
        return ()
    if not isinstance(values, dict):
        return ()
    stages = []
    for name, stage in (values.get("stages") or ({"": values} if "cmd" in values else {})).items():
        deps, outs = (
            {item["path"]: item["md5"] for item in stage.get(kind, ()) if "md5" in item} for kind in ("deps", "outs")
        )
        stages.append((name, deps, outs))
    return tuple(stages)


def recorded_runs(root: Path, cache: Path | None) -> list[StageRun]:
    """Every run that the checkout, git or the run cache has recorded; equal ones once, in that order of preference.

    Args:
        root: the checkout.
        cache: DVC's cache, or None.
    """
    runs: dict[tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]], StageRun] = {}
    for text, where in _texts(root, cache):
        for run in parse_runs(text, where):
            runs.setdefault((frozenset(run.deps.items()), frozenset(run.outs.items())), run)
    return list(runs.values())


def _texts(root: Path, cache: Path | None) -> Iterator[tuple[str, str]]:
    """(text of a lock file, where it is from)."""
    lock = root / LOCK_FILE
    if lock.is_file():
        yield lock.read_text("utf-8"), CHECKOUT
    branches = (git_if_any(root, "for-each-ref", "--format=%(objectname) %(refname:short)") or "").splitlines()
    names = dict(line.split(" ", 1) for line in reversed(branches))
    commits = (git_if_any(root, "log", "--all", "--full-history", "--format=%H", "--", LOCK_FILE) or "").splitlines()
    for commit in commits:
        text = git_if_any(root, "show", f"{commit}:{LOCK_FILE}")
        if text is not None:  # None: the commit removed it
            yield text, names.get(commit, commit[:10])
    if cache is not None:
        for path in sorted((cache / "runs").glob("*/*/*")):
            yield path.read_text("utf-8"), RUN_CACHE
