"""`python -m flows PROGRAM ...`: a program of `flows` at a terminal, such as `pipeline`."""

import importlib
import signal
import sys

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback of the seconds in which Prefect is imported
    sys.exit(importlib.import_module(f"flows.{sys.argv[1]}").main(sys.argv[2:]))
