"""What a call costs in a process of its own: CPU seconds, and the peak of resident memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path


def in_process(function: Callable[..., None], *arguments: object) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of a call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(sender, function, arguments))
    process.start()
    sender.close()
    result: tuple[float, int] = receiver.recv()
    process.join()
    return result


def _measured(sender: Connection, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DuckDB draws progress bars on stdout
    start = time.process_time()
    function(*arguments)
    spent = time.process_time() - start
    sender.send((spent, peak_bytes()))  # getrusage would count the parent's memory before exec, too


def forget_peak() -> None:
    """From here on the peak is counted again, without what making the inputs took."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The largest resident memory since the process started, or since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
