"""Which rank this process is, as torchrun, mpirun and srun tell each process that they start."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from align.errors import ConfigError

#: The port of rank 0, if nothing names one. In a SLURM job one of the thousand above it, by the number of the job.
_PORT = 29500
#: The rank, how many there are, and both on this machine: of torch, of Open MPI, of MPICH and Intel MPI, of SLURM.
_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OPEN_MPI = (
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
)  # fmt: skip
_MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES")


@dataclass(frozen=True)
class Place:
    """This process among the ranks that a launcher has started.

    Attributes:
        rank: from 0, of `world_size`.
        local_rank: from 0, of the `local_world_size` on this machine.
        host, port: where the ranks find each other; on the machine of rank 0.
        has_store: whether the launcher listens there, as torchrun does; else rank 0 does.
        attempt: how often the launcher has started the ranks before.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: str
    port: int
    has_store: bool = False
    attempt: str = "0"


def place_of_job(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Reads the place of this process; None if no launcher has started it, or this process alone. Raises ConfigError if
    the variables leave a place open, or contradict each other.
    """
    in_step = "SLURM_STEP_NUM_TASKS" in environment
    if "RANK" in environment or "WORLD_SIZE" in environment:
        names = _TORCH
    elif _OPEN_MPI[0] in environment:
        names = _OPEN_MPI
    elif _MPICH[0] in environment and (_MPICH[2] in environment or not in_step):  # `srun --mpi=pmi2` sets only two
        names = _MPICH
    elif in_step:
        names = _SLURM
    else:
        return None
    rank, size = (_number(environment, name) for name in names[:2])
    if size == 1:
        return None
    if names == _TORCH and names[2] not in environment:  # one process in each pod
        local_rank, local_size = 0, 1
    else:
        local_rank, local_size = (_number(environment, name) for name in names[2:])
        local_size = -(-size // max(1, local_size)) if names == _SLURM else local_size
    if rank >= size or local_rank >= local_size or local_size > size:
        raise ConfigError(f"{names[0]} {rank} of {size}, {names[2]} {local_rank} of {local_size}: no such rank")
    host, port = environment.get("MASTER_ADDR"), _PORT
    if names == _SLURM:
        host = host or ("127.0.0.1" if local_size == size else first_host(environment.get("SLURM_STEP_NODELIST", "")))
        port += _number(environment, "SLURM_JOB_ID") % 1000
    if not host and local_size < size:
        raise ConfigError(
            "MASTER_ADDR: the environment does not name the machine of rank 0, where the others find it "
            "(mpirun -x MASTER_ADDR=HOST)"
        )
    return Place(
        rank, size, local_rank, local_size, host or "127.0.0.1",
        _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else port,
        has_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )  # fmt: skip


def first_host(hosts: str) -> str:
    """The first name of a list as SLURM writes it, such as gpu[003-007,12],login1."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    if first is None:
        raise ConfigError(f"SLURM_STEP_NODELIST: expected names of machines, found {hosts!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise ConfigError(f"{name}: expected a number in the environment, found {value!r}")
    return int(value)
