"""The machines of a job, from the variables of SLURM and torchrun."""

import pytest

from align.config.infrastructure import ClusterConfig
from align.errors import ConfigError
from align.services.job import cluster_of_job, first_host
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


def place(environment: dict[str, str], cluster: ClusterConfig = CLUSTER) -> tuple[int, int, str | None]:
    found = cluster_of_job(cluster, environment)
    assert found.patience_s == cluster.patience_s and found.pools == cluster.pools
    return found.num_nodes, found.node_rank, found.rendezvous


def test_a_job_of_several_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert place(SLURM) == (3, 2, "gpu003:29623")
    assert "machine 2 of 3, by SLURM; node 0 is at gpu003:29623" in capsys.readouterr().err
    assert place(TORCHRUN) == (2, 1, "10.0.0.7:29401")
    assert place(SLURM | TORCHRUN) == (2, 1, "10.0.0.7:29401")  # torchrun in a SLURM step has started this process


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3", "SLURM_NODEID": "0"},  # a batch script, not yet srun
        SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "1"},
        TORCHRUN | {"GROUP_WORLD_SIZE": "1", "GROUP_RANK": "0"},
    ],
)
def test_one_machine_stays_one(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster_of_job(CLUSTER, environment) is CLUSTER
    assert capsys.readouterr().err == ""


def test_params_yaml_wins() -> None:
    ours = CLUSTER.model_copy(update={"num_nodes": 2, "rendezvous": "10.0.0.1:29500"})
    assert cluster_of_job(ours, SLURM) is ours


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (SLURM | {"SLURM_STEP_NUM_TASKS": "24"}, "24 tasks on 3 machines; start one on each"),
        (SLURM | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "8"}, "8 tasks on 1 machines"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "8"}, "--nproc-per-node 1"),
        (SLURM | {"SLURM_NODEID": "two"}, "SLURM_NODEID: expected a number in the environment, found 'two'"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST: expected names"),
    ],
)
def test_what_cannot_work_is_said(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cluster_of_job(CLUSTER, environment)


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[07,09-11]-ib,x", "gpu07-ib"), ("rack[2-3]n[05-06]", "rack2n05")],
)
def test_first_host(hosts: str, first: str) -> None:
    assert first_host(hosts) == first
