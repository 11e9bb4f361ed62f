"""A test that hangs ends, and says what it waited for (tests/support/time_limits.py)."""

import subprocess
import sys

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


@pytest.mark.parametrize(("text", "code", "said"), [
    (WAITS_FOR_A_COMMAND, 1, ["out of time: killed process", "b'the last words", "1 failed, 1 passed"]),
    (HANGS_FOR_GOOD, 3, ["test_thread hangs for good", "Thread 0x", "in wait"]),
], ids=["command", "for good"])  # fmt: skip
def test_a_test_that_hangs_ends(tmp_path, text, code, said):
    (tmp_path / "test_it.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 4\n")
    words = [sys.executable, "-m", "pytest", "-p", "tests.support.time_limits", "-p", "no:cacheprovider", tmp_path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == code, done.stdout + done.stderr
    assert all(words in done.stdout + done.stderr for words in said), done.stdout + done.stderr
