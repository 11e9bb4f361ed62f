"""Arrays of SLURM, by a stand-in for `sbatch`: results in order, lost tasks again, errors as they are."""

import os
from contextlib import nullcontext
from dataclasses import replace

import pytest

from align.errors import CorruptError, DataError, ServiceError
from align.interfaces.executor import Step
from align.services.executors.slurm import SlurmExecutor
from tests.support import slurm


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def executor(tmp_path, cluster):
    return SlurmExecutor(tmp_path / "arrays", ["--mem=1G"], 1)


def squared(_, number):
    if number == 7:
        raise CorruptError("seven is damaged")
    if number == 13:
        os._exit(9)
    return number * number


SQUARED = Step(nullcontext, squared)


def test_results_come_in_order_and_a_lost_task_is_tried_again(executor, cluster, tmp_path, capsys):
    (cluster / "lose").write_text("1")
    assert list(executor.map(SQUARED, [3, 1, 2])) == [9, 1, 4]
    first, second = (cluster / "calls").read_text().splitlines()
    assert "'--array=0-2%1'" in first and "'--mem=1G'" in first and "'--array=0-0%1'" in second
    assert "1 task(s) ended without a result, and are tried again" in capsys.readouterr().err
    assert list((tmp_path / "arrays").iterdir()) == []
    assert list(executor.map(SQUARED, [])) == []


def test_an_error_of_a_task_is_the_error_of_the_run(executor, cluster, tmp_path):
    with pytest.raises(CorruptError, match="seven is damaged"):
        list(executor.map(SQUARED, [1, 7]))
    assert len((cluster / "calls").read_text().splitlines()) == 1  # another try would find the same
    assert list((tmp_path / "arrays").iterdir()) == []


@pytest.mark.costs(6, "six tasks, each a process of its own")
def test_an_item_that_kills_its_tasks_is_named_or_left_out(executor):
    with pytest.raises(DataError, match="number 13: 3 tasks ended over it without a result; it has said nothing"):
        list(executor.map(replace(SQUARED, name_of="number {}".format), [13]))
    assert list(executor.map(replace(SQUARED, instead=abs), [13, 3])) == [13, 9]


def test_a_refusal_of_sbatch_and_a_machine_without_it_are_said(executor, cluster, monkeypatch):
    (cluster / "refuse").write_text("gpu9")
    with pytest.raises(ServiceError, match=r"sbatch refuses: .*invalid partition specified: gpu9; see engine\.sbatch"):
        list(executor.map(SQUARED, [1]))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(ServiceError, match="sbatch does not start here"):
        list(executor.map(SQUARED, [1]))
