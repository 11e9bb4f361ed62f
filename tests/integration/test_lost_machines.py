"""Ranks and machines that are lost, hang or are told to end: what it costs, and how long they have."""

import functools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.multiprocessing.spawn import ProcessContext

from align.config.infrastructure import ClusterConfig
from align.durable import checkpoint
from align.durable.checkpoint import CheckpointFolder
from align.errors import AlignError, StoppedError, TrainingError
from align.training.ranks import process_group, rounds
from align.training.ranks.process_group import Ranks, launch
from align.training.train import run, stop_requested
from tests.support import ROOT, killing, wait_until, warm
from tests.support.mlflow_server import free_port
from tests.support.params import load_params
from tests.support.training_data import RECIPE, plan, pretrain_config
from tests.support.training_project import write_project


def cluster(**values):
    return load_params().section(ClusterConfig).model_copy(update={"patience_s": 100, **values})


def _steps(root, last, deadly, ranks):
    """Steps that leave an empty checkpoint each; rank 1 dies at one of them."""
    (root / f"rank {ranks.rank} {os.getpid()}").touch()
    step = max(CheckpointFolder(root, 100).steps(), default=0)
    while step < last:
        step += 1
        if step == deadly and ranks.rank == 1:
            os._exit(7)
        dist.all_reduce(torch.zeros(1))
        if ranks.leads:
            (root / f"step-{step:08d}.pt").touch()
        time.sleep(0.05)


def node(root, number, port):
    """One of two machines, with a rank each, that may restart once; prints how the run ended."""
    place = {"num_nodes": 2, "node_rank": int(number), "rendezvous": f"127.0.0.1:{port}"}
    (Path(root) / f"node {number} {os.getpid()}").touch()
    saves = CheckpointFolder(Path(root), 100) if number == "0" else None
    try:
        launch(functools.partial(_steps, Path(root), 120, 0), 1, 1, cluster(**place, max_restarts=1), saves=saves)
        print("done")
    except AlignError as error:
        print(error)


def start(root, number, port):
    code = "import sys; from tests.integration.test_lost_machines import node; node(*sys.argv[1:])"
    with (root / f"{number}.stderr").open("a") as errors:
        return subprocess.Popen(
            [warm.commands() / "python", "-c", code, str(root), str(number), str(port)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=errors,
        )


def pids(root, number):
    """Of a machine and its rank."""
    return [int(path.name.split()[-1]) for name in ("node", "rank") for path in root.glob(f"{name} {number} *")]


@pytest.fixture
def port():
    claim, number = free_port()
    yield number
    claim.close()


def test_a_lost_machine_costs_one_restart_and_a_checkpoint_gives_it_back(tmp_path, port):
    """One restart is allowed; a machine is killed, then stops without a word, then node 0 is killed."""
    folder = CheckpointFolder(tmp_path, 100)
    nodes = {number: start(tmp_path, number, port) for number in (0, 1)}
    lost = []
    stopped = []
    began = time.monotonic()
    try:
        for number, gently in ((1, False), (1, True), (0, False)):
            further(folder, 3, (tmp_path / "0.stderr").read_text)
            lost.append(nodes[number])
            if gently:  # as without power: no connection is closed
                stopped = [psutil.Process(pid) for pid in pids(tmp_path, number) if killing.lives(pid)]
                for process in stopped:
                    process.suspend()
            else:
                warm.kill(nodes[number].pid)
            nodes[number] = start(tmp_path, number, port)
        said = [nodes[number].communicate(timeout=100)[0] for number in (0, 1)]
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for one in (*nodes.values(), *lost):
            warm.kill(one.pid) if one.poll() is None else None
            one.communicate()
    assert said == ["done\n"] * 2, (tmp_path / "0.stderr").read_text()
    assert time.monotonic() - began < 100  # no wait was as long as `patience_s`
    assert folder.steps()[-1] == 120


def further(folder, steps, says):
    """Waits until so many more have been made."""
    at = max(folder.steps(), default=0) + steps
    wait_until(lambda: max(folder.steps(), default=0) >= at, 60, says=says)


def test_a_rank_that_dies_at_the_same_step_again_and_again_ends_the_run(tmp_path):
    folder = CheckpointFolder(tmp_path, 100)
    with pytest.raises(TrainingError, match="died"):
        launch(functools.partial(_steps, tmp_path, 9, 3), 2, 1, cluster(max_restarts=1), saves=folder)
    assert folder.steps() == [1, 2] and len([*tmp_path.glob("rank 1 *")]) == 2


def _ends_slowly(root, seconds, ranks):
    """Rank 0 writes for some seconds after SIGTERM."""
    with stop_requested() as stopped:
        (root / f"{ranks.rank}").touch()
        while not stopped():
            time.sleep(0.05)
        time.sleep(seconds if ranks.leads else 0.0)
        (root / f"{ranks.rank} saved").touch()


def told_to_end(root, seconds, stop_s):
    """A machine of two ranks."""
    try:
        launch(functools.partial(_ends_slowly, Path(root), float(seconds)), 2, 1, cluster(stop_s=int(stop_s)))
    except StoppedError as error:
        print(error)


@pytest.mark.kill
@pytest.mark.parametrize(("stop_s", "seconds", "saves"), [(1, 6, False), (60, 33, True)])
def test_ranks_have_the_time_of_params_yaml_to_end(tmp_path, stop_s, seconds, saves):
    """torch's own limit is 30 s."""
    code = "import sys; from tests.integration.test_lost_machines import told_to_end; told_to_end(*sys.argv[1:])"
    command = [warm.commands() / "python", "-c", code, tmp_path, str(seconds), str(stop_s)]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: len([*tmp_path.iterdir()]) == 2)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        said, errors = process.communicate(timeout=100)
    assert "stopped by SIGTERM" in said, errors
    assert (tmp_path / "1 saved").exists()
    assert (tmp_path / "0 saved").exists() == saves
    assert time.monotonic() - began < seconds + 20  # nobody waits for a rank that has returned


