"""The machines of a job, as SLURM or torchrun tell each process in its environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from align.config.infrastructure import ClusterConfig
from align.display.console import say
from align.errors import ConfigError

#: The port of node 0 in a SLURM job: this one, or one of the thousand above it, by the number of the job.
_PORT = 29500


def cluster_of_job(cluster: ClusterConfig, environment: Mapping[str, str] = os.environ) -> ClusterConfig:
    """The machines to train on: those of params.yaml, or those of the job if it names only one machine.

    In a SLURM step (`srun`) of several machines, and under torchrun on several, each machine must have one process: it
    starts a rank for each GPU itself.

    Args:
        cluster: as params.yaml says.
        environment: of this process.

    Raises:
        ConfigError: a machine has several processes, or a variable is not a number.
    """
    if cluster.num_nodes > 1 or cluster.rendezvous is not None:
        return cluster
    found = _torchrun(environment) or _slurm(environment)
    if found is None:
        return cluster
    by, nodes, node, rendezvous = found
    say(f"machine {node} of {nodes}, by {by}; node 0 is at {rendezvous}")
    values = {"num_nodes": nodes, "node_rank": node, "rendezvous": rendezvous}
    return ClusterConfig.model_validate(cluster.model_dump() | values)


def _torchrun(environment: Mapping[str, str]) -> tuple[str, int, int, str] | None:
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    if _number(environment, "LOCAL_WORLD_SIZE") > 1:
        raise ConfigError(
            "torchrun started several processes on this machine; give it --nproc-per-node 1, or leave it out: align "
            "starts a rank for each GPU itself (pretrain.num_processes)"
        )
    nodes = _number(environment, "GROUP_WORLD_SIZE")
    if nodes == 1:
        return None
    port = _number(environment, "MASTER_PORT") + 1  # torchrun's own store has that port
    return "torchrun", nodes, _number(environment, "GROUP_RANK"), f"{environment['MASTER_ADDR']}:{port}"


def _slurm(environment: Mapping[str, str]) -> tuple[str, int, int, str] | None:
    if "SLURM_STEP_NUM_NODES" not in environment:  # not started by srun
        return None
    nodes, tasks = _number(environment, "SLURM_STEP_NUM_NODES"), _number(environment, "SLURM_STEP_NUM_TASKS")
    if tasks > nodes:
        raise ConfigError(
            f"SLURM started {tasks} tasks on {nodes} machines; start one on each (srun --ntasks-per-node=1): align "
            "starts a rank for each GPU itself (pretrain.num_processes)"
        )
    if nodes == 1:
        return None
    first = first_host(environment.get("SLURM_STEP_NODELIST", ""))
    port = _PORT + _number(environment, "SLURM_JOB_ID") % 1000
    return "SLURM", nodes, _number(environment, "SLURM_NODEID"), f"{first}:{port}"


def first_host(hosts: str) -> str:
    """The first name of a list as SLURM writes it, such as gpu[003-007,12],login1."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    if first is None:
        raise ConfigError(f"SLURM_STEP_NODELIST: expected names of machines, found {hosts!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise ConfigError(f"{name}: expected a number in the environment, found {value!r}; or set cluster.num_nodes")
    return int(value)
