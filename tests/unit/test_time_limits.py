"""Tests that hang in every way known end, with the words of what they waited for."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

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
TOO_PATIENT = """
import pytest
@pytest.mark.timeout(301)
def test_patient():
    pass
"""
WITHOUT_FULL = """
import pytest
@pytest.mark.patience(1000, "a reason")
def test_patient():
    pass
"""
FULL = """
import pytest
@pytest.mark.full
@pytest.mark.patience(1000, "a reason")
def test_patient(request):
    assert request.node.get_closest_marker("timeout").args == (1000,)
@pytest.mark.full
def test_full(request):
    assert request.node.get_closest_marker("timeout").args == (600,)
"""


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (WAITS_FOR_A_COMMAND, 1, ["out of time: killed process", "b'the last words", "1 failed, 1 passed"]),
        (HANGS_FOR_GOOD, 3, ["test_thread hangs for good", "Thread 0x", "in wait"]),
        (TOO_PATIENT, 4, ["test_patient: see tests/support/time_limits.py"]),
        (WITHOUT_FULL, 4, ["test_patient: see tests/support/time_limits.py"]),
        (FULL, 0, ["2 passed"]),
    ],
    ids=["command", "for good", "too patient", "without full", "full"],
)  # fmt: skip
def test_a_test_that_hangs_ends(tmp_path: Path, text: str, code: int, said: list[str]) -> None:
    (tmp_path / "test_it.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 4\nmarkers =\n  full\n  patience\n")
    words = [sys.executable, "-m", "pytest", "-p", "tests.support.time_limits", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == code, done.stdout + done.stderr
    assert all(words in done.stdout + done.stderr for words in said), done.stdout + done.stderr