def _dies_while_it_writes(root, ranks):
    """Rank 1 dies while rank 0 writes its first checkpoint, which takes four seconds."""
    save, folder = torch.save, CheckpointFolder(root, 2)

    def slowly(*arguments):
        (root / "begun").touch()
        time.sleep(4)
        save(*arguments)

    if folder.steps():
        return
    if ranks.rank == 1:
        wait_until((root / "begun").exists)
        os._exit(7)
    checkpoint.torch.save = slowly  # type: ignore[attr-defined]
    folder.save(1, {"x": torch.zeros(1)})
    with stop_requested():
        try:
            ranks.barrier()
        finally:
            folder.wait()


def test_a_checkpoint_is_written_to_its_end_when_another_rank_dies(tmp_path, monkeypatch):
    """As if torch killed the other ranks after one second instead of thirty."""
    join = ProcessContext._join_procs_with_timeout
    monkeypatch.setattr(ProcessContext, "_join_procs_with_timeout", lambda self, _: join(self, 1.0))
    monkeypatch.setattr(rounds, "_END_S", 1)
    folder = CheckpointFolder(tmp_path, 2)
    launch(functools.partial(_dies_while_it_writes, tmp_path), 2, 1, cluster(max_restarts=1), saves=folder)
    assert folder.steps() == [1] and not folder.is_writing()


class _ConnectsSlowly:
    """Work in a process whose rank 0 takes two seconds longer to connect to the others."""

    def __init__(self, root):
        self.connected = root / "connected"

    def __setstate__(self, state):
        self.__dict__ |= state
        connect = distributed_c10d._new_process_group_helper  # type: ignore[attr-defined]  # private

        def slowly(*arguments, **options):
            group = connect(*arguments, **options)
            if os.environ["RANK"] == "0":
                time.sleep(2)
                self.connected.touch()
            return group

        distributed_c10d._new_process_group_helper = slowly  # type: ignore[attr-defined]  # private

    def __call__(self, ranks):
        assert self.connected.exists()


