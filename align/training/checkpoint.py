"""Resumable state: one folder a run, keyed by a hash of what determines its result: a changed parameter never resumes.

A checkpoint holds the whole state after a step: weights, optimiser, and the metric rows so far. Random numbers and the
data position are functions of the step, so they need no saving.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from align.errors import CorruptError, LockedError
from align.stage import say, to_json, write_bytes

SCHEMA_VERSION = 2


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        directory: created when something is written.
        keep: how many of the latest checkpoints stay.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self.directory = directory
        self._keep = keep

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process until the block ends, or the process does.

        Raises:
            LockedError: another process trains this very run.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(
                    f"{self.directory}: another process trains this run; wait for it, or stop it, and run again"
                ) from None
            yield
        finally:
            os.close(descriptor)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that lie here, ascending."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.directory.glob("step-*.pt"))

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes a checkpoint atomically and removes the oldest beyond `keep`."""
        buffer = io.BytesIO()
        torch.save({"schema_version": SCHEMA_VERSION, "step": step, **state}, buffer)
        write_bytes(self._path(step), buffer.getvalue())
        for old in self.steps()[: -self._keep]:
            self._path(old).unlink(missing_ok=True)

    def load_latest(self, device: torch.device) -> dict[str, Any] | None:
        """The newest checkpoint that reads; an unreadable one is reported and passed over. None if there is none.

        Raises:
            CorruptError: there are checkpoints, but none reads.
        """
        steps = self.steps()
        for step in reversed(steps):
            if not _whole(self._path(step)):
                say(f"{self._path(step)}: is damaged, trying the one before")
                continue
            state = torch.load(self._path(step), map_location=device, weights_only=True)
            if isinstance(state, dict) and state.get("schema_version") == SCHEMA_VERSION:
                return state
            say(f"{self._path(step)}: written by another version, trying the one before")
        if steps:
            raise CorruptError(f"{self.directory}: no checkpoint reads; remove the folder to train from the start")
        return None

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}.pt"


def _whole(path: Path) -> bool:
    """Whether a checkpoint, which is a zip archive, has all its bytes as they were written."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def run_key(values: dict[str, Any], code: list[Path]) -> str:
    """16 hex digits over everything that determines a run's result: its values and the source files that compute it."""
    digest = hashlib.sha256(to_json(values).encode("utf-8"))
    for path in sorted(code):
        digest.update(path.name.encode("utf-8") + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
