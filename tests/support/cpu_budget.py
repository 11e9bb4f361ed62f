"""A test costs at most 2 CPU seconds, its child processes included, or says why it costs more.

    @pytest.mark.costs(8, "a real server is killed and started again")   on a test: at most 8 CPU seconds
    @costs(20, "the stack of servers, once a session")                   below @pytest.fixture of a wider scope

A fixture that several tests share is counted for itself, not for the test that happens to come first. Tests with the
marker `full`, and what they alone share, may cost what they want. CPU seconds depend less than seconds on what else the
machine does. A test fails at three times its budget, more where the cores are slower, by a fixed piece of work.

tests/conftest.py registers this module with pytest.
"""

import os
import time

import pytest

from tests.support import warm

#: CPU seconds of a test that says nothing.
BUDGET_S = 2.0
#: CPU seconds of `_fixed_work` on a quick machine. A budget is larger where it takes longer.
_REFERENCE_S = 0.020
#: A test fails at so many times its budget. Where cores are shared, CPU seconds of the same test differ by a factor of
#: two, more with cold caches, and a budget is to find a test that became dear, not a busy machine.
TOLERANCE = 3.0
#: So many tests are listed at the end.
_NUM_SHOWN = 10
_CPU_S = "cpu_s"

_spent = []  # in the process that reports


def costs(cpu_s, reason):
    """Allows a fixture that is shared by tests more than `BUDGET_S`."""
    assert reason

    def allow(function):
        function.cpu_s = cpu_s  # type: ignore[attr-defined]
        return function

    return allow


def over_budget(spent_s, allowed_s, work_s=None):
    """What is wrong with a cost, or None. The allowed seconds are those of the machine that the budgets were set on;
    `work_s` times the fixed piece of work, where the budget seems to be exceeded.
    """
    allowed = allowed_s * TOLERANCE
    if spent_s <= allowed or spent_s <= allowed * (work_s or _fixed_work)() / _REFERENCE_S:
        return None
    return f"costs {spent_s:.1f} CPU seconds, {allowed_s:g} are allowed (tests/support/cpu_budget.py)"


def _enforced():
    """Whether this is a worker of pytest-xdist, which has imported everything; a process that has not pays for it."""
    return "PYTEST_XDIST_WORKER" in os.environ


def _fixed_work():
    begun, value, table = time.process_time(), 0, {}
    for number in range(400_000):
        table[number % 997] = value = (value * 31 + number) % 1_000_003
    return time.process_time() - begun


def _cpu_s():
    """Of this process, of its children that have ended, and of its warm commands."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system + warm.spent_s()


class _Meter:
    """CPU seconds of the test that runs, without the fixtures that it shares with others."""

    begun = 0.0
    shared = 0.0
    depth = 0
    full = False  # whether the test may cost what it wants


def pytest_collection_modifyitems(items):
    """Sorts the dearest files to the front: workers take whole files, and the last ones should end together."""
    dear = {}
    for item in items:
        mark = item.get_closest_marker("costs")
        dear[item.path] = dear.get(item.path, 0.0) + (mark.args[0] if mark else 0.0)
    items.sort(key=lambda item: -dear[item.path])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    """Begins to count."""
    _Meter.begun, _Meter.shared, _Meter.depth = _cpu_s(), 0.0, 0
    _Meter.full = item.get_closest_marker("full") is not None
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """Counts a shared fixture for itself."""
    if fixturedef.scope == "function" or _Meter.depth:
        return (yield)
    begun = _cpu_s()
    _Meter.depth += 1
    try:
        value = yield
    finally:
        _Meter.depth -= 1
        spent = _cpu_s() - begun
        _Meter.shared += spent
    if not _Meter.full and _enforced() and (wrong := over_budget(spent, getattr(fixturedef.func, _CPU_S, BUDGET_S))):
        pytest.fail(f"fixture {fixturedef.argname} {wrong}", pytrace=False)
    return value


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item, nextitem):
    """Compares the test's cost with its budget."""
    before = _cpu_s()
    yield
    if nextitem is None or nextitem.path != item.path:
        _Meter.begun += _cpu_s() - before  # the end of what the file's tests shared
    spent = _cpu_s() - _Meter.begun - _Meter.shared
    item.user_properties.append((_CPU_S, spent))
    if _Meter.full or not _enforced():
        return
    mark = item.get_closest_marker("costs")
    if wrong := over_budget(spent, mark.args[0] if mark else BUDGET_S):
        pytest.fail(f"{item.name} {wrong}", pytrace=False)


def pytest_runtest_logreport(report):
    """Keeps the costs that workers report."""
    if report.when == "teardown":
        _spent.extend((float(value), report.nodeid) for name, value in report.user_properties if name == _CPU_S)


def pytest_terminal_summary(terminalreporter):
    """Lists the dearest tests of a run that cost a minute or more."""
    total = sum(spent for spent, _ in _spent)
    if total < 60:
        return
    terminalreporter.section(f"{len(_spent)} tests cost {total:.0f} CPU seconds, without shared fixtures; the dearest")
    for spent, name in sorted(_spent, reverse=True)[:_NUM_SHOWN]:
        terminalreporter.write_line(f"{spent:7.1f}  {name}")
