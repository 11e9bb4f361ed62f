"""Live metrics of a training run, logged into an MLflow run that somebody else starts and ends.

Each row is first appended to a journal next to the run's checkpoints; a thread delivers the journal. So training never
waits, memory holds at most one request's rows however long MLflow is unavailable, and the rows that a killed process
had not delivered are delivered by the next one. Points are sent in the order of their steps, so the last step of each
series in MLflow says which points have arrived; after an unanswered request nothing else must be checked.

The journal belongs to the training run, not to the MLflow run. A run that is resumed later, into another MLflow run,
has its whole curve there, including what no report keeps (speed, cost, loader wait).
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from align.display.console import say
from align.errors import RefusedError, ServiceError
from align.services.tracking.address import address
from align.services.tracking.tracker import Tracker, metric_name

#: `step`, `time` in ms since 1970, and metrics.
JournalRow = dict[str, float]

#: Seconds before a failed delivery is retried: doubled each time, from the first number to the second.
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0
#: Seconds that the end of training waits for the last rows; fewer after a failure: the next run continues the journal.
_LAST_WAIT_S, _GRACE_S = 30.0, 2.0
#: Bytes of the journal read at a time. A row has some hundred bytes.
_PART_BYTES = 1 << 17


class Journal:
    """Rows of one training run, in the order of their steps. One thread writes, another reads.

    Args:
        path: created, or continued: rows that restarted ranks repeat are left out, and an incomplete last line of a
            killed process is removed.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._descriptor).st_size
        begin = max(0, size - _PART_BYTES)
        lines = os.pread(self._descriptor, size - begin, begin).split(b"\n")
        os.ftruncate(self._descriptor, size - len(lines[-1]))
        self.last_step = max((int(row["step"]) for row in _rows(lines[:-1])), default=-1)

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Appends a row, unless its step was written before. Raises OSError, for example for a full disk."""
        if step > self.last_step:
            row = {"step": step, "time": time.time_ns() // 1_000_000, **metrics}
            line = json.dumps(row).encode() + b"\n"
            if os.write(self._descriptor, line) != len(line):
                raise OSError(f"{self.path}: no space left")
            self.last_step = step

    def read(self, begin: int) -> tuple[list[JournalRow], int]:
        """Some rows from an offset on, and the offset after them: the same one if there is no complete line yet."""
        data = os.pread(self._descriptor, _PART_BYTES, begin)
        end = data.rfind(b"\n") + 1
        return _rows(data[:end].split(b"\n")), begin + end

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def _rows(lines: list[bytes]) -> list[JournalRow]:
    """The rows of the valid lines; after a power cut a line may hold anything."""
    rows: list[JournalRow] = []
    for line in lines:
        with suppress(ValueError):
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) and "step" in row else []
    return rows


class LiveLog:
    """A log function for `align.training.loop.Monitoring`. Picklable until the training process enters it.

    If MLflow is unavailable, delivery is retried; one line reports the outage and one its end. If MLflow refuses (the
    run was deleted, credentials are wrong), live logging stops with one warning. Training continues in either case, and
    `align register` completes the series from metrics.jsonl.

    Args:
        run_id: of the MLflow run.
        stage: prefix of every name, such as `pretrain/train/loss`, since each stage counts its steps from 1.
        journal: file of the rows.
    """

    def __init__(self, run_id: str, stage: str, journal: Path) -> None:
        self._run_id, self._stage, self._path = run_id, stage, journal
        self._delivery: _Delivery | None = None
        self._writes = True

    def __enter__(self) -> Self:
        """Starts the delivery, beginning with rows that an earlier process did not deliver."""
        try:
            self._delivery = _Delivery(self._run_id, self._stage, Journal(self._path))
        except OSError as error:
            self._stop(error)
        return self

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        """Logs a row of metrics at a step."""
        if self._delivery is not None and self._writes:
            try:
                self._delivery.put(step, metrics)
            except OSError as error:
                self._stop(error)

    def __exit__(self, kind: type[BaseException] | None, _error: object, _where: TracebackType | None) -> None:
        """Delivers the remaining rows; waits at most half a minute."""
        delivery, self._delivery = self._delivery, None
        if delivery is not None and not delivery.end(_LAST_WAIT_S if kind is None else _GRACE_S):
            say(
                f"{self._stage}: MLflow did not take the last rows in time; they stay in {self._path}, and `align "
                "register` completes the series"
            )

    def _stop(self, error: OSError) -> None:
        self._writes = False
        say(f"{self._stage}: live logging stopped, training continues: {self._path}: {error.strerror or error}")


class _Delivery:
    """The thread that delivers a journal to MLflow."""

    def __init__(self, run_id: str, stage: str, journal: Journal) -> None:
        self._run_id, self._stage, self._journal, self._address = run_id, stage, journal, address()
        self._news, self._ending, self._over = threading.Event(), threading.Event(), threading.Event()
        # A daemon: a hanging request must not keep the process alive.
        self._thread = threading.Thread(target=self._deliver, name="live metrics", daemon=True)
        self._thread.start()

    def put(self, step: int, metrics: dict[str, float]) -> None:
        """Adds a row. Raises OSError if the journal cannot be written."""
        self._journal.append(step, metrics)
        self._news.set()

    def end(self, wait_s: float) -> bool:
        """Waits until all rows are delivered; returns False if that takes longer than `wait_s` seconds."""
        self._ending.set()
        self._news.set()
        self._thread.join(wait_s)
        self._over.set()
        if self._thread.is_alive():
            return False
        self._journal.close()
        return True

    def _deliver(self) -> None:
        tracker: Tracker | None = None
        last_steps: dict[str, int] | None = None
        begin, pause_s, num_back = 0, _PAUSE_S, -1  # rows delivered since MLflow is back; -1: no outage
        while not self._over.is_set():
            ending = self._ending.is_set()  # before reading: the last row is written by then
            rows, end = self._journal.read(begin)
            if end == begin:
                if num_back >= 0:
                    say(f"{self._stage}: MLflow is back, {num_back:,} rows delivered")
                    num_back = -1
                if ending:
                    return
                self._news.wait()
                self._news.clear()
                continue
            try:
                tracker = tracker or Tracker(self._address)
                if last_steps is None:  # at the start, and after a request without an answer: its rows may have arrived
                    last_steps = tracker.last_steps(self._run_id)
                missing = self._missing(rows, last_steps)
                tracker.log_rows(self._run_id, missing, f"{self._stage}/")
            except RefusedError as error:
                say(f"{self._stage}: live logging stopped, training continues: {error}")
                return
            except ServiceError as error:
                if num_back < 0:
                    say(f"{self._stage}: training continues, its rows wait in {self._journal.path}: {error}")
                last_steps, num_back = None, max(num_back, 0)
                if self._ending.wait(pause_s):
                    self._over.wait(_PAUSE_S)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            begin, pause_s = end, _PAUSE_S
            num_back += len(missing) if num_back >= 0 else 0

    def _missing(self, rows: list[JournalRow], last_steps: dict[str, int]) -> list[JournalRow]:
        """The rows without the points that MLflow already has."""
        missing = []
        for row in rows:
            left = {
                name: value
                for name, value in row.items()
                if last_steps.get(metric_name(f"{self._stage}/{name}"), -1) < row["step"]
            }
            if left.keys() - {"step", "time"}:
                missing.append(left)
        return missing
