"""Training under real launchers on two machines: stopped, with a rank or a machine lost, resumed.

torchrun and mpirun have network namespaces, SLURM two nodes of this machine.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.support import ROOT, killing, missing, slurm, wait_until
from tests.support.mlflow_server import free_port
from tests.support.namespaces import namespaces
from tests.support.params import sets
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

# in each rank that `align` starts, too: it imports this file
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
    assert "rank 0 ends, as another one has ended or hangs: " in log() and "Traceback" not in log()
    (folder / "hold").unlink()
    cluster.start(slurm.NODES[1])
    resumed(training, whole)


def test_a_cancelled_job_is_not_requeued(training):
    job, _, log = training
    slurm.said("scancel", job)
    wait(lambda: slurm.jobs() == [], says=log)
    assert "starts again" not in log()
    assert "JobState=CANCELLED" in slurm.said("scontrol", "show", "job", job)


def test_each_task_of_a_step_is_told_its_place(cluster):
    code = (
        "from align.services.job import place_of_job; at = place_of_job(); "
        "print(at.rank, at.world_size, at.local_rank, at.local_world_size, at.host)"
    )
    tasks = slurm.said("srun", "--nodes=2", "--ntasks-per-node=2", sys.executable, "-c", code).splitlines()
    assert sorted(tasks) == [f"{rank} 4 {rank % 2} 2 {slurm.NODES[0]}" for rank in range(4)]


def test_a_mistake_fails_the_job_and_is_not_requeued(cluster, held):
    log = held.with_suffix(".log")
    options = ["--wait", f"--chdir={held}", f"--output={log}"]
    command = ["sbatch", *options, ROOT / "infra/slurm/train.sh", "pretrain", "--set", "pretrain.num_steps=-1 # x"]
    # srun says the highest code: 1 of the task that saw it first, or 143 of one that srun told to end meanwhile
    assert subprocess.run(command, check=False).returncode in (1, 143)
    assert "num_steps" in log.read_text() and "starts again" not in log.read_text()


def ranks_below(launcher):
    """The processes that train."""
    for process in launcher.children(recursive=True):
        with suppress(psutil.Error):
            _, *words = process.cmdline()
            if len(words) == 2 and words[0].endswith("/align") and words[1] == "pretrain":
                yield process


def listening(space):
    """The addresses at which anything listens in a network namespace."""
    sockets = subprocess.run(
        ["ip", "netns", "exec", space, "ss", "-Hltn"], stdout=subprocess.PIPE, text=True, check=True
    )
    return {line.split()[3].rpartition(":")[0] for line in sockets.stdout.splitlines()}


def align(spaces, tmp_path):
    """The command of each machine, which starts its rank itself."""
    cluster = sets("cluster.num_nodes=2", "cluster.rendezvous=10.77.0.1:29500", "pretrain.num_processes=1")
    nodes = ((space, sets(f"cluster.node_rank={number}")) for number, space in enumerate(spaces))
    return [["ip", "netns", "exec", space, "align", "pretrain", *cluster, *node] for space, node in nodes]


def torchrun(spaces, tmp_path):
    """The command of each machine."""
    options = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=10.77.0.1", "--master-port=29500"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *options, "--shutdown-timeout=60"]
    return [
        ["ip", "netns", "exec", space, *launcher, f"--node-rank={number}", "--no-python", "align", "pretrain"]
        for number, space in enumerate(spaces)
    ]


def mpirun(spaces, tmp_path):
    """One command, which reaches the other machine by a script instead of ssh."""
    if "Open MPI" not in subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout:
        missing("mpirun is not Open MPI's")
    agent, named = tmp_path / "agent", ["unshare", "--uts", "sh", "-c", 'hostname "$1"; shift; exec "$@"', "sh"]
    agent.write_text(f'#!/bin/sh\nshift\nexec ip netns exec {spaces[1]} unshare --uts sh -c "hostname second; $*"\n')
    agent.chmod(0o755)
    options = ["--allow-run-as-root", "--prtemca", "plm_ssh_agent", str(agent), "--host", "first:1,10.77.0.2:1"]
    mpi = ["mpirun", *options, "-np", "2", "--map-by", "ppr:1:node", "--bind-to", "none", "-x", "MASTER_ADDR=10.77.0.1"]
    return [["ip", "netns", "exec", spaces[0], *named, "first", *mpi, "align", "pretrain"]]


@pytest.mark.parametrize("launcher", [align, torchrun, mpirun])
def test_two_machines_stop_with_a_checkpoint_and_resume(tmp_path, held, whole, launcher):
    """One of the ranks is told to end, by its launcher if that leaves it the time."""
    if shutil.which("mpirun") is None and launcher is mpirun:
        missing("mpirun is not installed: apt-get install openmpi-bin")
    log = tmp_path / "log"
    with namespaces() as spaces, log.open("wb") as output:
        commands = launcher(spaces, tmp_path)

        def started():
            return [psutil.Popen(each, cwd=held, stdout=output, stderr=output) for each in commands]

        running = started()
        wait(lambda: checkpoints(held), says=log.read_text)
        if launcher is align:  # torchrun's store listens everywhere
            assert [*map(listening, spaces)] == [{"10.77.0.1"}, {"10.77.0.2"}]
        told = next(ranks_below(running[-1])) if launcher is mpirun else running[-1]
        told.terminate()
        wait(lambda: launcher is mpirun or " signal SIGTERM" in log.read_text(), says=log.read_text)
        (held / "hold").unlink()  # for the rank that nobody has told
        codes = [one.wait(200) for one in running]
        assert codes == {align: [143, 143], torchrun: [1, 1], mpirun: [143]}[launcher], log.read_text()
        stopped = set(re.findall(r"stopped by SIGTERM after step (\d) of 8; that step is saved", log.read_text()))
        assert [*map("step-0000000{}.pt".format, stopped)] == checkpoints(held), log.read_text()
        assert [one.wait(400) for one in started()] == [0] * len(commands), log.read_text()
    assert f"pretrain: resuming from step {stopped.pop()}" in log.read_text()
    assert killing.digests(held / "models/pretrained") == whole


def test_torchrun_starts_a_rank_that_dies_again(tmp_path, held, whole):
    claim, port = free_port()
    claim.close()
    options = ["--nproc-per-node=2", "--max-restarts=1", f"--master-port={port}", "--no-python"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "torch.distributed.run", *options, "align", "pretrain"]
        launcher = psutil.Popen(command, cwd=held, stdout=output, stderr=output)
        wait(lambda: checkpoints(held), says=log.read_text)
        [_, second] = ranks_below(launcher)
        second.kill()
        (held / "hold").unlink()
        assert launcher.wait(400) == 0, log.read_text()
    assert "pretrain: resuming from step 3" in log.read_text()
    assert killing.digests(held / "models/pretrained") == whole
