"""Which runs are in progress: each holds a lock of the kernel (flock) on a file of its own, from start to end.

.align/runs/FLOW_RUN.json   what is known of the run. The kernel frees the lock when the run's process ends; the run
                            removes the file when all about its end is recorded

So a file whose lock is free is that of a dead run. Process ids do not tell: they are used again, and containers number
their own.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from align.durable.files import to_json
from align.durable.locks import take
from align.errors import FormatError

FOLDER = Path(".align/runs")
#: The flow whose runs make models.
PIPELINE = "pipeline"
#: Where a stage says how far it is, in the folder that its run works in.
PROGRESS = Path(".align/progress.json")

#: `live`: its process works. `dead`: it ended without removing its file. `elsewhere`: it is on another machine that
#: shares this folder, whose locks may not be seen here.
Liveness = Literal["live", "dead", "elsewhere"]


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run while it works. It holds no password.

    Attributes:
        name: of the run.
        flow_run: its id in Prefect.
        flow: `pipeline`, or another flow of this checkout, such as `promote`, which does not run the pipeline.
        worktree: where it works; empty: in the checkout.
        mlflow_run: its run in MLflow; empty: none is open.
        prefect: the address of Prefect's server; empty: the checkout's own, running or not.
        started_at: seconds since 1970.
        host: the machine's name.
    """

    name: str
    flow_run: str
    flow: str = PIPELINE
    worktree: str = ""
    mlflow_run: str = ""
    prefect: str = ""
    started_at: float = field(default_factory=time.time)
    host: str = field(default_factory=platform.node)

    @property
    def title(self) -> str:
        """What people call it."""
        return f"run '{self.name}'" if self.flow == PIPELINE else f"flow {self.flow}"


class Held:
    """The file of a run, whose lock this process holds.

    Attributes:
        record: its content.
        is_kept: a run that ends leaves its file, since something is left to do.
    """

    def __init__(self, path: Path, file: TextIO, record: RunRecord) -> None:
        self._path, self._file, self.record = path, file, record
        self.is_kept = False

    def write(self, **values: Any) -> None:
        """Changes some values. One write, never of fewer bytes: who only looks sees a whole record."""
        self.record = replace(self.record, **values)
        text = to_json(asdict(self.record)).encode()
        os.pwrite(self._file.fileno(), text.ljust(os.fstat(self._file.fileno()).st_size), 0)

    def remove(self) -> None:
        """The run has ended, and everything about it is recorded."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def hold(root: Path, record: RunRecord) -> Held:
    """Records a run that begins; this process holds its lock until it ends. Waits for an earlier process of it."""
    path = root / FOLDER / f"{record.flow_run}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
        take(file, patience_s=None)
        if _is_at(file, path):
            break
        file.close()  # the process that had it has removed it
    held = Held(path, file, record)
    held.write()
    return held


def files(root: Path) -> list[Path]:
    """The files of all runs of a checkout, live or not, the oldest first."""
    times = {}
    for path in (root / FOLDER).glob("*.json"):
        with suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime_ns
    return sorted(times, key=lambda path: (times[path], path.name))


@contextmanager
def claimed(path: Path) -> Iterator[Held | None]:
    """Holds the file of a run of this machine whose process has ended; yields None if there is no such run.

    Raises:
        FormatError: it is no record of this version.
    """
    try:
        file = path.open("r+", encoding="utf-8")
    except FileNotFoundError:
        yield None
        return
    with file:
        if not take(file) or not _is_at(file, path):
            yield None
            return
        record = _read(path, file)
        if record is None:
            path.unlink()
        yield Held(path, file, record) if record and record.host == platform.node() else None


def look(path: Path) -> tuple[Liveness, RunRecord] | None:
    """Whether a run is in progress, without delaying anybody; None if its file is gone.

    Raises:
        FormatError: it is no record of this version.
    """
    with suppress(FileNotFoundError), path.open("r", encoding="utf-8") as file:
        is_free = take(file, shared=True)
        record = _read(path, file)
        if record is not None:
            return ("live" if not is_free else "dead" if record.host == platform.node() else "elsewhere"), record
    return None


def _read(path: Path, file: TextIO) -> RunRecord | None:
    """None: its process has written nothing yet, and may have died before it did."""
    text = file.read()
    if not text:
        return None
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(RunRecord)}:
        raise FormatError(f"{path}: no record of a run of this version; if that run has ended, remove it")
    return RunRecord(**values)


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(file.fileno())
    return (found.st_ino, found.st_dev) == (mine.st_ino, mine.st_dev)
