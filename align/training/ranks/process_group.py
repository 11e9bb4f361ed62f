"""One process or several: launching the ranks, and the messages between them.

`align pretrain` starts its ranks itself, through torch's elastic launcher. With several machines, each runs the same
command (`cluster` in params.yaml). Ranks talk through gloo on CPUs and NCCL on GPUs.

Nothing here checks who connects, so the ranks of one machine listen on loopback only, and several machines on the
network interface of the rendezvous only. torch's own rendezvous listens on every interface, and anyone who reaches its
store can read and write the keys by which the ranks find each other. What comes from the network is read as numbers,
never unpickled.
"""

from __future__ import annotations

import datetime
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import DistStoreError, PrefixStore, TCPStore
from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout

from align.config.infrastructure import ClusterConfig
from align.config.recipe import even_ranks
from align.display.console import say
from align.durable.checkpoint import CheckpointFolder
from align.durable.cores import cores
from align.durable.processes import when_parent_ends
from align.errors import AlignError, StoppedError, TrainingError
from align.services.job import ALONE, Seat
from align.training.ranks.endings import Endings, RankOutcome, RestartError, left

LOOPBACK = "127.0.0.1"
#: How many times `patience_s` ranks wait for each other before their first step: they load, and may compile.
BEFORE_FIRST_STEP = 6
#: One machine, without restarts.
_ALONE = {"num_nodes": 1, "node_rank": 0, "rendezvous": None, "max_restarts": 0, "patience_s": 300, "stop_s": 30}


