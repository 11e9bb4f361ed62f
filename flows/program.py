"""Runs a flow for a person at a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.exceptions import Abort
from prefect.settings import PREFECT_API_URL, get_current_settings

from align.display.console import say, show
from align.errors import AlignError
from align.project.installed import installed
from align.services.tracking.database import require_whole


def exit_code(run: Callable[[], str]) -> int:
    """Shows the flow's summary, or its error in one line. Returns 0, 1 after an AlignError, 130 after Ctrl-C
    or if it was suspended or cancelled in Prefect's UI."""
    # Prefect passes SIGTERM on when the flow has ended. An exception ends its temporary server, too; a plain exit does
    # not.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        if not PREFECT_API_URL.value():
            require_whole(Path(get_current_settings().home, "prefect.db"))
            _guard_temporary_server()
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


def _guard_temporary_server() -> None:
    """Starts Prefect's temporary server behind the guard of `make up`; without it, it answers to any host name."""
    from prefect.server.api.server import SubprocessASGIServer

    def start(server: SubprocessASGIServer) -> subprocess.Popen[Any]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("ALIGN_SERVER_")}
        ours |= get_current_settings().to_environment_variables(exclude_unset=True)
        ours |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
        return subprocess.Popen(
            [sys.executable, str(installed("infra/server.py")), "prefect", str(server.port)], env=ours
        )

    SubprocessASGIServer._run_uvicorn_command = start  # type: ignore[method-assign, assignment]
