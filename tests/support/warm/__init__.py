"""`align` and `dvc` for tests, as forks of a process that has imported what they need.

Starting Python, importing and ending it again is most of what a command of a test costs: 1 to 6 CPU seconds, where the
command's own work takes a tenth. `commands()` is a folder of programs named `align` and `dvc` for the front of a PATH.
They are processes like the real ones, with the caller's arguments, folder, environment, streams, limits and signals,
and their exit status; only the imports are done before. The processes of `multiprocessing` are such forks, too: those
that work for a command, and those of a test. What is a test of starting or of edited code starts the real ones; so do
these programs where they see other disks or another network than the server, or where PYTHONPATH has other code.
"""

import atexit
import functools
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from multiprocessing import spawn
from pathlib import Path

import psutil

from tests.support import ROOT

#: As `multiprocessing` has it, for `monkeypatch.setattr(spawn, "get_executable", warm.started_executable)`: a test's
#: processes are started then.
started_executable = spawn.get_executable
_CLIENT = Path(__file__).with_name("client.py")


#: Names the `python` of the process that started this one: its server is a fork, too.
_OUTER = "ALIGN_TESTS_PYTHON"


@functools.cache
def commands():
    """The folder of `align`, `dvc` and `python`; its server starts with the first call and ends with this process."""
    if sys.platform != "linux":  # forks of a process with so many libraries are safe there only
        return Path(sys.executable).parent
    folder = Path(tempfile.mkdtemp(prefix="align-warm-"))
    reading, writing = os.pipe()  # whose end tells the server of the end of this process, however it ends
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "DVC_"))}
    given = filter(None, [os.environ.get("PYTHONPATH")])  # another torch (`make test-torch`)
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *given]), "OMP_NUM_THREADS": "1"}
    place = "".join(str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("mnt", "net"))
    client = shlex.join([sys.executable, "-I", "-S", str(_CLIENT), str(folder / "socket"), place])
    for name, lines in {
        "align": f'exec {client} warm -m align.cli "$@"',
        "dvc": f'exec {client} warm -m dvc "$@"',
        "python": "case $1 in -P | -u) shift ;; esac\n"
        f'case $1 in -m | -c) exec {client} warm "$@" ;; esac\nexec {shlex.quote(sys.executable)} "$@"',
        "worker": f'[ "$1" = -u ] && shift\nexec {client} started "$@"',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    server = subprocess.Popen(
        [os.environ.get(_OUTER, sys.executable), "-m", "tests.support.warm.server", str(folder)],
        cwd=ROOT, env=env, stdin=reading, stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(reading)
    ready, _, pid = server.stdout.readline().partition(b" ")
    assert ready == b"ready"
    atexit.register(_end, server, writing, folder)
    _server.append(int(pid))
    return folder


def worker():
    """Python for a worker of pytest-xdist: a fork, but what it starts by `sys.executable` is started."""
    os.environ[_OUTER] = str(commands() / "python")
    return str(commands() / "worker")


#: The process id of this process's server, once it has one.
_server = []


def server_pids():
    """Empty before the first command."""
    return _server


def spent_s():
    """CPU seconds of all commands that have ended."""
    if not _server:
        return 0.0
    fields = Path(f"/proc/{_server[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def kill(pid):
    """SIGKILL to a command. Its caller learns of its end when it has ended; after SIGKILL itself, a moment before."""
    os.kill(pid, signal.SIGUSR2)


def use_in_multiprocessing():
    """Lets the processes that this one spawns be forks; the first one starts the server."""
    if sys.platform == "linux":
        spawn.get_executable = lambda: os.fsencode(commands() / "python")  # type: ignore[attr-defined]


def processes():
    """Commands that run, and all that they started."""
    return psutil.Process(_server[0]).children(recursive=True) if _server else []


def _end(server, writing, folder):
    os.close(writing)
    server.wait(30)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
