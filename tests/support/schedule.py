"""Which worker runs which tests, and how many workers there are. With `--dist loadgroup`, a worker takes whole groups.

tests/conftest.py registers this module with pytest.
"""

from collections.abc import Generator

import pytest

from tests.support import ROOT

#: The group of all tests that share one local stack (tests/support/local_stack.py). They wait more than they compute,
#: one after another, so they begin first.
STACK = "stack"
#: The first of these, since its stack is one that nobody has used.
FIRST = ROOT / "tests/integration/test_local_stack.py"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None, None, None]:
    """Puts each test into the group of its file, or of the stack that it shares, whose tests go to the front."""
    shared = set()
    for item in items:
        is_shared = "shared_stack" in getattr(item, "fixturenames", ())
        if is_shared:
            shared.add(item.path)
        item.add_marker(pytest.mark.xdist_group(STACK if is_shared else item.path.relative_to(ROOT).as_posix()))
    yield  # to xdist, which reads the groups, and to others, who sort
    items.sort(key=lambda item: (item.path not in shared, item.path != FIRST))


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """A worker for each core, four at most, and one more, since that of the stack's tests waits."""
    return min((yield), 4) + 1
