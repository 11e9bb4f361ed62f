"""A test that hangs ends, with what it had to say: after ten minutes, or what `@pytest.mark.timeout(1500)` says.

Setup, test and end each have the whole limit. Shortly before it the processes that the test has started are killed, so
that what waits for one shows its output and fails in its own words. At the limit pytest-timeout raises. Where even that
does not end the test, since a `with` still waits for something, all child processes are killed, and at last this
process ends with the stacks of all threads.

tests/conftest.py registers this module with pytest.
"""

import faulthandler
import os
import signal
import sys
import time
from contextlib import contextmanager, nullcontext

import psutil
import pytest
from pytest_timeout import timeout_sigalrm

from tests.support import warm

#: Before the limit, and after it from step to step; less where the limit is short.
_STEP_S = 20.0


class _Limit:
    """Of the test that runs."""

    def __init__(self, item, settings):
        self._item, self._settings = item, settings
        self._step_s = min(_STEP_S, settings.timeout / 4)

    @contextmanager
    def phase(self):
        """Its setup, the test itself, or its end, each with the whole limit: a setup may be that of many tests."""
        since_s = time.clock_gettime(time.CLOCK_BOOTTIME) - 0.1  # a process's start is known to 0.01 s
        steps = iter((lambda: _kill(since_s), self._raise, lambda: _kill(0.0), lambda: _kill(0.0), self._leave))

        def step(*_):
            try:
                next(steps)()
            finally:
                signal.setitimer(signal.ITIMER_REAL, self._step_s)

        signal.signal(signal.SIGALRM, step)
        signal.setitimer(signal.ITIMER_REAL, self._settings.timeout - self._step_s)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _raise(self):
        timeout_sigalrm(self._item, self._settings)

    def _leave(self):
        if capture := self._item.config.pluginmanager.getplugin("capturemanager"):
            capture.suspend_global_capture(in_=True)
        print(f"\n{self._item.nodeid} hangs for good; the stacks of all threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(sys.stderr)
        os._exit(3)


def _kill(since_s):
    """Kills the child processes that were started since then, in seconds since the machine's start."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.create_time() - psutil.boot_time() >= since_s and process.pid not in warm.server_pids():
                print(f"out of time: killed process {process.pid}, {process.cmdline()}", file=sys.stderr)
                process.kill()
        except psutil.Error:  # it has just ended
            continue


_limit = pytest.StashKey[_Limit]()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
    """Replaces pytest-timeout's timer, which acts once."""
    item.stash[_limit] = _Limit(item, settings)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    """Within the limit."""
    with item.stash[_limit].phase() if _limit in item.stash else nullcontext():  # --timeout=0
        return (yield)


pytest_runtest_call = pytest_runtest_teardown = pytest_runtest_setup
