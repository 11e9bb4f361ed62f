"""`python -m flows.worker worker start ...`: Prefect's worker, which waits for a server that does not answer.

Prefect's own one gives up after a quarter of an hour, and ends its runs with it.
"""

from __future__ import annotations

import signal

from prefect.cli import app

from flows.tasks.outages import wait_out_outages

if __name__ == "__main__":
    # A script's background process ignores SIGINT, and Prefect ends a worker by one: SIGTERM would do nothing.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wait_out_outages()
    app()
