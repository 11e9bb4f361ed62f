"""Resumable state: one folder a run, keyed by what determines its result, so that a changed parameter never resumes.

A checkpoint holds the whole state after a step: weights, optimiser, and the metric rows so far. Random numbers and the
data position are functions of the step, so they need no saving. Training waits for a copy of the state and no longer:
a thread writes it, and brings it to the object store where there is one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.console import say
from align.errors import ConfigError, CorruptError, DataError, LockedError, ServiceError, TrainingError
from align.files import fsync, to_json, write_text
from align.protocols.store import Mirror

SCHEMA_VERSION = 2

BEST = "best.pt"
#: Rows of live metrics, which whoever logs them keeps here, so that they go on with the run.
JOURNAL = "live.jsonl"
_ACCEPTED = "accepted.json"


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        directory: created when something is written.
        keep: how many of the latest checkpoints stay; the best one by validation stays besides, as `best.pt`.
        mirror: an object store that has them, too: another machine, or one whose disk is gone, goes on from there.
    """

    def __init__(self, directory: Path, keep: int, mirror: Mirror | None = None) -> None:
        self.directory = directory
        self._keep = keep
        self._mirror = mirror
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

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

    def save(self, step: int, values: dict[str, Any], *, best: bool = False) -> None:
        """Begins to write a checkpoint, and returns when its values may change again. One is written at a time.

        The oldest beyond `keep` are removed.

        Args:
            step: whole steps done.
            values: plain values and tensors.
            best: it is also kept as `best.pt`, in place of an earlier one.

        Raises:
            TrainingError: the one before could not be written, as for a full disk.
        """
        self.wait()
        copy = _copied({"schema_version": SCHEMA_VERSION, "step": step, **values})
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing = self._writer.submit(self._write, step, copy, best)

    def wait(self) -> None:
        """Returns when what was saved is on disk. Raises as `save`."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.result()
            except OSError as error:
                raise TrainingError(
                    f"{self.directory}: a checkpoint cannot be written: {error.strerror or error}; earlier ones stay"
                ) from None

    def _write(self, step: int, values: dict[str, Any], best: bool) -> None:
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.part")
        try:
            with beside.open("wb") as file:
                try:
                    torch.save(values, file)
                except RuntimeError as error:  # of torch's archive, raised over what the file said
                    if isinstance(error.__context__, OSError):
                        raise error.__context__ from None
                    raise
            fsync(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        fsync(path.parent)
        if best:
            os.link(path, beside)
            os.replace(beside, path.with_name(BEST))
        gone = self.steps()[: -self._keep]
        for old in gone:
            self._path(old).unlink(missing_ok=True)
        if self._mirror is not None:
            self._send(self._mirror, path, gone)

    def _send(self, mirror: Mirror, path: Path, gone: list[int]) -> None:
        run = self.directory.name
        try:
            mirror.put(path, f"{run}/{path.name}")
            kept = {self._path(step).name for step in self.steps()}
            for name in mirror.names(run):
                if name not in kept:
                    mirror.delete(f"{run}/{name}")
        except (ServiceError, DataError) as error:  # refused, too: it was not when the run began, see `fetch`
            say(f"{path.name}: not in the object store, training goes on: {error}")

    def fetch(self) -> None:
        """Brings the latest checkpoint from the object store, where it is newer than those here."""
        if self._mirror is None:
            return
        run = self.directory.name
        there = sorted(name for name in self._mirror.names(run) if name.startswith("step-"))
        if there and (not (here := self.steps()) or there[-1] > self._path(here[-1]).name):
            say(f"{self.directory}: bringing {there[-1]} from the object store")
            self.directory.mkdir(parents=True, exist_ok=True)
            self._mirror.get(f"{run}/{there[-1]}", self.directory / there[-1])

    def accepted(self) -> list[str]:
        """Reasons for which this run went on over a change of code, oldest first."""
        path = self.directory / _ACCEPTED
        return list(json.loads(path.read_text())) if path.exists() else []

    def adopt(self, reason: str) -> None:
        """Goes on from the run of the same values under other code that came farthest.

        Raises:
            ConfigError: there is no such run, or no reason is given.
        """
        if not reason.strip():
            raise ConfigError("--accept-code-change: say why the change does not alter the result")
        if self.steps():
            return  # this code's own
        values, _, _ = self.directory.name.rpartition("-")
        others = [
            CheckpointFolder(path, self._keep)
            for path in sorted(self.directory.parent.glob(f"{values}-*"))
            if path != self.directory
        ]
        best = max(others, key=lambda other: max(other.steps(), default=-1), default=None)
        if best is None or not best.steps():
            raise ConfigError(f"{self.directory.parent}: no run of these parameters and data under other code")
        self.directory.mkdir(parents=True, exist_ok=True)
        write_text(self.directory / _ACCEPTED, json.dumps([*best.accepted(), reason.strip()]) + "\n")
        latest = best._path(best.steps()[-1])
        for path in (best.directory / JOURNAL, latest):  # the checkpoint last: with it the run is this code's own
            if path.exists():
                part = self.directory / ".adopted.part"
                shutil.copyfile(path, part)
                os.replace(part, self.directory / path.name)
        say(f"{self.directory}: going on from {latest}, made by other code: {reason.strip()}")

    def load_latest(self, device: torch.device) -> dict[str, Any] | None:
        """The newest checkpoint that reads; an unreadable one is reported and passed over. None if there is none.

        Raises:
            CorruptError: there are checkpoints, but none reads.
        """
        self.wait()
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


def _copied(value: Any) -> Any:
    """The same values, with every tensor copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


def run_key(values: dict[str, Any], code: str) -> str:
    """What determines a run's result: 16 hex digits of its values, and 8 of the digest of the code that computes it."""
    return f"{hashlib.sha256(to_json(values).encode()).hexdigest()[:16]}-{code[:8]}"
