"""What is asked of sbatch, and how its refusal is said. What SLURM makes of it: tests/integration/test_arrays.py."""

import os
from contextlib import nullcontext

import pytest

from align.errors import ServiceError
from align.interfaces.executor import Step
from align.services.executors.slurm import SlurmExecutor

STEP = Step(nullcontext, abs)


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


@pytest.mark.parametrize(
    ("num_items", "num_at_once", "array"),
    [(3, None, "0-2"), (3, 2, "0-2%2"), (2001, 7, "0-999%7")],
)
def test_a_refused_array_has_the_options_and_its_refusal_is_said(tmp_path, asked, num_items, num_at_once, array):
    executor = SlurmExecutor(tmp_path / "arrays", ["--partition=gpu9", "--mem=1G"], num_at_once)
    with pytest.raises(ServiceError, match=r"sbatch refuses: .*invalid partition specified: gpu9; see engine\.sbatch"):
        list(executor.map(STEP, range(num_items)))
    words = asked()
    assert f"--array={array}" in words and words[-3:-1] == ["--partition=gpu9", "--mem=1G"]
    assert "-m align.services.executors.slurm" in words[-1] and words[-1].startswith("--wrap=exec ")
    assert list((tmp_path / "arrays").iterdir()) == []


def test_no_array_is_asked_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    assert list(SlurmExecutor(tmp_path, [], 1).map(STEP, [])) == []


def test_a_machine_without_sbatch_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(ServiceError, match="sbatch does not start here"):
        list(SlurmExecutor(tmp_path, [], 1).map(STEP, [1]))
