"""Runs a flow for a person at a terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from prefect.exceptions import Abort

from align.console import say, show
from align.errors import AlignError


def exit_code(run: Callable[[], str]) -> int:
    """Shows the flow's summary, or its error in one line. Returns 0, 1 after an AlignError, 130 after Ctrl-C
    or if it was suspended or cancelled in Prefect's UI."""
    # Prefect passes SIGTERM on when the flow has ended. An exception, not a plain exit, ends its temporary server too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        summary = run()
    except AlignError as error:
        say(f"align: error: {error}")
        return 1
    except Abort as ended:  # in Prefect's UI
        say(f"align: {ended}")
        return 130
    except KeyboardInterrupt:
        say("align: interrupted; finished stages are cached, and training resumes from its checkpoint")
        return 130
    show("", *summary.split("\n"))
    return 0
