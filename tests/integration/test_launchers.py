"""Training under a real SLURM of two nodes: stopped, requeued, with a node lost."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support import ROOT, killing, slurm, wait_until
from tests.support.training_data import RECIPE
from tests.support.training_project import write_project

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]  # each job starts and imports torch four times
#: On a machine that does other work, too.
wait = partial(wait_until, timeout_s=800)

#: `align` that waits with its fifth step for SIGTERM, or until a file `hold` has gone. With a file `slow` a checkpoint
#: takes longer than KillWait, which is what SLURM grants to the tasks that are left when one has ended.
SLOW = """#!{python}
import contextlib, pathlib, sys, time
import torch
from align.cli import main
from align.training import train
from align.training.state import State

save, update, stop_requested, stops = torch.save, State.update, train.stop_requested, []

def slow_save(*arguments):
    if pathlib.Path("slow").exists():
        time.sleep({save_s})
    save(*arguments)

def held_update(state, gradients):
    while state.step == 4 and pathlib.Path("hold").exists() and not stops[0]():
        time.sleep(0.1)
    update(state, gradients)

@contextlib.contextmanager
def noted():
    with stop_requested() as stopped:
        stops.append(stopped)
        yield stopped

# in each rank, too: it imports this file
torch.save, State.update, train.stop_requested = slow_save, held_update, noted
if __name__ == "__main__":
    sys.exit(main())
"""


def project(folder, data, **recipe):
    folder.mkdir()
    write_project(folder, data, RECIPE | {"keep_checkpoints": 1} | recipe)
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The model that an uninterrupted run of two ranks makes."""
    folder = project(tmp_path_factory.mktemp("whole") / "project", data, num_processes=2)
    killing.run(["pretrain"], folder)
    return killing.digests(folder / "models/pretrained")


@pytest.fixture
def held(data, tmp_path, monkeypatch):
    """A folder to train in, with `hold`; `align` is SLOW."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/align"
    program.write_text(SLOW.format(python=sys.executable, save_s=3 * slurm.KILL_WAIT_S))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    folder = project(tmp_path / "project", data)
    (folder / "hold").touch()
    return folder


def checkpoints(folder):
    return [path.name for path in folder.glob("checkpoints/*/step-*.pt")]


@pytest.fixture
def training(cluster, held):
    """A job of infra/slurm/train.sh that has made a checkpoint: its number, its folder, and what reads its log."""
    folder = held
    options = ["--parsable", f"--chdir={folder}", f"--output={folder}.log"]
    job = slurm.said("sbatch", *options, str(ROOT / "infra/slurm/train.sh"), "pretrain").strip()
    log = Path(f"{folder}.log")
    wait(lambda: checkpoints(folder), says=log.read_text)
    return job, folder, log.read_text


def resumed(training, whole):
    """Waits for the end of the job, which has started again by itself."""
    _, folder, log = training
    wait(lambda: slurm.jobs() == [], says=log)
    assert "pretrain: resuming from step " in log()
    assert killing.digests(folder / "models/pretrained") == whole, log()


def test_training_that_is_stopped_saves_for_longer_than_killwait_and_is_requeued(training, whole):
    job, folder, log = training
    (folder / "slow").touch()
    slurm.said("scancel", "--batch", "--signal=USR1", job)  # as --signal does before the time limit
    wait(lambda: "starts again" in log(), says=log)
    (folder / "slow").unlink()
    (folder / "hold").unlink()
    [saved] = checkpoints(folder)
    assert saved > "step-00000003.pt", log()
    resumed(training, whole)


def test_training_that_loses_a_node_is_requeued(cluster, training, whole):
    _, folder, log = training
    cluster.lose(slurm.NODES[1])
    wait(lambda: "RUNNING" not in " ".join(slurm.jobs()), says=log)
    # torch's lines are one for a rank that ended, not where it stood
    assert "another one has: " in log() and "Traceback" not in log()
    (folder / "hold").unlink()
    cluster.start(slurm.NODES[1])
    resumed(training, whole)


def test_a_cancelled_job_is_not_requeued(training):
    job, _, log = training
    slurm.said("scancel", job)
    wait(lambda: slurm.jobs() == [], says=log)
    assert "starts again" not in log()
    assert "JobState=CANCELLED" in slurm.said("scontrol", "show", "job", job)


@pytest.mark.parametrize(("nodes", "each"), [(1, 1), (2, 1), (2, 2)])
def test_each_task_of_a_step_is_told_its_place(cluster, nodes, each):
    code = (
        "from align.services.job import cluster_of_job; from tests.support.params import load_params; "
        "from align.config.infrastructure import ClusterConfig; "
        "place, seat = cluster_of_job(load_params().section(ClusterConfig)); "
        "print(place.node_rank, place.num_nodes, seat.number, seat.of, place.rendezvous)"
    )
    tasks = slurm.said("srun", f"--nodes={nodes}", f"--ntasks-per-node={each}", sys.executable, "-c", code)
    said = sorted(line.split() for line in tasks.splitlines())
    if nodes == each == 1:
        assert said == [["0", "1", "0", "1", "None"]]
        return
    assert len({rendezvous for *_, rendezvous in said}) == 1 and said[0][-1].startswith(f"{slurm.NODES[0]}:")
    seats = [(number % each, each) for number in range(nodes * each)]
    assert [tuple(map(int, numbers)) for *numbers, _ in said] == [
        (number, nodes * each, *seat) for number, seat in enumerate(seats)
    ]


def test_a_mistake_fails_the_job_and_is_not_requeued(cluster, held):
    log = held.with_suffix(".log")
    options = ["--wait", f"--chdir={held}", f"--output={log}"]
    command = ["sbatch", *options, ROOT / "infra/slurm/train.sh", "pretrain", "--set", "pretrain.num_steps=-1 # x"]
    # srun says the highest code: 1 of the task that saw it first, or 143 of one that srun told to end meanwhile
    assert subprocess.run(command, check=False).returncode in (1, 143)
    assert "num_steps" in log.read_text() and "starts again" not in log.read_text()
