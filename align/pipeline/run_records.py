"""Which runs are in progress: each holds a lock of the kernel from start to end, with a record beside it.

.align/runs/RUN.lock   locked (flock) as long as the run's process lives; the kernel frees it when the process ends
.align/runs/RUN.json   whose it is; only who holds the lock writes or removes it

So a record whose lock is free is that of a dead run. Nothing else tells: a process id may belong to another process
later. A process that takes the lock checks that the file is still there: between creating and locking it, somebody may
have removed it as a dead run's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from align.durable.files import to_json, write_text
from align.durable.locks import take
from align.errors import FormatError

FOLDER = Path(".align/runs")
#: The flow whose runs make models.
PIPELINE = "pipeline"
#: Where a stage says how far it is, in the folder that its run works in.
PROGRESS = Path(".align/progress.json")
_VERSION = 2
#: A process that only looks at a lock holds it for less time.
_PATIENCE_S = 0.5

#: `live`: its process works. `dead`: it ended without removing its record. `elsewhere`: it is on another machine that
#: shares this folder, whose locks may not be seen here. `copied`: this folder is a copy, and the run belongs to the
#: original.
Liveness = Literal["live", "dead", "elsewhere", "copied"]


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run while it works. It holds no password.

    Attributes:
        name: of the run.
        flow_run: its id in Prefect.
        attempt: from 1; Prefect starts a run of the same id again if somebody asks for it.
        prefect: address of Prefect's server; empty: the checkout's own, running or not.
        mlflow: address of MLflow; empty: the checkout's own.
        root: the checkout.
        worktree: where it works; empty: in the checkout.
        kept: where its reports are kept if it fails; empty: they stay where they are.
        flow: `pipeline`, or another flow of this checkout, such as `promote`, which does not run the pipeline.
        started_at: seconds since 1970.
        host: the machine's name.
        boot: the kernel's id since it started, the same in all containers of a machine; may be empty.
        pid: of the process, for people.
        inode: of the lock, which a copy does not have.
    """

    name: str
    flow_run: str
    attempt: int
    prefect: str
    mlflow: str
    root: str
    worktree: str = ""
    kept: str = ""
    flow: str = PIPELINE
    started_at: float = dataclasses.field(default_factory=time.time)
    host: str = dataclasses.field(default_factory=platform.node)
    boot: str = dataclasses.field(default_factory=lambda: _boot())
    pid: int = dataclasses.field(default_factory=os.getpid)
    inode: int = 0

    @property
    def attempt_id(self) -> str:
        """The name of this attempt in MLflow's tags and in this folder."""
        return f"{self.flow_run}-{self.attempt}"

    @property
    def title(self) -> str:
        """What people call it."""
        return f"run '{self.name}'" if self.flow == PIPELINE else f"flow {self.flow}"


class Held:
    """A lock that this process holds.

    Attributes:
        record: the record beside it; None if there is none.
        is_kept: a run that ends leaves its record, since something is left to do.
    """

    def __init__(self, lock: Path, file: TextIO, record: RunRecord | None) -> None:
        self._lock, self._file, self.record = lock, file, record
        self.is_kept = False

    def write(self, record: RunRecord) -> None:
        """Replaces the record, whole or not at all."""
        self.record = dataclasses.replace(record, inode=os.fstat(self._file.fileno()).st_ino)
        write_text(_record_file(self._lock), to_json({"schema_version": _VERSION, **dataclasses.asdict(self.record)}))

    def remove(self) -> None:
        """Removes record and lock: the run has ended, and everything about it is recorded."""
        _record_file(self._lock).unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)

    def close(self) -> None:
        """Frees the lock, as the end of the process does."""
        self._file.close()


def hold(record: RunRecord) -> Held:
    """Takes the lock of a run that begins; this process holds it until it ends, or closes it.

    Waits for a process that looks at, or repairs, the same run.
    """
    lock = Path(record.root) / FOLDER / f"{record.attempt_id}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = lock.open("a", encoding="utf-8")
        take(file, patience_s=None)
        if _is_at(file, lock):
            held = Held(lock, file, None)
            held.write(record)
            return held
        file.close()


def locks(root: Path) -> list[Path]:
    """The locks of all runs of a checkout, live or not, the oldest first."""
    times = {}
    for lock in (root / FOLDER).glob("*.lock"):
        with suppress(FileNotFoundError):
            times[lock] = lock.stat().st_mtime_ns
    return sorted(times, key=lambda lock: (times[lock], lock.name))


@contextmanager
def claimed(lock: Path, patience_s: float = _PATIENCE_S) -> Iterator[Held | None]:
    """Holds the lock of a run whose process has ended; yields None if the process lives, or the record is gone.

    A lock without a record is yielded with `record` None: its process died before it wrote one.

    Args:
        lock: one of `locks`.
        patience_s: how long to wait for a process that only looks at it.

    Raises:
        FormatError: the record is of another version.
    """
    try:
        file = lock.open("r", encoding="utf-8")
    except FileNotFoundError:
        yield None
        return
    with file:
        if not take(file, patience_s=patience_s) or not _is_at(file, lock):
            yield None
            return
        yield Held(lock, file, _read(lock))


def look(lock: Path) -> tuple[Liveness, RunRecord] | None:
    """Whether a run is in progress, without delaying anybody; None if there is no record (any more).

    Raises:
        FormatError: the record is of another version.
    """
    with suppress(FileNotFoundError), lock.open("r", encoding="utf-8") as file:
        is_free = take(file, shared=True)
        record = _read(lock)
        if record is not None:
            return (liveness(record, lock) if is_free else "live"), record
    return None


def liveness(record: RunRecord, lock: Path) -> Liveness:
    """The state of a run whose lock is free."""
    is_its_machine = record.host == platform.node() or (record.boot and record.boot == _boot())
    if record.inode == lock.stat().st_ino:
        return "dead" if is_its_machine else "elsewhere"
    is_its_place = record.host == platform.node() and Path(record.root) == lock.parents[2].absolute()
    return "dead" if is_its_place else "copied"


def _read(lock: Path) -> RunRecord | None:
    path = _record_file(lock)
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        values = None
    names = {field.name for field in dataclasses.fields(RunRecord)}
    if not isinstance(values, dict) or values.pop("schema_version", None) != _VERSION or set(values) != names:
        raise FormatError(f"{path}: no record of this version; if that run has ended, remove it and {lock.name}")
    return RunRecord(**values)


def _record_file(lock: Path) -> Path:
    return lock.with_suffix(".json")


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(file.fileno())
    return (found.st_ino, found.st_dev) == (mine.st_ino, mine.st_dev)


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return ""
