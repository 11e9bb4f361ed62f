"""`python -m flows PROGRAM ...`: a program of `flows` at a terminal, such as `pipeline`.

It talks to the server of Prefect that the environment names, or else to the checkout's own, which it starts if nobody
has. With --keep that server stays.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from align.display.console import say
from align.durable.run_records import files
from align.errors import AlignError
from align.local_stack import prefect_for_a_run
from align.pipeline.run import KEEP
from flows.checkout.run_branch import check_name
from flows.request import Request, settled


def main(argv: Sequence[str]) -> int:
    """Returns the program's exit code; 1 after one line if Prefect's server does not start."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # until the program says otherwise
    words = [word for word in argv if word != KEEP]
    try:
        if words[0] == "pipeline":  # a wrong value costs nothing
            words[1] = _checked(words[1])
        wait = None
        asks_prefect = words[0] != "ended" or files(Path.cwd())
        if asks_prefect and "PREFECT_API_URL" not in os.environ:
            server = ExitStack()
            atexit.register(server.close)  # after Prefect's threads, which send the last lines
            wait = server.enter_context(prefect_for_a_run(Path.cwd(), keep=KEEP in argv))
        program = import_module(f"flows.{words[0]}")  # while the server starts
        if wait:
            wait()
        return int(program.main(words[1:]))
    except AlignError as error:
        say(f"align: error: {error}")
        return 1
    except KeyboardInterrupt:
        say("align: interrupted")
        return 128 + signal.SIGINT


def _checked(request: str) -> str:
    asked = settled(Path.cwd(), Request.model_validate_json(request))
    check_name(Path.cwd(), str(asked.name))
    return asked.model_dump_json()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
