"""What counts as a find: an exception that a target does not document, its death, too much memory or time.

Inputs are judged in a process that has a limit of address space. Memory is judged by its peak, too, since a target
may turn an allocation that failed into the error that it documents.
"""

import json
import os
import resource
import signal
import time
import traceback
from pathlib import Path
from typing import NamedTuple

#: The most that one input may add to the process, as resident memory and as address space.
PEAK_BYTES = 1_500_000_000
_SPACE_BYTES = 2 << 30
#: CPU time that one input may take. A multiple of what the slowest seed takes, since other processes share the cores.
CPU_S = 10.0
#: After this time a process that does not return is killed.
HANG_S = 120


class Find(NamedTuple):
    """One find. Two inputs with the same `signature` are most likely one defect."""

    signature: str
    message: str


def limit_memory():
    """Bounds this process to what it has now and `_SPACE_BYTES` more. No core files."""
    resource.setrlimit(resource.RLIMIT_AS, (_size_bytes() + _SPACE_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _size_bytes():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def judged(run, data):
    """Runs a target on one input."""
    _forget_peak()
    before, start = _peak_bytes(), time.process_time()
    find = None
    try:
        run(data)
    except Exception as error:  # noqa: BLE001 - each is a find
        find = Find(_signature(error), "".join(traceback.format_exception(error)))
    seconds, num_bytes = time.process_time() - start, _peak_bytes() - before
    if find is None and num_bytes > PEAK_BYTES:
        find = Find("memory", f"{num_bytes / 1e6:,.0f} MB at its peak; {PEAK_BYTES / 1e6:,.0f} MB are allowed")
    if find is None and seconds > CPU_S:
        find = Find("slow", f"{seconds:.1f} s of CPU; {CPU_S:.0f} s are allowed")
    return find


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def _signature(error):
    """The type, and the last place in the project where it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(part in frame.filename for part in ("/align/", "/flows/"))] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].name}"


def replayed(run, inputs):
    """Judges inputs in a fork of this process, which may die; those that follow then get another one."""
    finds = []
    while len(finds) < len(inputs):
        finds += _until_death(run, inputs[len(finds) :])
    return finds


def _until_death(run, inputs):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        limit_memory()
        for data in inputs:
            signal.alarm(HANG_S)  # ends C code, too
            os.write(writer, f"{json.dumps(judged(run, data))}\n".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        finds = [Find(*fields) if (fields := json.loads(line)) else None for line in stream]
    status = os.waitpid(child, 0)[1]
    if status:
        number = os.WTERMSIG(status)
        how = f"hangs for {HANG_S} s" if number == signal.SIGALRM else f"dies by signal {number}"
        finds.append(Find(how, how))
    return finds


def show(text):
    """Prints at once: what follows may take minutes."""
    print(text, flush=True)
