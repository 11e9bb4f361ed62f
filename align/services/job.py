"""The machines and ranks of a job, as torchrun, SLURM, MPI or Kubeflow tell each process in its environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from align.config.infrastructure import ClusterConfig
from align.display.console import say
from align.errors import ConfigError

#: The port of node 0, if nothing names one. In a SLURM job one of the thousand above it, by the number of the job.
_PORT = 29500
#: Of Open MPI; of MPICH and Intel MPI: the rank, how many there are, and both on this machine.
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_Variables = Mapping[str, str]


@dataclass(frozen=True)
class Seat:
    """This process among those that a launcher has started on its machine. Of several each is a rank.

    Attributes:
        number: from 0.
        of: how many they are.
        ranks: that it starts; None: as params.yaml says, or one for each GPU.
        ranks_on_cpus: that it starts if params.yaml does not say, and there is no GPU; None: one for each core.
    """

    number: int = 0
    of: int = 1
    ranks: int | None = None
    ranks_on_cpus: int | None = None


ALONE = Seat()
#: Who names it; its number, and of how many; HOST:PORT of the first.
_Place = tuple[str, int, int, str, Seat]


def cluster_of_job(cluster: ClusterConfig, environment: _Variables = os.environ) -> tuple[ClusterConfig, Seat]:
    """The machines to train on: those of params.yaml, or those of the job if it names only one machine.

    Where each process is a rank, each counts as a machine with one rank.

    Args:
        cluster: as params.yaml says.
        environment: of this process.

    Raises:
        ConfigError: the variables leave a place open, or contradict each other.
    """
    if cluster.num_nodes > 1 or cluster.rendezvous is not None:
        return cluster, ALONE
    place = _torchrun(environment) or _mpi(environment) or _slurm(environment) or _pods(environment)
    if place is None:
        return cluster, ALONE
    by, number, count, first, seat = place
    values = {"num_nodes": count, "node_rank": number, "rendezvous": first}
    try:
        found = ClusterConfig.model_validate(cluster.model_dump() | values)
    except ValueError:
        raise ConfigError(f"{by} names place {number} of {count} at {first}; set cluster.num_nodes") from None
    say(f"{'machine' if seat.of == 1 else 'rank'} {number} of {count}, by {by}; node 0 is at {first}")
    return found, seat


def _torchrun(environment: _Variables) -> _Place | None:
    if "TORCHELASTIC_RUN_ID" not in environment:
        return None
    seat = _seat(environment, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    names = ("RANK", "WORLD_SIZE") if seat.of > 1 else ("GROUP_RANK", "GROUP_WORLD_SIZE")
    return _place("torchrun", environment, names, seat, above=1)  # torchrun's own store has the port


def _mpi(environment: _Variables) -> _Place | None:
    for rank, size, local_rank, local_size in _MPI:
        if rank in environment and (local_size in environment or "SLURM_STEP_NUM_NODES" not in environment):
            return _place("MPI", environment, (rank, size), _seat(environment, local_rank, local_size))
    return None


def _slurm(environment: _Variables) -> _Place | None:
    if "SLURM_STEP_NUM_NODES" not in environment:  # not started by srun
        return None
    nodes, tasks = _number(environment, "SLURM_STEP_NUM_NODES"), _number(environment, "SLURM_STEP_NUM_TASKS")
    if tasks == 1:
        return None
    host = first_host(environment.get("SLURM_STEP_NODELIST", "")) if nodes > 1 else "127.0.0.1"
    first = f"{host}:{_PORT + _number(environment, 'SLURM_JOB_ID') % 1000}"
    if tasks == nodes:
        return "SLURM", _number(environment, "SLURM_NODEID"), nodes, first, ALONE
    seat = Seat(_number(environment, "SLURM_LOCALID"), -(-tasks // nodes), ranks=1)
    return "SLURM", _number(environment, "SLURM_PROCID"), tasks, first, seat


def _pods(environment: _Variables) -> _Place | None:
    """Kubeflow's names, or those that torch itself reads, by whoever sets them."""
    by, *names, prefix = ("Kubeflow", "PET_NODE_RANK", "PET_NNODES", "PET_")
    if names[1] not in environment:
        by, *names, prefix = ("WORLD_SIZE", "RANK", "WORLD_SIZE", "")
    if not {"RANK", names[1]} & environment.keys():
        return None
    seat, each = Seat(ranks_on_cpus=1), environment.get("PET_NPROC_PER_NODE", "")
    if "LOCAL_RANK" in environment:
        seat = _seat(environment, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif each.isdecimal() and int(each) > 1:
        seat = Seat(ranks=int(each))
    return _place(by, environment, (names[0], names[1]), seat, prefix)


def _seat(environment: _Variables, number: str, of: str) -> Seat:
    several = _number(environment, of)
    return Seat(_number(environment, number), several, ranks=1) if several > 1 else Seat(ranks_on_cpus=1)


def _place(
    by: str, environment: _Variables, names: tuple[str, str], seat: Seat, prefix: str = "", above: int = 0
) -> _Place | None:
    count = _number(environment, names[1])
    if count == 1:
        return None
    host = "127.0.0.1" if seat.of == count else environment.get(f"{prefix}MASTER_ADDR")
    if not host:
        raise ConfigError(
            f"{prefix}MASTER_ADDR: the environment does not name the machine of rank 0, where the others find it "
            "(mpirun -x MASTER_ADDR=HOST); or set cluster.num_nodes"
        )
    name = f"{prefix}MASTER_PORT"
    port = _number(environment, name) if name in environment else _PORT
    return by, _number(environment, names[0]), count, f"{host}:{port + above}", seat


def first_host(hosts: str) -> str:
    """The first name of a list as SLURM writes it, such as gpu[003-007,12],login1."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", hosts)
    if first is None:
        raise ConfigError(f"SLURM_STEP_NODELIST: expected names of machines, found {hosts!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _number(environment: _Variables, name: str) -> int:
    value = environment.get(name, "")
    if not value.isdecimal():
        raise ConfigError(f"{name}: expected a number in the environment, found {value!r}; or set cluster.num_nodes")
    return int(value)