def listen(endpoint: str) -> socket.socket:
    """Opens the socket of the store at HOST:PORT, and on no other address; port 0 takes a free one.

    Raises:
        TrainingError: this machine has no such address, or the port is taken.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        return socket.create_server((host, int(port)))
    except OSError as error:
        raise TrainingError(
            f"node 0 cannot listen at {endpoint}: {error.strerror or error}; cluster.rendezvous must be an address of "
            "node 0, and a free port"
        ) from None


def use_interface_to(endpoint: str) -> None:
    """Has gloo and NCCL listen on the interface through which this machine reaches HOST:PORT.

    Left to themselves, gloo takes the interface of the host name, and NCCL any. With several machines the variables
    GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME win, for a network of their own.
    """
    name = _interface_to(endpoint)
    if name is None:
        return
    for variable, value in (("GLOO_SOCKET_IFNAME", name), ("NCCL_SOCKET_IFNAME", f"={name}")):
        if variable not in os.environ or endpoint.startswith(f"{LOOPBACK}:"):
            os.environ[variable] = value


def _interface_to(endpoint: str) -> str | None:
    """The name of the interface; nothing is sent."""
    host, _, port = endpoint.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))
        except OSError:
            return None
        address = probe.getsockname()[0]
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, of in interfaces if any(one.address == address for one in of)), None)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers; `patience_s`: how long they wait for each other, None: as long as torch does."""

    rank: int
    world_size: int
    device: torch.device
    patience_s: float | None = None

    def in_step(self) -> None:
        """From now on no message of this rank waits longer than `patience_s` for the others; until now, longer."""
        if self.world_size > 1 and self.patience_s is not None:
            set_timeout(datetime.timedelta(seconds=self.patience_s))

    def alone(self) -> Ranks:
        """This rank as if there were no others."""
        return Ranks(0, 1, self.device)

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and progress lines."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks get the same answer."""
        return flag if self.world_size == 1 else bool(self.max(torch.tensor(float(flag), device=self.device)) > 0)

    def barrier(self) -> None:
        """Waits for the other ranks."""
        if self.world_size > 1:
            dist.barrier()

    def gather(self, tensor: Tensor) -> Tensor:
        """(B, ...) of this rank -> (B * world_size, ...) of all, in rank order. Not differentiable, like the others."""
        if self.world_size == 1:
            return tensor
        everyone = tensor.new_empty((self.world_size * len(tensor), *tensor.shape[1:]))
        dist.all_gather(list(everyone.chunk(self.world_size)), tensor.contiguous())
        return everyone

    def gather_rows(self, rows: Tensor) -> Tensor:
        """(N, ...) on the CPU, N of each rank's own -> all ranks' rows, in rank order, on the CPU of each."""
        if self.world_size == 1:
            return rows
        counts = self.gather(torch.tensor([len(rows)], device=self.device)).tolist()
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        everyone = self.gather(padded.to(self.device)).cpu().chunk(self.world_size)
        return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])

    def sum(self, tensor: Tensor) -> Tensor:
        """The element-wise sum over all ranks; the tensor itself if there is only one rank."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """The element-wise maximum over all ranks."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        if self.world_size == 1:
            return tensor
        result = tensor.clone()
        dist.all_reduce(result, operation)
        return result

    def scatter_sum(self, tensor: Tensor) -> Tensor:
        """(B * world_size, ...) of each rank -> this rank's B rows of their sum."""
        if self.world_size == 1:
            return tensor
        part = tensor.new_empty((len(tensor) // self.world_size, *tensor.shape[1:]))
        dist.reduce_scatter(part, list(tensor.contiguous().chunk(self.world_size)))
        return part

    def lead(self, tensor: Tensor) -> None:
        """Replaces a tensor by the leading rank's."""
        if self.world_size > 1:
            theirs = tensor.contiguous()
            dist.broadcast(theirs, src=0)
            tensor.copy_(theirs)

    def start_sum(self, tensor: Tensor) -> Any:
        """Starts to replace a tensor by its sum over all ranks; the result has `wait()`, and the tensor is in use."""
        return dist.all_reduce(tensor, async_op=True)

    def start_max(self, tensor: Tensor) -> Any:
        """`start_sum` for the element-wise maximum."""
        return dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True)


def default_processes(batch_size: int, group: int, num_cores: int) -> int:
    """The number of ranks if `num_processes` is null: one per GPU or core, reduced until the batch divides evenly.

    One rank per core, because small towers give OpenMP's threads too little work to share
    (benchmarks/README.md). A warning says when a GPU stays idle.

    Args:
        batch_size: of the global batch.
        group: batch-norm group; each rank's part must be a multiple of it.
        num_cores: that may have ranks if there is no GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    most = gpus or num_cores
    chosen = even_ranks(batch_size, group, most)
    if chosen < gpus:
        say(
            f"warning: {chosen} of {gpus} GPUs train, the others are idle: a batch of {batch_size:,} divides into no "
            f"more parts that are multiples of model.batch_norm_group {group}; a batch_size that is a multiple of "
            f"{gpus * group} uses all"
        )
    return chosen


def launch(
    work: Callable[[Ranks], None], num_processes: int, num_threads: int | None, cluster: ClusterConfig | None = None,
    *, seat: Seat = ALONE, saves: CheckpointFolder | None = None,
) -> None:  # fmt: skip
    """Runs `work` on every rank and returns when all have ended.

    When a rank dies, torch's elastic agent ends the others and restarts all, at most `cluster.max_restarts` times in a
    row; `work` resumes from its last checkpoint. An AlignError counts as a result, not as a death: it ends all ranks
    and restarts nothing, even if only one rank has it, unless it is a RestartError.

    Args:
        work: picklable if there are several processes.
        num_processes: ranks that this process starts.
        num_threads: CPU threads per rank; None shares the machine's cores evenly.
        cluster: the machines; None: this one, without restarts.
        seat: this process among those of its machine.
        saves: the run's checkpoints, on the leading machine: see `align.training.ranks.rounds`.

    Raises:
        AlignError: the error that ended a rank.
        TrainingError: a rank died, or the machines could not connect.
    """
    threads = num_threads or max(1, cores(seat.of) // num_processes)
    if num_processes == 1 and (cluster is None or cluster.num_nodes == 1):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            work(Ranks(0, 1, _device(0)))
        finally:
            torch.set_num_threads(before)
        return
    from torch.distributed.elastic.multiprocessing import SignalException

    from align.training.ranks.rounds import Agent, Rounds

    cluster = cluster or ClusterConfig.model_validate(_ALONE | {"pools": {}})
    nodes, node = cluster.num_nodes, cluster.node_rank
    endpoint = (cluster.rendezvous if nodes > 1 else None) or f"{LOOPBACK}:0"
    listener = None
    if node == 0:
        listener = listen(endpoint)
        endpoint = f"{endpoint.rpartition(':')[0]}:{listener.getsockname()[1]}"
    scratch = tempfile.TemporaryDirectory(prefix="align-ranks-")  # torch would not remove its own
    ending = Path(scratch.name) / "ending.json"
    first_gpu = seat.number if torch.cuda.device_count() > 1 else 0  # a launcher may show each process its own only
    rounds = Rounds(endpoint, cluster, listener, saves)
    arguments = (work, threads, first_gpu, cluster.patience_s, endpoint, ending)
    agent = Agent(_worker, arguments, num_processes, rounds, scratch.name)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in signals}
    try:
        result = agent.run()
    except TrainingError as error:
        outcome = left(ending, endpoint)
        raise (_error(outcome) if outcome is not None else error) from None
    except SignalException as error:
        stopped = StoppedError if error.sigval == signal.SIGTERM else TrainingError
        raise stopped(f"training was stopped by {error.sigval.name}; run the stage again to resume") from None
    except (DistStoreError, TimeoutError) as error:
        first = str(error).strip().splitlines()[0]
        raise TrainingError(f"node {node} of {nodes} could not reach the others at {endpoint}: {first}") from None
    finally:
        rounds.shutdown()
        scratch.cleanup()
        for number, handler in handlers.items():  # the agent does not remove its own
            signal.signal(number, handler)
    for _, outcome in sorted(result.return_values.items()):  # they come in the order of their arrival
        if outcome is not None:
            raise _error(outcome)


def _worker(
    work: Callable[[Ranks], None], threads: int, first_gpu: int, patience_s: float, endpoint: str, ending: Path,
    number: int,
) -> RankOutcome:  # fmt: skip
    when_parent_ends(partial(os.kill, os.getpid(), signal.SIGTERM))
    torch.set_num_threads(threads)
    device = _device(first_gpu + int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL and FSDP read it there
    use_interface_to(endpoint)
    # the agents' store survives a restart, so each round has its own prefix: dead ranks' addresses are useless
    host, _, port = endpoint.rpartition(":")
    agents, attempt = TCPStore(host, int(port), is_master=False), str(number)
    store = PrefixStore(attempt, agents)
    rank, world_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    endings = Endings(agents, attempt, world_size, ending)
    if (outcome := endings.known()) is not None:  # this attempt would meet the same error
        return outcome
    os.environ["TORCH_DIST_INIT_BARRIER"] = "1"  # else a rank could end before another has connected to it
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world_size,
        timeout=datetime.timedelta(seconds=BEFORE_FIRST_STEP * patience_s),
        device_id=device if device.type == "cuda" else None,
    )  # fmt: skip
    try:
        work(Ranks(dist.get_rank(), dist.get_world_size(), device, patience_s))
    except RestartError as error:
        say(f"training process {rank}: {error}")
        os._exit(1)  # at once: the other ranks may wait for this one, and it for them
    except AlignError as error:
        return endings.own(error)
    except Exception as error:  # most often a lost connection, which follows from another rank's end
        outcome, is_lost = endings.known(), isinstance(error, dist.DistError) or "/gloo/" in str(error)
        if outcome is None and not is_lost:
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        say(f"training process {rank} ends, as another one has: {first}")
        if outcome is not None:
            endings.leave(outcome)
        os._exit(1)  # where a machine was lost, fifty lines of where each rank stood help nobody
    finally:
        dist.destroy_process_group()
    return None


def _error(outcome: tuple[str, str]) -> AlignError:
    import align.errors

    name, message = outcome
    error = getattr(align.errors, name, TrainingError)
    return (error if isinstance(error, type) and issubclass(error, AlignError) else TrainingError)(message)


def _device(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
