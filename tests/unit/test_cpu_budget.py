"""A dear test fails; a cheap one and one with a reason pass; shared fixtures count apart: the budget of CPU seconds."""

import os
import re
import subprocess
import sys

import pytest

from tests.support import ROOT
from tests.support.cpu_budget import over_budget

TESTS = """
import subprocess, sys, time
import pytest
from tests.support import cpu_budget
cpu_budget.BUDGET_S, cpu_budget._REFERENCE_S, cpu_budget.TOLERANCE = 0.05, 100.0, 1.0  # no machine is slower

WORK = "import time; begun = time.process_time()\\nwhile time.process_time() - begun < {}: pass"

def work(seconds):
    exec(WORK.format(seconds))

@pytest.fixture(scope="module")
def dear():
    work(0.08)

@pytest.fixture(scope="module")
@cpu_budget.costs(5, "a reason")
def allowed():
    work(0.08)

def test_cheap():
    time.sleep(0.08)

def test_own_process():
    work(0.08)

def test_child():
    subprocess.run([sys.executable, "-c", WORK.format(0.08)], check=True)

@pytest.mark.costs(5, "a reason")
def test_reason():
    work(0.08)

def test_first_of_a_shared_fixture(allowed):
    work(0.02)

def test_dear_fixture(dear):
    pass
"""


def test_dear_tests_and_fixtures_fail(tmp_path):
    (tmp_path / "test_costs.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.cpu_budget", "-p", "no:cacheprovider",
         "-o", "markers=full\ncosts", "--rootdir", ".", "."],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_XDIST_WORKER": "gw0"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert set(re.findall(r"^ERROR test_costs.py::(\w+)", done.stdout, re.MULTILINE)) == {
        "test_own_process", "test_child", "test_dear_fixture",
    }  # fmt: skip
    assert "5 passed" in done.stdout and " failed" not in done.stdout  # the tests' own assertions passed


def test_budget_grows_with_a_slower_machine():
    assert over_budget(6.0, 2.0) is None
    refused = "costs 7.0 CPU seconds, 2 are allowed (tests/support/cpu_budget.py)"
    assert over_budget(7.0, 2.0, lambda: 0.0) == refused
    assert over_budget(7.0, 2.0, lambda: 0.04) is None  # half as fast
    assert over_budget(13.0, 2.0, lambda: 0.04) is not None


WAITS_FOR_A_COMMAND = """
import subprocess
def test_command():
    with subprocess.Popen(["sh", "-c", "echo the last words; exec sleep 600"], stdout=subprocess.PIPE) as process:
        out, _ = process.communicate()
        assert process.returncode == 0, out
def test_next():
    pass
"""
HANGS_FOR_GOOD = """
import threading
from concurrent.futures import ThreadPoolExecutor
def test_thread():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(threading.Event().wait).result()
"""


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (WAITS_FOR_A_COMMAND, 1, ["out of time: killed process", "b'the last words", "1 failed, 1 passed"]),
        (HANGS_FOR_GOOD, 3, ["test_thread hangs for good", "Thread 0x", "in wait"]),
    ],
    ids=["command", "for good"],
)  # fmt: skip
def test_a_test_that_hangs_ends(tmp_path, text, code, said):
    (tmp_path / "test_it.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 4\nmarkers =\n  full\n  patience\n")
    words = [sys.executable, "-m", "pytest", "-p", "tests.support.time_limits", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == code, done.stdout + done.stderr
    assert all(words in done.stdout + done.stderr for words in said), done.stdout + done.stderr
