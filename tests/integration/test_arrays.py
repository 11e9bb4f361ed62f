"""Arrays of a real SLURM: results in order, lost tasks again, errors as they are, and no longer than it takes."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest

from align.errors import CorruptError, DataError
from align.interfaces.executor import Task
from align.services.executors.slurm import SlurmExecutor
from tests.support import ROOT, slurm, wait_until
from tests.support.killing import digests, fresh
from tests.support.params import PARAMS_FILE

pytestmark = pytest.mark.cluster


@pytest.fixture
def executor(tmp_path, cluster):
    return SlurmExecutor(tmp_path / "arrays", ["--mem=1G"], None)


def squared(_, number):
    if number == 7:
        raise CorruptError("seven is damaged")
    if number == 13:
        os._exit(9)
    return number * number


def dies_once(marker, _, number):
    if number == 3 and not marker.exists():
        marker.touch()
        os._exit(9)
    return number * number


SQUARED = Task(nullcontext, squared)


def test_results_come_in_order_and_a_lost_task_is_tried_again(executor, tmp_path, capsys):
    assert list(executor.map(Task(nullcontext, partial(dies_once, tmp_path / "died")), [3, 1, 2])) == [9, 1, 4]
    assert "1 task(s) ended without a result, and are tried again" in capsys.readouterr().err
    assert list((tmp_path / "arrays").iterdir()) == []


def test_an_error_of_a_task_is_the_error_of_the_run(executor, tmp_path, capsys):
    with pytest.raises(CorruptError, match="seven is damaged"):
        list(executor.map(SQUARED, [1, 7]))
    assert "tried again" not in capsys.readouterr().err  # another try would find the same
    assert list((tmp_path / "arrays").iterdir()) == []


def test_an_item_that_kills_its_tasks_is_named_or_left_out(executor):
    with pytest.raises(DataError, match="number 13: 3 tasks ended over it without a result; "):
        list(executor.map(replace(SQUARED, name_of="number {}".format), [13]))
    assert list(executor.map(replace(SQUARED, instead=abs), [13, 3])) == [13, 9]


def test_an_array_is_left_when_its_results_are_there(executor, tmp_path, monkeypatch):
    """Not when sbatch has noticed its end, which asks at longer and longer intervals; here after a minute."""
    program = tmp_path / "bin/sbatch"
    program.parent.mkdir()
    waits = f"for _ in $(seq 600); do [ ! -e {tmp_path}/left ] || exit; sleep 0.1; done; touch {tmp_path}/noticed"
    program.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@"\n{waits}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert list(executor.map(SQUARED, [1, 2])) == [1, 4]
    (tmp_path / "left").touch()
    assert not (tmp_path / "noticed").exists()


def ingest(folder, *settings):
    values = (f"paths.archive={ROOT / 'data/sample/archive.warc.gz'}", "ingest.max_pages=10", *settings)
    words = [word for value in values for word in ("--set", value)]
    command = [sys.executable, "-m", "align.cli", "ingest", "--params", str(PARAMS_FILE), *words]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_cancels_its_array(cluster, tmp_path, number):
    folder = fresh(tmp_path / "cluster")
    slurm.said("scontrol", "update", "partitionname=cpu", "state=down")
    try:
        with ingest(folder, "engine.runner=slurm") as first:
            wait_until(lambda: any(" PENDING" in job for job in slurm.jobs()), alive=lambda: first.poll() is None)
            first.send_signal(number)
            errors = first.communicate(timeout=200)[1]
        assert first.returncode == 128 + number and "is cancelled" in errors, errors
        wait_until(lambda: slurm.jobs() == [])
    finally:
        slurm.said("scontrol", "update", "partitionname=cpu", "state=up")
    assert [path for path in folder.rglob("*") if "align-array" in path.name] == []
    with ingest(folder, "engine.runner=slurm") as again, ingest(fresh(tmp_path / "local")) as local:
        assert (again.wait(), local.wait()) == (0, 0)
    assert digests(folder / "data/raw") == digests(tmp_path / "local/data/raw") != {}
