"""A process that has imported little, to be forked often.

A fork copies the tables of all memory: of pytest's process, which has imported torch and MLflow, that takes 0.05 to 0.1
CPU seconds; of this one, a hundredth of that.
"""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from multiprocessing import spawn

import pytest

import align.durable.files
from tests.support import warm


@contextmanager
def small_process():
    """Runs functions of a test's module, one after another, in one process that is started for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spawn, "get_executable", warm.started_executable)
        executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        executor.submit(int).result()
    with executor:
        yield executor


def in_child(block):
    """Runs the block in a fork; returns its exit code, negative after a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with suppress(BaseException):
            block()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(step, block):
    """Runs the block in a fork that is killed before step 0, 1, ... of those on the disk, or after it: 0.5, 1.5, ..."""
    steps = count()

    def counted(function):
        def call(*args, **kwargs):
            mine = next(steps)
            if step == mine:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return function(*args, **kwargs)
            finally:
                if step == mine + 0.5:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    def run():
        modules = ((os, "replace"), (os, "rmdir"), (os, "unlink"), (os, "fsync"), (align.durable.files, "_exchange"))
        for module, name in modules:
            setattr(module, name, counted(getattr(module, name)))
        block()

    return in_child(run)
