"""How a run at a terminal ends when it is told to: by Ctrl-C, by SIGTERM, or because the terminal is closed.

The first signal ends it in order: the stage that works writes its checkpoint, and Prefect and MLflow learn of the end,
if they answer at once. A second signal, or IN_ORDER_S, ends all processes of the run at once, as if they were killed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from prefect.exceptions import Abort
from prefect.settings import get_current_settings
from prefect.utilities import engine

#: Longer than a stage may take for its checkpoint (`supervisor.GRACE_S`); a run ends within 30 s.
IN_ORDER_S = 28.0
#: `make` and `timeout` send a signal to their group and to their child, which gets it twice.
ONE_SIGNAL_S = 0.5


class Stopped(Abort):
    """The first signal came. Prefect makes no crash of an Abort, and sets no states: `record` does."""


class _Signals:
    first: int | None = None
    since = 0.0

    def receive(self, number: int, _frame: object = None) -> None:
        """The handler of all signals."""
        if self.first is None:
            self.first, self.since = number, time.monotonic()
            end_without_waiting()
            timer = threading.Timer(IN_ORDER_S, self.end_at_once)
            timer.daemon = True
            timer.start()
            # not `say`: the main thread may be printing
            os.write(2, b"align: stopping, which may take half a minute; a second Ctrl-C ends everything at once\n")
            require_running()
        elif time.monotonic() - self.since > ONE_SIGNAL_S:
            self.end_at_once()

    def end_at_once(self) -> None:
        os.write(2, b"align: ended at once; the next run repairs what this one leaves\n")
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        os._exit(exit_code())


_signals = _Signals()


def end_without_waiting() -> None:
    """For a run that has to end: it waits no longer for Prefect's server, nor asks it again."""
    get_current_settings().client.max_retries = 0


@contextmanager
def in_order() -> Iterator[None]:
    """While the block runs, the first signal raises Stopped in the main thread. A signal that is ignored stays so."""
    engine._prefect_sigterm_handler = _signals.receive  # type: ignore[assignment]  # Prefect's makes a crash of it
    obeyed = [
        each for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN
    ]
    for number in obeyed:
        signal.signal(number, _signals.receive)
    try:
        yield
    finally:
        for number in obeyed if not is_stopping() else ():
            signal.signal(number, signal.SIG_DFL)  # nothing is left to be put in order


@contextmanager
def raise_if_stopped() -> Iterator[None]:
    """Raises Stopped in place of an error after the first signal; pydantic makes an error of what interrupts it."""
    try:
        yield
    except Exception:
        require_running()
        raise


def is_stopping() -> bool:
    """Whether the first signal has come."""
    return _signals.first is not None


def require_running() -> None:
    """Raises Stopped if the first signal has come: a finaliser may have swallowed what it raised."""
    if _signals.first is not None:
        raise Stopped(f"stopped by {signal.Signals(_signals.first).name}")


def exit_code() -> int:
    """Of a run that was ended: 130 after Ctrl-C, 143 after SIGTERM, as in a shell; 130 if Prefect's UI ended it."""
    return 128 + (_signals.first or signal.SIGINT)
