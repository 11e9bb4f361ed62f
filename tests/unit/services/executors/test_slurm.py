"""What is asked of sbatch, and how its refusal is said. What SLURM makes of it: tests/integration/test_arrays.py."""

import io
import os
import shlex
from contextlib import nullcontext
from pathlib import Path

import pytest

from align.errors import ServiceError
from align.interfaces.executor import Task
from align.services.executors import slurm
from align.services.executors.slurm import SlurmExecutor


def size(_, number):
    return abs(number)


TASK = Task(nullcontext, size)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The words that sbatch, the only program on PATH, was called with; it refuses."""
    program = tmp_path / "bin/sbatch"
    program.parent.mkdir()
    refusal = "sbatch: error: invalid partition specified: gpu9"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\necho "{refusal}" >&2\nexit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return lambda: (tmp_path / "asked").read_text().splitlines()


@pytest.mark.parametrize(("num_items", "num_at_once", "array"), [
    (3, None, "0-2"), (3, 2, "0-2%2"), (2001, 7, "0-999%7"),
])  # fmt: skip
def test_a_refused_array_has_the_options_and_its_refusal_is_said(tmp_path, asked, num_items, num_at_once, array):
    executor = SlurmExecutor(tmp_path / "arrays", ["--partition=gpu9", "--mem=1G"], num_at_once)
    with pytest.raises(ServiceError, match=r"sbatch refuses: .*invalid partition specified: gpu9; see engine\.sbatch"):
        list(executor.map(TASK, range(num_items)))
    words = asked()
    assert f"--array={array}" in words and words[-3:-1] == ["--partition=gpu9", "--mem=1G"]
    assert "-m align.services.executors.slurm" in words[-1] and words[-1].startswith("--wrap=exec ")
    assert list((tmp_path / "arrays").iterdir()) == []


class Here:
    """An array whose tasks are done here, one after the other, once `sbatch` has started."""

    def __init__(self, command, **_):
        last = next(word for word in command if word.startswith("--array=")).removeprefix("--array=0-")
        *_, array, attempt = shlex.split(command[-1].removeprefix("--wrap=exec "))
        for number in range(int(last) + 1):
            slurm._run_task(Path(array), int(attempt), number)
        self.stdout, self.stderr, self.terminate = io.StringIO("7;cluster\n"), io.StringIO(), list

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def poll(self):
        return 0


def test_tasks_share_what_exceeds_them(tmp_path, monkeypatch, small_blocks, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slurm.subprocess, "Popen", Here)
    assert list(SlurmExecutor(tmp_path / "arrays", [], None).map(TASK, [-3, 5, -8, 1, 0, -2, 9])) == [
        3, 5, 8, 1, 0, 2, 9,
    ]  # fmt: skip
    assert "tried again" not in capsys.readouterr().err


def test_no_array_is_asked_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert list(SlurmExecutor(tmp_path, [], 1).map(TASK, [])) == []


def test_a_machine_without_sbatch_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(ServiceError, match="sbatch does not start here"):
        list(SlurmExecutor(tmp_path, [], 1).map(TASK, [1]))
