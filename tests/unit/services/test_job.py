"""The machines and ranks of a job, from the variables of its launcher."""

import pytest

from align.config.infrastructure import ClusterConfig
from align.errors import ConfigError
from align.services.job import Seat, cluster_of_job, first_host
from tests.support.params import load_params

CLUSTER = load_params().section(ClusterConfig)
SLURM = {
    "SLURM_JOB_ID": "4000123", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NUM_TASKS": "3", "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "gpu[003-004,12]",
}  # fmt: skip
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29400",
}  # fmt: skip


OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}  # fmt: skip
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
POD = {"RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
KUBEFLOW = POD | {
    "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "8", "PET_MASTER_ADDR": "job-master-0",
    "PET_MASTER_PORT": "23456",
}  # fmt: skip
MASTER = {"MASTER_ADDR": "10.0.0.7"}


def place(environment):
    found, seat = cluster_of_job(CLUSTER, environment)
    assert found.patience_s == CLUSTER.patience_s and found.pools == CLUSTER.pools
    return found.num_nodes, found.node_rank, found.rendezvous, seat


def test_a_job_with_one_process_on_each_machine(capsys):
    """It starts a rank for each GPU; for each core only if nobody has counted ranks."""
    assert place(SLURM) == (3, 2, "gpu003:29623", Seat())
    assert "machine 2 of 3, by SLURM; node 0 is at gpu003:29623" in capsys.readouterr().err
    assert place(TORCHRUN) == (2, 1, "10.0.0.7:29401", Seat(ranks_on_cpus=1))
    assert place(SLURM | TORCHRUN) == place(TORCHRUN)  # torchrun in a step has started this process
    assert place(KUBEFLOW) == (2, 1, "job-master-0:23456", Seat(ranks=8))
    for each in ("1", "auto"):
        assert place(KUBEFLOW | {"PET_NPROC_PER_NODE": each})[3] == Seat(ranks_on_cpus=1)
    assert place(POD) == (16, 1, "job-master-0:23456", Seat(ranks_on_cpus=1))
    alone = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert place(alone | MASTER) == (8, 5, "10.0.0.7:29500", Seat(ranks_on_cpus=1))


def test_a_job_with_a_process_for_each_rank(capsys):
    ranks = {"LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "3", "RANK": "11", "WORLD_SIZE": "16"}
    assert place(TORCHRUN | ranks) == (16, 11, "10.0.0.7:29401", Seat(3, 8, 1))
    assert "rank 11 of 16, by torchrun; node 0 is at 10.0.0.7:29401" in capsys.readouterr().err
    here = {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0", "RANK": "3", "WORLD_SIZE": "8"}
    assert place(TORCHRUN | ranks | here) == (8, 3, "127.0.0.1:29401", Seat(3, 8, 1))
    assert place(POD | ranks) == (16, 11, "job-master-0:23456", Seat(3, 8, 1))
    tasks = {"SLURM_STEP_NUM_TASKS": "24", "SLURM_PROCID": "17", "SLURM_LOCALID": "1"}
    assert place(SLURM | tasks) == (24, 17, "gpu003:29623", Seat(1, 8, 1))
    pmi = {"PMI_RANK": "17", "PMI_SIZE": "24"}  # srun --mpi=pmi2
    assert place(SLURM | tasks | pmi) == (24, 17, "gpu003:29623", Seat(1, 8, 1))
    for mpi in (OPEN_MPI, MPICH, SLURM | OPEN_MPI, SLURM | MPICH):  # mpirun starts its daemons by srun
        assert place(mpi | MASTER) == (8, 5, "10.0.0.7:29500", Seat(1, 4, 1))
    here = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", "MASTER_PORT": "4711"}
    assert place(OPEN_MPI | here) == (4, 1, "127.0.0.1:4711", Seat(1, 4, 1))


@pytest.mark.parametrize("environment", [
    {},
    {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3", "SLURM_NODEID": "0"},  # a batch script, not yet srun
    SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"},
    TORCHRUN | {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"},
    POD | {"WORLD_SIZE": "1", "RANK": "0"},
    OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
])  # fmt: skip
def test_one_machine_stays_one(environment, capsys):
    assert cluster_of_job(CLUSTER, environment) == (CLUSTER, Seat())
    assert capsys.readouterr().err == ""


def test_params_yaml_wins():
    ours = CLUSTER.model_copy(update={"num_nodes": 2, "rendezvous": "10.0.0.1:29500"})
    assert cluster_of_job(ours, SLURM | POD) == (ours, Seat())


@pytest.mark.parametrize(("environment", "message"), [
    (SLURM | {"SLURM_STEP_NUM_TASKS": "24"}, "SLURM_LOCALID: expected a number"),
    (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "LOCAL_RANK: expected a number"),
    ({"RANK": "1"}, "WORLD_SIZE: expected a number"),
    ({"WORLD_SIZE": "2", "MASTER_ADDR": "pod-0"}, "RANK: expected a number"),
    ({"WORLD_SIZE": "2", "RANK": "1"}, "MASTER_ADDR: the environment does not name the machine of rank 0"),
    (POD | {"RANK": "16"}, "WORLD_SIZE names place 16 of 16 at job-master-0:23456"),
    (POD | {"LOCAL_RANK": "3"}, "LOCAL_WORLD_SIZE: expected a number"),
    (KUBEFLOW | {"PET_NNODES": "1:3"}, "PET_NNODES: expected a number in the environment, found '1:3'"),
    (OPEN_MPI, "MASTER_ADDR: the environment does not name the machine of rank 0"),
    ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "MPI_LOCALNRANKS: expected a number"),
    (SLURM | {"SLURM_NODEID": "two"}, "SLURM_NODEID: expected a number in the environment, found 'two'"),
    (SLURM | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST: expected names"),
])  # fmt: skip
def test_what_cannot_work_is_said(environment, message):
    with pytest.raises(ConfigError, match=message):
        cluster_of_job(CLUSTER, environment)


@pytest.mark.parametrize(("hosts", "first"), [
    ("n1", "n1"), ("n1,n2", "n1"), ("gpu[07,09-11]-ib,x", "gpu07-ib"), ("rack[2-3]n[05-06]", "rack2n05"),
])  # fmt: skip
def test_first_host(hosts, first):
    assert first_host(hosts) == first
