"""Resumable state: one folder per run, keyed by what determines its result, so a changed parameter never resumes.

A checkpoint holds the whole state after a step: weights, optimiser, and the rows of metrics so far. Random numbers and
the data position are functions of the step, so they are not saved. Training waits only until the state is copied: a
thread writes the copy, and uploads it if there is an object store.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.display.console import say
from align.durable.files import fsync, replaced, to_json, write_text
from align.durable.locks import locked, tried
from align.errors import ConfigError, CorruptError, DataError, LockedError, ServiceError, TrainingError
from align.interfaces.store import Mirror

SCHEMA_VERSION = 2

BEST = "best.pt"
_ACCEPTED = "accepted.json"
_STEP = re.compile(r"step-\d{8,12}\.pt")


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        directory: created when something is written.
        keep: how many of the latest checkpoints are kept; the best one by validation is also kept, as `best.pt`.
        mirror: an object store that also keeps them, so that another machine, or one that lost its disk, can resume.
    """

    def __init__(self, directory: Path, keep: int, mirror: Mirror | None = None) -> None:
        self.directory = directory
        self._keep = keep
        self._mirror = mirror
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the run for this process until the block, or the process, ends.

        Removes what a killed process had half written, since its step may never come again.

        Raises:
            LockedError: another process trains the same run.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with tried(self.directory / "lock") as ours:
            if not ours:
                raise LockedError(
                    f"{self.directory}: another process trains this run; wait for it, or stop it, and run again"
                )
            for part in self.directory.glob(".*.part"):
                part.unlink(missing_ok=True)
            yield

    def steps(self) -> list[int]:
        """Steps of the checkpoints in the folder, ascending."""
        return sorted(int(path.stem.removeprefix("step-")) for path in self.directory.glob("step-*.pt"))

    def save(self, step: int, values: dict[str, Any], *, best: bool = False) -> None:
        """Starts to write a checkpoint and returns when the values may change again.

        One is written at a time. The oldest checkpoints beyond `keep` are removed. After one that could not be written,
        nothing more is written: see `wait`.

        Args:
            step: whole steps done.
            values: plain values and tensors.
            best: the checkpoint also replaces `best.pt`.
        """
        if self.has_failed(wait=True):
            return
        copy = _copied({"schema_version": SCHEMA_VERSION, "step": step, **values})
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing = self._writer.submit(self._write, step, copy, best)

    def has_failed(self, *, wait: bool = False) -> bool:
        """Whether the last checkpoint could not be written, as far as is known.

        Args:
            wait: until it is known.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return False
        return self._writing.exception() is not None

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk.

        Raises:
            TrainingError: it could not be written, for example to a full disk.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            try:
                writing.result()
            except OSError as error:
                raise TrainingError(
                    f"{self.directory}: a checkpoint cannot be written: {error.strerror or error}; older ones are kept"
                ) from None

    def _write(self, step: int, values: dict[str, Any], best: bool) -> None:
        path = self._path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                try:
                    torch.save(values, file)
                except RuntimeError as error:  # of torch's archive, raised while handling the file's error
                    if isinstance(error.__context__, OSError):
                        raise error.__context__ from None
                    raise
                file.flush()
                fsync(part)
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        fsync(path.parent)
        if best:
            os.link(path, part)
            os.replace(part, path.with_name(BEST))
        old_steps = self.steps()[: -self._keep]
        for old in old_steps:
            self._path(old).unlink(missing_ok=True)
        if self._mirror is not None:
            self._send(self._mirror, [path, path.with_name(BEST)] if best else [path])

    def _send(self, mirror: Mirror, paths: Sequence[Path]) -> None:
        run = self.directory.name
        try:
            for path in paths:
                mirror.put(path, f"{run}/{path.name}")
            kept = {BEST, *(self._path(step).name for step in self.steps())}
            for name in mirror.names(run):
                if name not in kept:
                    mirror.delete(f"{run}/{name}")
        except (ServiceError, DataError) as error:  # even a refusal: see `fetch`, which asked the store
            say(f"{paths[0].name}: not uploaded to the object store, training continues: {error}")

    def fetch(self) -> None:
        """Downloads the latest checkpoint of the object store, and the best one, if it is newer than the folder's."""
        if self._mirror is None:
            return
        run = self.directory.name
        names = self._mirror.names(run)
        stored = sorted(name for name in names if _STEP.fullmatch(name))
        if not stored or self._has(stored[-1]):
            return
        with locked(self.directory / "fetch.lock", "another rank", say):
            if self._has(stored[-1]):
                return
            say(f"{self.directory}: downloading {stored[-1]} from the object store")
            for name in [BEST, stored[-1]] if BEST in names else [stored[-1]]:  # the latest last: then all are here
                self._mirror.get(f"{run}/{name}", self.directory / name)

    def _has(self, name: str) -> bool:
        own = self.steps()
        return bool(own) and self._path(own[-1]).name >= name

    def accepted(self) -> list[str]:
        """Reasons given for resuming this run after changes of code, oldest first."""
        path = self.directory / _ACCEPTED
        return list(json.loads(path.read_text())) if path.exists() else []

    def adopt(self, reason: str) -> None:
        """Continues the run of the same values under other code that has the latest step.

        Raises:
            ConfigError: there is no such run, or the reason is empty.
        """
        if not reason.strip():
            raise ConfigError("--accept-code-change: say why the change does not alter the result")
        if self.steps():
            return  # a run of this code
        best = self.of_other_code()
        if best is None:
            raise ConfigError(f"{self.directory.parent}: no run of these parameters and data under other code")
        self.directory.mkdir(parents=True, exist_ok=True)
        write_text(self.directory / _ACCEPTED, json.dumps([*best.accepted(), reason.strip()]) + "\n")
        latest = best._path(best.steps()[-1])
        with replaced(self.directory / latest.name, on_disk=False) as part:
            shutil.copyfile(latest, part)
        say(f"{self.directory}: resuming from {latest}, written by other code: {reason.strip()}")

    def other_code_step(self) -> int | None:
        """The latest step of a run of the same values under other code, if this run has no checkpoint: see `adopt`."""
        other = None if self.steps() else self.of_other_code()
        return other.steps()[-1] if other else None

    def of_other_code(self) -> CheckpointFolder | None:
        """The run of the same values that came furthest under other code."""
        values, _, _ = self.directory.name.rpartition("-")
        paths = (path for path in sorted(self.directory.parent.glob(f"{values}-*")) if path != self.directory)
        begun = [other for other in (CheckpointFolder(path, self._keep) for path in paths) if other.steps()]
        return max(begun, key=lambda other: other.steps()[-1], default=None)

    def load_latest(self, device: torch.device) -> dict[str, Any] | None:
        """The newest readable checkpoint, or None if there are none. Unreadable ones are reported and skipped.

        On a CPU its tensors are mapped pages of the file, which take memory only when they are changed.

        Raises:
            CorruptError: there are checkpoints, but none is readable.
        """
        self.wait()
        steps = self.steps()
        for step in reversed(steps):
            try:
                return _read(self._path(step), device)
            except CorruptError as error:
                say(f"{error}, trying the previous one")
        if steps:
            raise CorruptError(
                f"{self.directory}: no checkpoint can be read; remove the folder to train from the start"
            )
        return None

    def load(self, step: int) -> dict[str, Any]:
        """The checkpoint of a step, on the CPU: one of the latest, or the best one.

        Raises:
            DataError: it is not kept.
            CorruptError: it is damaged.
        """
        for path in (self._path(step), self.directory / BEST):
            if path.exists() and (state := _read(path, torch.device("cpu")))["step"] == step:
                return state
        raise DataError(f"{self.directory}: no checkpoint of step {step} is kept; the latest are {self.steps()}")

    def _path(self, step: int) -> Path:
        return self.directory / f"step-{step:08d}.pt"


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    """A checkpoint. Raises CorruptError if it is damaged, or of another version."""
    try:
        _require_whole(path)
        state = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001 - a foreign archive may raise anything in zipfile's and torch's readers
        raise CorruptError(f"{path}: is damaged") from None
    if isinstance(state, dict) and state.get("schema_version") == SCHEMA_VERSION:
        return state
    raise CorruptError(f"{path}: written by another version")


def _require_whole(path: Path) -> None:
    """Raises where a checkpoint, which is a zip archive without compression, does not pass its checksums."""
    with zipfile.ZipFile(path) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()) or archive.testzip():
            raise zipfile.BadZipFile


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
    """Key of what determines a run's result: 16 hex digits of its values, and 8 of the code that computes it."""
    return f"{hashlib.sha256(to_json(values).encode()).hexdigest()[:16]}-{code[:8]}"
