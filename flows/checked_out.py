"""Stages that DVC's cache has, checked out by one call of DVC: `dvc repro` of each takes two seconds a stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align.config.params import parse_yaml
from align.services.dvc.repository import DvcError, locked_repository
from align.services.git import LOCK_FILE
from flows.run_context import RunContext
from flows.stage_states import read_status, status_of


def check_out(run: RunContext, locks: dict[str, dict[str, Any]], log: Callable[[str], None]) -> dict[str, Any]:
    """Writes what DVC's run cache says of stages into dvc.lock, and checks out their outs.

    Nothing depends on it: DVC's status, which is returned, compares this dvc.lock with everything, as after any run,
    and a stage that it does not find unchanged is run as before.

    Args:
        run: it works in a worktree of its own.
        locks: of `flows.stage_states.States`.
        log: for a line if it fails.

    Returns:
        As `flows.stage_states.read_status`.
    """
    file = run.root / LOCK_FILE
    before = file.read_bytes() if file.is_file() else None
    values = (parse_yaml(before.decode()) if before else None) or {}
    try:
        _write(file, locks)
        with locked_repository(run.root, "checkout") as repo:
            repo.checkout(allow_missing=True)  # of all: named, each stage would take a second
            others = values.get("stages")
            if not others:
                return status_of(repo)
            _write(file, {**others, **locks})
        return read_status(run.root)
    except DvcError as error:
        log(f"{error}; each stage is taken from the cache by itself")
        file.unlink() if before is None else file.write_bytes(before)
        return read_status(run.root)


def _write(file: Path, stages: Mapping[str, Any]) -> None:
    """As DVC does, to the byte: equal results are one branch."""
    yaml = YAML()
    yaml.default_flow_style = False
    with file.open("w", encoding="utf-8") as stream:
        yaml.dump({"schema": "2.0", "stages": dict(stages)}, stream)