def test_no_rank_ends_before_another_has_connected(tmp_path):
    launch(_ConnectsSlowly(tmp_path), 2, 1)


def _hangs(root, ranks):
    """Rank 1 is late before the first step, and hangs after it."""
    time.sleep(3.0 * ranks.rank)
    ranks.barrier()
    ranks.in_step()
    if ranks.rank == 1:
        time.sleep(600)
    began = time.monotonic()
    try:
        ranks.barrier()
    finally:
        (root / "waited").write_text(f"{time.monotonic() - began}")


def test_a_rank_that_hangs_ends_the_run_after_patience_s(tmp_path):
    with pytest.raises(TrainingError, match="training process 0 died"):
        launch(functools.partial(_hangs, tmp_path), 2, 1, cluster(patience_s=2, max_restarts=0))
    assert 1.9 < float((tmp_path / "waited").read_text()) < 8  # before the first step it would be 12


def test_ranks_are_in_a_hurry_after_their_first_step(data, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(Ranks, "in_step", lambda ranks: called.append(ranks))
    run(plan(data, tmp_path, pretrain_config(num_steps=4)))
    assert len(called) == 1


def test_nccl_is_told_its_gpu_and_its_patience(tmp_path, monkeypatch):
    """The second process of a machine, by the launcher's variables."""
    given = {}
    set_there = {"TORCH_DIST_INIT_BARRIER": "0"}  # and so taken away again
    for name, value in {"LOCAL_RANK": "0", "RANK": "1", "WORLD_SIZE": "2", **set_there}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(process_group, "when_parent_ends", lambda act: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **options: given.update(options, backend=backend))
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = (1, 1, 50.0, f"127.0.0.1:{store.port}", tmp_path / "ending", 1)
    process_group._worker(lambda ranks: given.update(ranks=ranks), *told)
    assert given["backend"] == "cpu:gloo,cuda:nccl" and given["device_id"] == torch.device("cuda", 1)
    assert given["timeout"].total_seconds() == 300 and given["ranks"].patience_s == 50.0


#: Of each process of two on this machine -> its variables.
LAUNCHERS = {
    "WORLD_SIZE": lambda rank, port: {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port},
    "SLURM": lambda rank, port: {
        "SLURM_JOB_ID": "4000123", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank, "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "gpu7",
    },
    "MPI": lambda rank, port: {
        "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": rank,
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_PORT": port,
    },
}  # fmt: skip


@pytest.mark.cluster
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_process_is_the_rank_that_its_launcher_names(data, tmp_path, monkeypatch, port, launcher):
    """Both in one checkout, as on a shared disk: the same bytes as two ranks of one process."""
    for name, processes in (("whole", 2), ("ranks", None)):
        (tmp_path / name).mkdir()
        write_project(tmp_path / name, data, RECIPE | {"num_processes": processes, "num_steps": 4})
    killing.run(["pretrain"], tmp_path / "whole")
    both = []
    for rank in ("0", "1"):
        with monkeypatch.context() as context:
            for name, value in LAUNCHERS[launcher](rank, str(port)).items():
                context.setenv(name, value)
            both.append(killing.Command(["pretrain"], tmp_path / "ranks"))
    for command in both:
        assert command.ended(200)
        command.require_success()
    assert f"of 2, by {launcher}; " in both[0].errors
    weights = killing.digests(tmp_path / "ranks/models/pretrained")
    assert weights == killing.digests(tmp_path / "whole/models/pretrained")


@pytest.mark.cluster
def test_torchrun_starts_a_process_for_each_rank(data, tmp_path, port):
    (tmp_path / "ranks").mkdir()
    write_project(tmp_path / "ranks", data, RECIPE | {"num_processes": None, "num_steps": 4})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [*torchrun, "--no-python", warm.commands() / "align", "pretrain"], cwd=tmp_path / "ranks",
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(f"rank {rank} of 2, by torchrun; node 0 is at 127.0.0.1:" in done.stderr for rank in (0, 1))
    assert "on 2 x cpu" in done.stderr and (tmp_path / "ranks/models/pretrained").exists()
