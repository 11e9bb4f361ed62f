"""What the files of tests take: their order in a run, and whether the suite has become dearer.

tests/durations.json has the CPU seconds of each file, child processes included, and its seconds; those of its tests in
a tier (tests/support/tiers.py) stand apart. What takes longest runs first: workers take whole files, and should end
together.

    make test ARGS="--costs write"    writes what this run takes in place of what is there of the same files
    make test ARGS="--costs check"    fails where all of it costs a tenth more CPU seconds (.ci/run)

A slower or a busier machine needs more CPU seconds for the same: so does a fixed piece of work after each file. A run
of a part costs less than the whole, and never fails.

tests/conftest.py registers this module with pytest.
"""

import collections
import functools
import json
import os
import re
import statistics
import time

import pytest

from tests.support import ROOT, warm
from tests.support.tiers import tier

FILE = ROOT / "tests/durations.json"
#: So many times the committed CPU seconds fail.
_TOO_MUCH = 1.1

_spent = collections.defaultdict(lambda: [0.0, 0.0])  # name -> CPU seconds, seconds
_work_s = []  # CPU seconds of `_fixed_work`, after each file


def pytest_addoption(parser):
    parser.addoption("--costs", choices=("check", "write"), help="compare with tests/durations.json, or write it")


@functools.cache
def committed():
    """The file: `files`, name -> CPU seconds, seconds; and `work_s`, the fixed work's CPU seconds meanwhile."""
    return json.loads(FILE.read_text("utf-8"))


def _name(item):
    return f"{item.nodeid.partition('::')[0]} {tier(item)}".rstrip()


def seconds(items):
    """How long the tests of a list take, by file; 1 for what is not known."""
    found = collections.Counter()
    for path, name in {(item.path, _name(item)) for item in items}:
        found[path] += committed()["files"].get(name, (1, 1))[1]
    return found


def _cpu_s():
    """Of this process, of its children that have ended, and of its warm commands."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system + warm.spent_s()


def _fixed_work():
    begun, value, table = time.process_time(), 0, {}
    for number in range(100_000):
        table[number % 997] = value = (value * 31 + number) % 1_000_003
    return time.process_time() - begun


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """Counts a test, with the fixtures that begin or end with it."""
    cpu_s, begun = _cpu_s(), time.monotonic()
    try:
        return (yield)
    finally:
        _add({_name(item): (_cpu_s() - cpu_s, time.monotonic() - begun)})
        if nextitem is None or nextitem.path != item.path:
            _work_s.append(_fixed_work())


def _add(spent):
    for name, (cpu_s, took_s) in spent.items():
        _spent[name] = [_spent[name][0] + cpu_s, _spent[name][1] + took_s]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Adds what a worker has counted."""
    spent, work_s = getattr(node, "workeroutput", {}).get("costs", ({}, ()))
    _add(spent)
    _work_s.extend(work_s)


def pytest_sessionfinish(session):
    """A worker tells what it has counted; else it is written, or compared."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["costs"] = (dict(_spent), _work_s)
    elif config.option.costs == "write" and _spent:
        _write()
    elif config.option.costs == "check" and _spent and (wrong := dearer(committed(), _spent, _work_s)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        config.get_terminal_writer().line(f"\n{wrong}")


def dearer(then, spent, work_s):
    """What is wrong with a run's costs, or None."""
    slower = max(1.0, statistics.median(work_s) / then["work_s"])
    now = {name: cpu_s / slower for name, (cpu_s, _) in spent.items()}
    kinds = {name.partition(" ")[2] for name in now}
    known = {name: cpu_s for name, (cpu_s, _) in then["files"].items() if name.partition(" ")[2] in kinds}
    if sum(now.values()) <= _TOO_MUCH * sum(known.values()):
        return None
    most = sorted(now, key=lambda name: known.get(name, 0.0) - now[name])[:10]
    return "\n".join((
        f"The tests cost {sum(now.values()):.0f} CPU seconds, {sum(known.values()):.0f} by tests/durations.json:",
        *(f"{known.get(name, 0.0):7.1f} -> {now[name]:5.1f}  {name}" for name in most),
    ))  # fmt: skip


def _write():
    files = {name: took for name, took in committed()["files"].items() if (ROOT / name.partition(" ")[0]).exists()}
    files |= {name: [round(value, 1) for value in took] for name, took in _spent.items()}
    text = json.dumps({"work_s": round(statistics.median(_work_s), 5), "files": files}, indent=1, sort_keys=True)
    FILE.write_text(re.sub(r"\[\s+(\S+)\s+(\S+)\s+\]", r"[\1 \2]", text) + "\n")
