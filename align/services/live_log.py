"""Metrics of a training run as it goes, into an MLflow run that somebody else began and will end.

A row is first a line of a journal beside the run's checkpoints; a thread delivers the journal from there. So training
waits for nobody, memory holds no more than one request's rows however long MLflow is away, and what a killed process
had not delivered is delivered by the one that takes its place. Points go out in the order of their steps, so each
series has arrived up to its last step there and no further: that is all that has to be asked after a doubt.

The journal is the training run's, not MLflow's: one that is gone on with later, into another MLflow run, has its whole
curve there, also what no report keeps (speed, cost, loader wait).
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

from align.console import say
from align.errors import RefusedError, ServiceError
from align.services.tracking import Tracker, metric_name

#: `step`, `time` in ms since 1970, and metrics.
Row = dict[str, float]

#: Seconds until MLflow is asked again: doubled each time, from the first number to the second.
_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0
#: Seconds that the end of training waits for the last rows; and one that failed, whose journal is gone on with.
_LAST_WAIT_S, _GRACE_S = 30.0, 2.0
#: Of the journal, read at a time. A row is some hundred bytes.
_PART_BYTES = 1 << 17


class Journal:
    """Rows of one training run, in the order of their steps. One thread writes, another reads.

    Args:
        path: begun, or gone on with: what ranks that died and started anew repeat is left out, and half a line, the
            last thing that a killed process did, is taken away.

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
        """Writes a row, unless that step was written before. Raises OSError, as for a full disk."""
        if step > self.last_step:
            row = {"step": step, "time": time.time_ns() // 1_000_000, **metrics}
            line = json.dumps(row).encode() + b"\n"
            if os.write(self._descriptor, line) != len(line):
                raise OSError(f"{self.path}: no space left")
            self.last_step = step

    def read(self, begin: int) -> tuple[list[Row], int]:
        """Some rows from an offset on, and the offset behind them, the same one where there is no whole line yet."""
        data = os.pread(self._descriptor, _PART_BYTES, begin)
        end = data.rfind(b"\n") + 1
        return _rows(data[:end].split(b"\n")), begin + end

    def close(self) -> None:
        """Neither writes nor reads any more."""
        os.close(self._descriptor)


def _rows(lines: list[bytes]) -> list[Row]:
    """What can be read of them: a power cut may leave anything."""
    found = []
    for line in lines:
        with suppress(ValueError):
            row = json.loads(line)
            found += [row] if isinstance(row, dict) and "step" in row else []
    return found


class LiveLog:
    """A log function for `align.training.run.Plan`. Picklable until entered, by the process that trains.

    Where MLflow is away, it is asked again and again: that is said once, and once more when it is back. Where it
    refuses (the run was deleted, credentials are wrong), live logging stops with one warning. Training goes on in any
    case, and `align register` completes the series from metrics.jsonl.

    Args:
        run_id: of the MLflow run.
        stage: goes before every name, such as `pretrain/train/loss`, since stages count their steps anew.
        journal: file of the rows.
    """

    def __init__(self, run_id: str, stage: str, journal: Path) -> None:
        self._run_id, self._stage, self._path = run_id, stage, journal
        self._delivery: _Delivery | None = None
        self._writes = True

    def __enter__(self) -> Self:
        """Begins to deliver, with what an earlier process left."""
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
        """Delivers what is left, for half a minute at most."""
        delivery, self._delivery = self._delivery, None
        if delivery is not None and not delivery.end(_LAST_WAIT_S if kind is None else _GRACE_S):
            say(
                f"{self._stage}: MLflow did not take the last rows in time; they stay in {self._path}, and `align "
                "register` completes the series"
            )

    def _stop(self, error: OSError) -> None:
        self._writes = False
        say(f"{self._stage}: live logging stopped, training goes on: {self._path}: {error.strerror or error}")


class _Delivery:
    """The thread that brings a journal to MLflow."""

    def __init__(self, run_id: str, stage: str, journal: Journal) -> None:
        self._run_id, self._stage, self._journal = run_id, stage, journal
        self._news, self._ending, self._over = threading.Event(), threading.Event(), threading.Event()
        # A daemon: a request that hangs must not keep the process.
        self._thread = threading.Thread(target=self._deliver, name="live metrics", daemon=True)
        self._thread.start()

    def put(self, step: int, metrics: dict[str, float]) -> None:
        """Hands over a row. Raises OSError where the journal cannot be written."""
        self._journal.append(step, metrics)
        self._news.set()

    def end(self, wait_s: float) -> bool:
        """Waits until all is delivered; False where it was not within so many seconds."""
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
        begin, pause_s, num_back = 0, _PAUSE_S, -1  # rows delivered since MLflow is back; -1: it was not away
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
                tracker = tracker or Tracker()
                if last_steps is None:  # at first, and where an answer did not come: what was sent may have arrived
                    last_steps = tracker.last_steps(self._run_id)
                missing = self._missing(rows, last_steps)
                tracker.log_rows(self._run_id, missing, f"{self._stage}/")
            except RefusedError as error:
                say(f"{self._stage}: live logging stopped, training goes on: {error}")
                return
            except ServiceError as error:
                if num_back < 0:
                    say(f"{self._stage}: training goes on, its rows wait in {self._journal.path}: {error}")
                last_steps, num_back = None, max(num_back, 0)
                if self._ending.wait(pause_s):
                    self._over.wait(_PAUSE_S)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            begin, pause_s = end, _PAUSE_S
            num_back += len(missing) if num_back >= 0 else 0

    def _missing(self, rows: list[Row], last_steps: dict[str, int]) -> list[Row]:
        """The rows without the points that are there."""
        found = []
        for row in rows:
            left = {
                name: value
                for name, value in row.items()
                if last_steps.get(metric_name(f"{self._stage}/{name}"), -1) < row["step"]
            }
            if left.keys() - {"step", "time"}:
                found.append(left)
        return found
