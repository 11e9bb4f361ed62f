"""Live metrics of a training run, logged into an MLflow run that somebody else starts and ends.

A thread delivers the rows, so training never waits for MLflow. Rows that MLflow does not take are dropped: `align
register` completes the curves of metrics.jsonl. Only what no report keeps (speed, cost, loader wait) then has a gap.
"""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from align.display.console import say
from align.errors import RefusedError, ServiceError
from align.services.tracking.address import address
from align.services.tracking.tracker import Tracker

#: `step`, `time` in ms since 1970, and metrics; None ends the delivery.
_Rows = queue.Queue[dict[str, float] | None]
#: Rows that wait for an answer; later ones are dropped.
_MAX_ROWS = 1000
#: Seconds that the end of training waits for the last rows; fewer after a failure.
_LAST_WAIT_S, _GRACE_S = 30.0, 2.0


class LiveLog:
    """A log function for `align.training.plan.Monitoring`. Picklable until the training process enters it.

    If MLflow is unavailable, one line says so, and one that it is back. If MLflow refuses (the run was deleted,
    credentials are wrong), live logging stops with one warning. Training continues in either case.

    Args:
        run_id: of the MLflow run.
        stage: prefix of every name, such as `pretrain/train/loss`, since each stage counts its steps from 1.
    """

    def __init__(self, run_id: str, stage: str) -> None:
        self._run_id, self._stage = run_id, stage
        self._started: tuple[_Rows, threading.Thread] | None = None

    def __enter__(self) -> Self:
        """Starts the delivery to the MLflow of now."""
        rows: _Rows = queue.Queue(_MAX_ROWS)
        # A daemon: a hanging request must not keep the process alive.
        thread = threading.Thread(target=self._deliver, args=(rows, address()), name="live metrics", daemon=True)
        thread.start()
        self._started = rows, thread
        return self

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        """Logs a row of metrics at a step."""
        if self._started is not None:
            with suppress(queue.Full):
                self._started[0].put_nowait({"step": step, "time": time.time_ns() // 1_000_000, **metrics})

    def __exit__(self, kind: type[BaseException] | None, _error: object, _where: TracebackType | None) -> None:
        """Waits for the remaining rows, at most half a minute."""
        if self._started is None:
            return
        (rows, thread), self._started = self._started, None
        with suppress(queue.Full):
            rows.put_nowait(None)
        thread.join(_LAST_WAIT_S if kind is None else _GRACE_S)
        if thread.is_alive():
            say(f"{self._stage}: MLflow did not take the last rows in time; `align register` completes the series")

    def _deliver(self, rows: _Rows, address: str) -> None:
        tracker: Tracker | None = None
        prefix, last_step, is_away = f"{self._stage}/", -1, False
        while True:
            waiting = [rows.get()]
            while not rows.empty():
                waiting.append(rows.get())
            given = [row for row in waiting if row is not None]
            if not given:
                return
            try:
                if tracker is None:
                    new = Tracker(address)
                    last_steps = new.last_steps(self._run_id).items()
                    # Ranks that were restarted repeat the steps since their checkpoint.
                    last_step = max((step for name, step in last_steps if name.startswith(prefix)), default=-1)
                    tracker = new
                tracker.log_rows(self._run_id, [row for row in given if row["step"] > last_step], prefix)
            except RefusedError as error:
                say(f"{self._stage}: live logging stopped, training continues: {error}")
                return
            except ServiceError as error:
                if not is_away:
                    say(f"{self._stage}: training continues without live metrics: {error}")
                is_away = True
            else:
                if is_away:
                    say(f"{self._stage}: MLflow is back; `align register` completes the series")
                is_away = False
            if waiting[-1] is None:
                return
