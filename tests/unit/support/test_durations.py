"""Tests are counted with their fixtures and children, and a dearer suite fails (tests/support/durations.py)."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import ROOT, durations

SETTINGS = """
from pathlib import Path
from tests.support import durations
durations.FILE, durations.ROOT = Path("durations.json"), Path()
"""
TESTS = """
import subprocess, sys, pytest
WORK = "import time; begun = time.process_time()\\nwhile time.process_time() - begun < {}: pass"

@pytest.fixture(scope="module")
def shared():
    exec(WORK.format(0.2))

def test_itself(shared):
    pass

def test_child():
    subprocess.run([sys.executable, "-c", WORK.format(0.3)], check=True)

@pytest.mark.kill
def test_kill():
    pass
"""


@pytest.fixture
def suite(tmp_path):
    """A function that runs two files of tests; returns what was printed last."""
    (tmp_path / "conftest.py").write_text(SETTINGS)
    (tmp_path / "test_dear.py").write_text(TESTS)
    for name in ("test_cheap.py", "test_left_out.py"):
        (tmp_path / name).write_text("def test_it(): pass")

    def run(*words):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.durations", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, "-o", "markers=kill", "--rootdir", ".", *words], cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    return run


def write(file, **files):
    file.write_text(json.dumps({"work_s": 1000.0, "files": {f"test_{name}.py": took for name, took in files.items()}}))


def test_what_ran_is_written_and_the_rest_stays(suite, tmp_path):
    file = tmp_path / "durations.json"
    write(file, dear=[0.0, 0.0], gone=[9.0, 9.0], left_out=[5.0, 7.0])
    code, said = suite(
        "-n", "2", "--dist", "loadscope", "-m", "not kill", "--costs", "write", "test_dear.py", "test_cheap.py"
    )
    assert code == 0, said
    written = json.loads(file.read_text())
    assert [*written["files"]] == ["test_cheap.py", "test_dear.py", "test_left_out.py"]
    assert min(written["files"]["test_dear.py"]) >= 0.5 and written["files"]["test_left_out.py"] == [5.0, 7.0]
    assert 0 < written["work_s"] < 1000


def test_a_dearer_suite_fails_where_it_is_asked(suite, tmp_path):
    write(tmp_path / "durations.json", dear=[0.1, 0.1], cheap=[0.1, 0.1])
    assert suite()[0] == 0
    code, said = suite("--costs", "check")
    assert code == 1 and "CPU seconds, 0 by tests/durations.json:" in said and "  test_dear.py" in said


def test_a_part_another_kind_of_tests_and_a_slower_machine_do_not_fail():
    then = {"work_s": 0.01, "files": {"a": [10.0, 0.0], "b": [10.0, 0.0], "a kill": [99.0, 0.0]}}
    assert durations.dearer(then, {"a": (21.9, 0), "b": (0, 0)}, [0.01]) is None
    assert durations.dearer(then, {"a": (21.9, 0)}, [0.01]) is None
    assert durations.dearer(then, {"a": (43.8, 0)}, [0.01, 0.02, 0.03]) is None
    assert durations.dearer(then, {"a": (22.1, 0)}, [0.001]).splitlines()[1:] == ["   10.0 ->  22.1  a"]
    assert durations.dearer(then, {"a": (12.0, 0), "new": (12.0, 0)}, [0.01]).splitlines()[1].endswith("  new")
    assert durations.dearer(then, {"a kill": (108.0, 0)}, [0.01]) is None
