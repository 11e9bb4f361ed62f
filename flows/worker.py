"""`python -m flows.worker worker start ...`: Prefect's worker, which waits for a server that does not answer.

Prefect's own one gives up after a quarter of an hour, and ends its runs with it. Told to end, it kills them at once.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from typing import Any

import psutil
from prefect.cli import app
from prefect.utilities import processutils

from flows.tasks.outages import wait_out_outages
from flows.tasks.supervisor import lives

#: A cancelled run has 30 s to save and to end.
RUNS_STOP_S = 35.0


def end_runs_first(*_: object) -> None:
    """In place of `setup_signal_handlers_worker`: at SIGTERM and SIGINT runs end as cancelled ones do, then the worker.

    Prefect's loop stands still meanwhile, so the worker starts no other run. A second signal ends it without waiting.
    """
    of_prefect: Any = signal.getsignal(signal.SIGINT)

    def end(_number: int, frame: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        runs = psutil.Process().children()
        for run in runs:
            with suppress(psutil.NoSuchProcess):
                run.terminate()
        deadline = time.monotonic() + RUNS_STOP_S
        while any(map(lives, runs)) and time.monotonic() < deadline:
            time.sleep(0.1)
        of_prefect(signal.SIGINT, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


if __name__ == "__main__":
    # A script's background process ignores SIGINT, by which Prefect ends a worker.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    processutils.setup_signal_handlers_worker = end_runs_first  # type: ignore[assignment]  # of its arguments none
    wait_out_outages()
    app()
