"""Forks commands for `tests.support.warm.client`; ends, with all of them, once its stdin does.

python -m tests.support.warm.server FOLDER
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import logging
import multiprocessing
import os
import random
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import warnings
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

#: What commands import, beside the modules of the verbs.
_PRELOADED = (
    "numpy", "pyarrow.parquet", "pyarrow.compute", "pyarrow.pandas_compat", "pandas", "duckdb", "torch",
    "PIL.Image", "matplotlib.figure", "faiss", "great_expectations", "mlflow",
    "mlflow.pyfunc", "boto3", "ruamel.yaml", "fastwarc", "resiliparse.parse.html", "align.config.checks",
    "dvc.cli.parser", "dvc.repo", "dvc.analytics", "dvc.compare", "dvc.cachemgr", "dvc.data_cloud", "dvc._debug",
    "dvc_render", "scmrepo.git", "dulwich.bundle", "dulwich.worktree", "dulwich.index", "rich.console",
    "fsspec.implementations.local", "flatten_dict", "flufl.lock", "torch._dynamo", "torch.distributed.tensor",
    "torch.distributed.fsdp", "torch.distributed.elastic.multiprocessing", "pytest",
    "flows.pipeline", "flows.__main__", "networkx", "dvc.lock", "dvc.rwlock", "dvc.dirs", "dvc.scm", "zc.lockfile",
    "configobj", "dulwich.ignore", "platformdirs",
)  # fmt: skip
#: Of Arrow's allocator, which starts it again in a fork.
_SAFE_THREAD = "jemalloc_bg_thd"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class _Request:
    words: list[str]  # of the client, from CHILDREN on
    folder: bytes
    environment: dict[bytes, bytes]
    files: dict[int, int]  # number in the command -> number here


def main():
    """Serves; a fork returns from `_serve` with its request, and is the command from then on."""
    folder = Path(sys.argv[1])
    _know_the_code()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _PRELOADED:
            importlib.import_module(name)
        _import_verbs()
    sys.modules["PIL.Image"].init()
    threads = sorted((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir())
    assert len(threads) == 1 + threads.count(_SAFE_THREAD), threads  # a fork would lose them
    logging.getLogger().handlers.clear()  # Prefect's; `_run` gives them back to flows
    _forget_ends()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(64)
    print(f"ready {os.getpid()}", flush=True)
    _become(_serve(listener), str(folder / "python"))


def _forget_ends():
    """What libraries would do at the end of each fork: torch reads a tenth of its memory, which is copied for that."""
    atexit.unregister(importlib.import_module("torch._dynamo.utils").dump_compile_times)
    for each in weakref.finalize._registry.values():  # type: ignore[attr-defined]
        each.atexit = False


def _know_the_code():
    """What commands read of the package to name their work, half of what a small one costs."""
    from align.project import provenance
    from align.verbs import VERBS

    provenance.digest(*(verb.module for verb in VERBS.values()))


def _import_verbs():
    from align.verbs import VERBS

    for name, verb in VERBS.items():
        if name != "filter":  # its network's runtime starts a thread
            importlib.import_module(verb.module)


def _serve(listener):
    """Answers until stdin ends, which ends the process. Returns in each fork."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    for source in (listener.fileno(), reading, 0):
        selector.register(source, selectors.EVENT_READ)
    clients = {}  # file number -> connection, process id of the command
    while True:
        # Ends are told last: they close connections, which may have had something to say at the same moment.
        for key, _ in sorted(selector.select(), key=lambda ready: ready[0].fd == reading):
            if key.fd == 0:
                for _, pid in clients.values():
                    for kill in (os.killpg, os.kill):  # not all lead a group
                        with suppress(ProcessLookupError):
                            kill(pid, signal.SIGKILL)
                os._exit(0)
            elif key.fd == reading:
                os.read(reading, 4096)
                _answer(clients, selector)
            elif key.fd == listener.fileno():
                connection, _ = listener.accept()
                try:
                    request = _read(connection)
                except (OSError, struct.error, ValueError):  # the client was killed before it had said what it wants
                    connection.close()
                    continue
                with warnings.catch_warnings():
                    # Python 3.12 and later warn; what libraries start as threads holds no lock that a command needs
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for number in (reading, writing, listener.detach(), connection.detach()):
                        os.close(number)
                    for other, _ in clients.values():
                        other.close()
                    selector.close()
                    return request
                for number in request.files.values():
                    os.close(number)
                clients[connection.fileno()] = connection, pid
                selector.register(connection, selectors.EVENT_READ)
            else:
                connection, pid = clients[key.fd]
                try:
                    numbers = connection.recv(16)
                except ConnectionError:  # it ended with an answer unread, which says no more than that it ended
                    numbers = b""
                for number in numbers or (signal.SIGKILL,):  # a client that was killed takes its command along
                    _kill(pid, number)
                if not numbers:
                    selector.unregister(connection)


