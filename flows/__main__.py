"""`python -m flows PROGRAM ...`: a program of `flows` at a terminal; `align run`, `plan` and so on become one.

All but `plan` talk to the server of Prefect that the environment names, or else to the checkout's own, which is started
if nobody has. With --keep that server stays.
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

#: Program -> what it is asked for.
PROGRAMS = {"pipeline": "REQUEST [--keep]", "plan": "REQUEST [--json]", "study": "STUDY", "ended": "[--quiet]"}


def main(argv: Sequence[str]) -> int:
    """Returns the program's exit code, 1 after a line that says what is wrong, or 2 if `argv` names no program."""
    name, *words = [word for word in argv if word != KEEP] or [""]
    if name not in PROGRAMS or (name != "ended" and not words):
        for each, asked in PROGRAMS.items():
            say(f"usage: python -m flows {each} {asked}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # until the program says otherwise
    try:
        if name == "pipeline":  # a wrong value costs nothing
            words[0] = _checked(words[0])
        wait = None
        asks_prefect = name in ("pipeline", "study") or (name == "ended" and files(Path.cwd()))
        if asks_prefect and "PREFECT_API_URL" not in os.environ:
            server = ExitStack()
            atexit.register(server.close)  # after Prefect's threads, which send the last lines
            wait = server.enter_context(prefect_for_a_run(Path.cwd(), keep=KEEP in argv))
        program = import_module(f"flows.{name}")  # while the server starts
        if wait:
            wait()
        return int(program.main(words))
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
