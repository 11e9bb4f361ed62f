"""How many workers there are, and which runs which tests: a worker takes whole files, and one all that share a stack.

tests/conftest.py registers this module with pytest.
"""

import functools
import shlex
import sys

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support import ROOT, durations, warm

#: The scope of all files that share one local stack (tests/support/local_stack.py), and say so:
#: `pytestmark = pytest.mark.shared_stack`. They wait more than they compute, one after another, so they begin first.
STACK = "stack"
#: The first of these, since its stack is one that nobody has used.
FIRST = ROOT / "tests/integration/test_local_stack.py"


@functools.cache
def scope(file):
    """The tests that one worker runs: those of the file, or of all that share the stack. The path is from the root."""
    return STACK if "pytest.mark.shared_stack" in (ROOT / file).read_text("utf-8") else file


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
    for item in items:
        if "shared_stack" in item.fixturenames and not item.get_closest_marker("shared_stack"):
            raise pytest.UsageError(f"{item.nodeid}: its file needs `pytestmark = pytest.mark.shared_stack`")
    seconds = durations.seconds(items)
    items.sort(key=lambda item: (not item.get_closest_marker("shared_stack"), item.path != FIRST, -seconds[item.path]))


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers():
    """A worker for each core, four at most, and two more, since tests wait half of their time, mostly for servers."""
    return min((yield), 4) + 2
