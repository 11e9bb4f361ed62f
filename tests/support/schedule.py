"""How many workers there are, and which runs which tests: a worker takes whole files, and one all that share a stack.

tests/conftest.py registers this module with pytest.
"""

import functools
import re
import shlex
import sys

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support import ROOT, durations, warm

#: The scope of all tests that share one local stack (tests/support/local_stack.py). They wait more than they compute,
#: one after another, so they begin first.
STACK = "stack"
#: The first of these, since its stack is one that nobody has used.
FIRST = "tests/integration/test_local_stack.py"


@functools.cache
def scope(file):
    """The tests that one worker runs: those of the file, or all that use the stack. A file's path is from the root."""
    text = (ROOT / file).read_text("utf-8")
    takes_stack = re.search(r"^def test_\w+\((\w+, )*stack\b", text, re.MULTILINE)
    return STACK if takes_stack and 'name="stack"' not in text else file  # some have a stack of their own


class _Scheduling(LoadScopeScheduling):
    """By `scope`. xdist's own groups (`--dist loadgroup`) have no effect with pytest 9.2, whose names it cannot set."""

    def _split_scope(self, nodeid):
        return scope(nodeid.partition("::")[0])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The scheduler, whatever --dist says."""
    return _Scheduling(config, log)  # type: ignore[arg-type]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs):
    """Workers are forks of a process that has imported what tests import: it takes a worker 15 CPU seconds."""
    if sys.platform == "linux":
        for spec in specs:
            spec.python = shlex.quote(warm.worker())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items):
    """Puts the tests that share the stack to the front, then the files that take longest."""
    yield  # to others, who deselect
    files = {item.path: item.path.relative_to(ROOT).as_posix() for item in items if item.path.is_relative_to(ROOT)}
    for item in items:
        if "shared_stack" in item.fixturenames and scope(files[item.path]) != STACK:
            raise pytest.UsageError(f"{item.nodeid} shares the stack, and scope() does not see it")
    seconds = durations.seconds(items)
    items.sort(key=lambda item: (*_place(files.get(item.path)), -seconds[item.path]))


def _place(file):
    return file is None or scope(file) != STACK, file != FIRST


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers():
    """A worker for each core, four at most, and one more, since that of the stack's tests waits."""
    return min((yield), 4) + 1
