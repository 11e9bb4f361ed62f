"""Measures how much the source has changed since a model's data was made from it, without downloading anything.

Two sizes are compared: what `dvc.lock` of the model's commit says of `paths.archive`, and what is there now. For a
pinned list (`align pin`) each file's stamp is compared. For other files and folders only their number and bytes are:
`dvc repro`, which reads a file, sees that it was replaced by one of the same size; this does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from align.config import load_params
from align.config.params import PARAMS_FILE, parse_yaml
from align.errors import ConfigError, DataError
from align.services.files import pinned_lists
from align.services.git import LOCK_FILE, git
from flows.tasks.child_process import run_supervised
from flows.tasks.run_context import RunContext, child_environment


@dataclass(frozen=True)
class SourceChange:
    """What became of the source.

    Attributes:
        share: of its bytes, 0 to 1: for a pinned list those in files that are new, gone or different; else by the
            totals, or by the number of files if that share is larger.
        text: one line for people.
        pins: the list of files as they are now, if `paths.archive` is such a list and it differs.
    """

    share: float
    text: str
    pins: str | None = None


def look(root: Path, revision: str, log: Callable[[str], None]) -> SourceChange:
    """Compares the source of the checkout with that of the commit of a run (its branch), which has dvc.lock.

    Raises:
        ConfigError: the source is an address, and DVC records nothing about it.
        DataError: the commit, its dvc.lock or the source is missing.
        CommandError: the files of the list cannot be looked up.
    """
    now = _archive(load_params(root / PARAMS_FILE).values)
    then = _archive(_read(root, revision, PARAMS_FILE))
    if now != then:
        return SourceChange(1.0, f"the source is another one: {now}, not {then}")
    if "://" in now:
        raise ConfigError(
            f"paths.archive = {now} is an address, and nothing is recorded about it: "
            "list its files with `align pin`, and name the list"
        )
    path = root / now
    if path.is_file():
        with path.open("rb") as stream:
            source = pinned_lists.source_of(stream)
        if source is not None:
            return _of_pins(root, now, source, git(root, "show", f"{revision}:./{Path(now).as_posix()}"), log)
    return _of_totals(path, _recorded(root, revision, now))


def _of_totals(path: Path, recorded: tuple[int, int]) -> SourceChange:
    if not path.exists():
        raise DataError(f"paths.archive = {path}: no such file or folder")
    files = [Path(folder) / name for folder, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    num_bytes = sum(file.stat().st_size for file in files)
    changes = [_share(recorded[0], num_bytes), _share(recorded[1], len(files))]
    text = f"{recorded[1]:,} files and {recorded[0]:,} bytes then, {len(files):,} files and {num_bytes:,} bytes now"
    return SourceChange(max(changes), text)


def _of_pins(root: Path, location: str, source: str, old: str, log: Callable[[str], None]) -> SourceChange:
    path = root / location
    fresh = path.with_name(f".{path.stem}-now{path.suffix}")  # beside it, since its lines may be relative
    run = RunContext(root=root, checkout=root)
    try:
        run_supervised(["align", "pin", source, "--out", str(fresh)], cwd=root, env=child_environment(run), log=log)
        new = fresh.read_text("utf-8")
    finally:
        fresh.unlink(missing_ok=True)
    then, now = (_stamps(text, location) for text in (old, new))
    moved = {file for file in then.keys() | now.keys() if then.get(file) != now.get(file)}
    total = max(sum(map(_bytes, then.values())), sum(map(_bytes, now.values())), 1)
    changed = sum(max(_bytes(then.get(file)), _bytes(now.get(file))) for file in moved)
    text = (
        f"of {len(then):,} files, {len(then.keys() - now.keys()):,} are gone and "
        f"{len(moved & then.keys() & now.keys()):,} are different; {len(now.keys() - then.keys()):,} are new"
    )
    # the list on disk may be older or newer than the champion's: the run takes the files as they are now
    differs = _stamps(path.read_text("utf-8"), location) != now
    return SourceChange(min(1.0, changed / total), text, new if differs else None)


def _stamps(text: str, location: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {pin.line: pin.stamp for pin in pinned_lists.pins_of(lines, location)}


def _bytes(stamp: str | None) -> int:
    """The size that a stamp begins with; 0 if a server does not tell it."""
    first = (stamp or "").partition(" ")[0]
    return int(first) if first.isdecimal() else 0


def _share(then: int, now: int) -> float:
    return abs(now - then) / max(then, now, 1)


def _recorded(root: Path, revision: str, location: str) -> tuple[int, int]:
    """Bytes and number of files of the source, as dvc.lock of the commit has them."""
    stages = _read(root, revision, LOCK_FILE).get("stages", {})
    for dep in stages.get("ingest", {}).get("deps", []):
        if os.path.normpath(str(dep.get("path"))) == os.path.normpath(location):
            return int(dep.get("size", 0)), int(dep.get("nfiles", 1))
    raise DataError(f"{LOCK_FILE} of {revision} does not know {location}, from which its data should come")


def _read(root: Path, revision: str, file: str) -> dict[str, Any]:
    try:
        values = parse_yaml(git(root, "show", f"{revision}:./{file}"))
    except YAMLError:
        values = None
    if not isinstance(values, dict):
        raise DataError(f"{file} of {revision} is no YAML mapping")
    return values


def _archive(values: dict[str, Any]) -> str:
    return str(values.get("paths", {}).get("archive"))
