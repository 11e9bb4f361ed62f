"""`align` and `dvc` for tests, as forks of a process that has imported what they need.

Starting Python, importing and ending it again is most of what a command of a test costs: 1 to 6 CPU seconds, where the
command's own work takes a tenth. `commands()` is a folder of programs named `align` and `dvc` for the front of a PATH.
They are processes like the real ones, with the caller's arguments, folder, environment, streams, limits and signals,
and their exit status; only the imports are done before. What is a test of starting, of being killed or of edited code
starts the real ones; so do these programs where they see other disks or another network than the server.
"""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.support import ROOT

_CLIENT = Path(__file__).with_name("client.py")


@functools.cache
def commands() -> Path:
    """The folder of `align`, `dvc` and `python`; its server starts with the first call and ends with this process."""
    if sys.platform != "linux":  # forks of a process with so many libraries are safe there only
        return Path(sys.executable).parent
    folder = Path(tempfile.mkdtemp(prefix="align-warm-"))
    reading, writing = os.pipe()  # whose end tells the server of the end of this process, however it ends
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_"))}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    place = "".join(str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("mnt", "net"))
    client = shlex.join([sys.executable, "-I", "-S", str(_CLIENT), str(folder / "socket"), place])
    for name, lines in {
        "align": f'exec {client} align.cli "$@"',
        "dvc": f'exec {client} dvc "$@"',
        "python": '[ "$1 $2" = "-P -m" ] && shift\n'
        f'if [ "$1" = -m ]; then shift; exec {client} "$@"; fi\nexec {shlex.quote(sys.executable)} "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.warm.server", str(folder)],
        cwd=ROOT, env=env, stdin=reading, stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(reading)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(_end, server, writing, folder)
    _server.append(server.pid)
    return folder


#: The process id of this process's server, once it has one.
_server: list[int] = []


def server_pids() -> list[int]:
    """Empty before the first command."""
    return _server


def spent_s() -> float:
    """CPU seconds of all commands that have ended."""
    if not _server:
        return 0.0
    fields = Path(f"/proc/{_server[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def processes() -> list[psutil.Process]:
    """Commands that run, and all that they started."""
    return psutil.Process(_server[0]).children(recursive=True) if _server else []


def _end(server: subprocess.Popen[bytes], writing: int, folder: Path) -> None:
    os.close(writing)
    server.wait(30)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
