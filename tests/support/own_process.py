"""What a call costs in a process of its own: CPU seconds, and the peak of resident memory."""

import multiprocessing
import os
import time
from pathlib import Path


def in_process(function, *arguments):
    """CPU seconds and peak resident bytes of a call in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(sender, function, arguments))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def _measured(sender, function, arguments):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DuckDB draws progress bars on stdout
    start = time.process_time()
    function(*arguments)
    spent = time.process_time() - start
    sender.send((spent, peak_bytes()))  # getrusage would count the parent's memory before exec, too


def forget_peak():
    """From here on the peak is counted again, without what making the inputs took."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes():
    """The largest resident memory since the process started, or since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10