def _answer(clients, selector):
    while True:
        try:
            ended, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            return
        for number, (connection, pid) in list(clients.items()):
            if pid == ended:
                with suppress(OSError):
                    connection.sendall(struct.pack("!i", status))
                with suppress(KeyError):
                    selector.unregister(connection)
                connection.close()
                del clients[number]


def _kill(pid, number):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL if number == signal.SIGUSR2 else number)


def _read(connection):
    head, files, _, _ = socket.recv_fds(connection, 4, 250)
    (size,) = struct.unpack("!I", head)
    body = bytearray()
    while len(body) < size:
        part = connection.recv(size - len(body))
        if not part:
            raise ValueError("the request is cut off")
        body += part
    numbers, count, *fields = bytes(body).split(b"\0")
    words, (folder, *environment) = fields[: int(count)], fields[int(count) :]
    pairs = (entry.partition(b"=") for entry in environment)
    places = dict(zip(map(int, numbers.split(b",")), files, strict=True))
    return _Request([os.fsdecode(word) for word in words], folder, {name: value for name, _, value in pairs}, places)


def _become(request, python):
    """Runs the command as if it had been started, and ends as it does."""
    if request.words[-1] != "--multiprocessing-fork":
        os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    high = {number: fcntl.fcntl(place, fcntl.F_DUPFD, 1000) for number, place in request.files.items()}
    for place in request.files.values():
        os.close(place)
    for number, place in high.items():
        os.dup2(place, number)
        os.close(place)
    os.chdir(request.folder)
    os.environb.clear()
    os.environb.update(request.environment)
    time.tzset()
    for output in (sys.stdout, sys.stderr):
        output.reconfigure(line_buffering=output.isatty() or output is sys.stderr)  # type: ignore[union-attr]
    random.seed()
    sys.modules["numpy"].random.seed()
    children, option, program, *arguments = request.words
    if children == "warm":
        sys.executable, os.execve = python, _exec  # type: ignore[assignment]
        multiprocessing.set_executable(python)
    _set_path()
    main = sys.modules["__main__"] = ModuleType("__main__")
    if option == "-c":
        sys.argv = ["-c", *arguments]
        _end(_ended(lambda: exec(program, main.__dict__)))
    sys.argv = [program, *arguments]
    _end(_run(program))


def _set_path():
    """As `python -m` does. What is imported already is the code of this checkout."""
    own = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:1] = [str(Path.cwd()), *own]
    importlib.invalidate_caches()


def _run(module):
    """The exit code of a module that is run as a program."""
    if module == "flows":
        from flows import __main__ as flows

        flows.import_module = _with_prefect
        return _ended(lambda: flows.main(sys.argv[1:]))
    if module == "align.cli":
        from align.cli import main as align

        return _ended(lambda: align(sys.argv[1:]))
    if module == "dvc":
        from dvc.cli import main as dvc

        return _ended(lambda: dvc(sys.argv[1:]))
    sys.modules.pop(module, None)  # as `python -m`, which runs it as __main__
    return _ended(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


def _with_prefect(module):
    """Imports a program of flows; Prefect has read another environment here."""
    importlib.import_module("prefect.context").refresh_global_settings_context()
    importlib.import_module("prefect.logging.configuration").setup_logging(incremental=False)
    return importlib.import_module(module)


def _ended(program):
    """The exit code of a program."""
    try:
        code = program()
    except SystemExit as end:
        if isinstance(end.code, int) or end.code is None:
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException as error:  # noqa: BLE001 - as Python does at the end of a program
        if sys.excepthook is sys.__excepthook__:
            traceback.print_exc()
        else:
            sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return code if isinstance(code, int) else 0


def _exec(path, words, environment):
    """In place of `os.execve`: a module that a command becomes needs no other process."""
    if path == sys.executable and words[1] == "-m":
        os.environ.clear()
        os.environ.update(environment)
        _set_path()
        sys.argv = list(words[2:])
        _end(_run(words[2]))
    sys.stdout.flush()
    _execve(path, words, environment)
    raise AssertionError


_execve = os.execve


def _end(code):
    """Ends the process as Python does, but for taking apart what it has imported."""
    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            output.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
