"""The rank that a process is, from the variables of its launcher."""

import pytest

from align.errors import ConfigError
from align.services.job import Place, first_host, place_of_job

TORCHRUN = {
    "RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "29400", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "1",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}  # fmt: skip
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
SLURM = {
    "SLURM_JOB_ID": "4000123", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NUM_TASKS": "24", "SLURM_PROCID": "17",
    "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[003-004,12]",
}  # fmt: skip
POD = {"RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
MASTER = {"MASTER_ADDR": "10.0.0.7"}


def test_each_process_is_the_rank_that_its_launcher_names():
    of_torchrun = Place(11, 16, 3, 8, "10.0.0.7", 29400, has_store=True, attempt="1")
    assert place_of_job(TORCHRUN) == place_of_job(SLURM | TORCHRUN) == of_torchrun  # in a step
    assert place_of_job(POD) == Place(1, 16, 0, 1, "job-master-0", 23456)
    of_step = Place(17, 24, 1, 8, "gpu003", 29623)
    assert place_of_job(SLURM) == place_of_job(SLURM | {"PMI_RANK": "17", "PMI_SIZE": "24"}) == of_step  # --mpi=pmi2
    assert place_of_job(SLURM | MASTER | {"MASTER_PORT": "1"}) == Place(17, 24, 1, 8, "10.0.0.7", 1)
    for mpi in (OPEN_MPI, MPICH, SLURM | OPEN_MPI, SLURM | MPICH):  # mpirun starts its daemons by srun
        place = place_of_job(mpi | MASTER)
        assert place is not None and (place.rank, place.world_size, place.local_rank) == (5, 8, 1)
        assert (place.local_world_size, place.host, place.port) == (4, "10.0.0.7", 29500)
    here = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}
    assert place_of_job(OPEN_MPI | here) == Place(1, 4, 1, 4, "127.0.0.1", 29500)


@pytest.mark.parametrize("environment", [
    {},
    {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3", "SLURM_PROCID": "0"},  # a batch script, not yet srun
    SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"},
    OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
])  # fmt: skip
def test_a_process_alone_starts_its_ranks_itself(environment):
    assert place_of_job(environment) is None


@pytest.mark.parametrize(("environment", "message"), [
    ({"RANK": "1"}, "WORLD_SIZE: expected a number in the environment, found ''"),
    ({"WORLD_SIZE": "2", "MASTER_ADDR": "pod-0"}, "RANK: expected a number"),
    (POD | {"RANK": "16"}, "RANK 16 of 16"),
    (POD | {"LOCAL_RANK": "3"}, "LOCAL_WORLD_SIZE: expected a number"),
    (TORCHRUN | {"LOCAL_RANK": "8"}, "LOCAL_RANK 8 of 8"),
    (OPEN_MPI, "MASTER_ADDR: the environment does not name the machine of rank 0"),
    ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "MPI_LOCALRANKID: expected a number"),
    (SLURM | {"SLURM_LOCALID": "two"}, "SLURM_LOCALID: expected a number in the environment, found 'two'"),
    (SLURM | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST: expected names"),
])  # fmt: skip
def test_what_cannot_work_is_said(environment, message):
    with pytest.raises(ConfigError, match=message):
        place_of_job(environment)


@pytest.mark.parametrize(("hosts", "first"), [
    ("n1", "n1"), ("n1,n2", "n1"), ("gpu[07,09-11]-ib,x", "gpu07-ib"), ("rack[2-3]n[05-06]", "rack2n05"),
])  # fmt: skip
def test_first_host(hosts, first):
    assert first_host(hosts) == first
