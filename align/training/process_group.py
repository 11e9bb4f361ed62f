"""One process or several: launching, and what they tell each other.

`align pretrain` starts its ranks itself, through torch's elastic launcher; with several machines each of them runs that
same command (`cluster` in params.yaml). gloo on CPUs, NCCL on GPUs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import DistStoreError, PrefixStore, TCPStore  # type: ignore[attr-defined]  # torch's own names
from torch.distributed.tensor import DTensor

from align.config.cluster import ClusterConfig
from align.errors import AlignError, TrainingError

T = TypeVar("T")

#: What a worker returns: None, or the class name and message of the AlignError that ended it.
Outcome = tuple[str, str] | None


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on all of them."""
        if self.world_size == 1:
            return flag
        vote = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(vote)
        return bool(vote.item() > 0)

    def barrier(self) -> None:
        """Waits for the others."""
        if self.world_size > 1:
            dist.barrier()

    def gather(self, tensor: Tensor) -> Tensor:
        """(B, ...) of this rank -> (B * world_size, ...) of all, in rank order. Not differentiable, as all of these."""
        if self.world_size == 1:
            return tensor
        everyone = tensor.new_empty((self.world_size * len(tensor), *tensor.shape[1:]))
        dist.all_gather(list(everyone.chunk(self.world_size)), tensor.contiguous())
        return everyone

    def sum(self, tensor: Tensor) -> Tensor:
        """The element-wise sum over all ranks; the tensor itself where there is one."""
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

    def share(self, value: T) -> T:
        """The leading rank's value on all ranks. Pickled: for what is brought once."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def sum_gradients(self, module: nn.Module) -> None:
        """Replaces every gradient by its sum over ranks, in one message; those in shards are such sums already.

        A sum and no mean: the loss is that of the global batch, and each rank has its own rows' share of the gradient.
        """
        if self.world_size == 1:
            return
        found = [param.grad for param in module.parameters() if param.grad is not None]
        grads = [grad for grad in found if not isinstance(grad, DTensor)]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def default_processes(batch_size: int, group: int) -> int:
    """Ranks where none are asked for: one a GPU, or else one a core, and no more than the batch divides into.

    A rank per core, since towers this small are too short a work for OpenMP's threads to share
    (`benchmarks/ranks.py` measures it).

    Args:
        batch_size: of the global batch.
        group: batch-norm group; a rank's part is a multiple of it.
    """
    most = torch.cuda.device_count() if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    return next((count for count in range(most, 1, -1) if batch_size % (count * group) == 0), 1)


def launch(
    work: Callable[[Ranks], None], num_processes: int, num_threads: int | None, cluster: ClusterConfig | None = None
) -> None:
    """Runs `work` on every rank and returns when all have ended.

    When a rank dies, torch's elastic agent ends the others and starts all of them anew, as often as the cluster says:
    `work` goes on from its last checkpoint. An AlignError is an answer and no death; nothing is started anew for it.

    Args:
        work: picklable where there are several processes.
        num_processes: ranks on this machine.
        num_threads: CPU threads a rank; None shares the machine's cores evenly.
        cluster: the machines; None: this one, and no second try.

    Raises:
        AlignError: the one that ended a rank.
        TrainingError: a rank died, or the machines did not find each other.
    """
    threads = num_threads or max(1, len(os.sched_getaffinity(0)) // num_processes)
    if num_processes == 1 and (cluster is None or cluster.num_nodes == 1):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            work(Ranks(0, 1, _device(0)))
        finally:
            torch.set_num_threads(before)
        return
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    nodes, node, restarts = (cluster.num_nodes, cluster.node_rank, cluster.max_restarts) if cluster else (1, 0, 0)
    patience_s = cluster.patience_s if cluster else 60
    endpoint = (cluster.rendezvous if cluster else None) or f"127.0.0.1:{_free_port()}"
    scratch = tempfile.TemporaryDirectory(prefix="align-ranks-")  # the launcher would leave one of its own behind
    config = LaunchConfig(
        min_nodes=nodes, max_nodes=nodes, nproc_per_node=num_processes, run_id="align", rdzv_backend="static",
        rdzv_endpoint=endpoint, rdzv_configs={"rank": node, "timeout": patience_s}, max_restarts=restarts,
        start_method="spawn", monitor_interval=0.2, logs_specs=DefaultLogsSpecs(log_dir=scratch.name),
    )  # fmt: skip
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in signals}
    try:
        outcomes: dict[int, Outcome] = elastic_launch(config, _worker)(work, threads, endpoint)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TrainingError(
            f"training process {rank} died (exit code {failure.exitcode}); see its output above"
        ) from None
    except SignalException as error:
        raise TrainingError(f"training was stopped by {error.sigval.name}; run the stage again to go on") from None
    except (DistStoreError, TimeoutError) as error:
        first = str(error).strip().splitlines()[0]
        raise TrainingError(f"node {node} of {nodes} did not find the others at {endpoint}: {first}") from None
    finally:  # the launcher leaves its own handlers behind, which outlive the job that they were for
        scratch.cleanup()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for outcome in outcomes.values():
        if outcome is not None:
            raise _error_class(outcome[0])(outcome[1])


def _worker(work: Callable[[Ranks], None], threads: int, endpoint: str) -> Outcome:
    _end_with_parent()
    torch.set_num_threads(threads)
    device = _device(int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL and FSDP look for it
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := _interface_to(endpoint)) is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = name  # else gloo takes the one that the host's name stands for
    # the agent's store outlives a restart, so each attempt has a corner of it: addresses of dead ranks are no use
    host, _, port = endpoint.rpartition(":")
    store = PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], TCPStore(host, int(port), is_master=False))
    rank, world_size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=world_size
    )  # fmt: skip
    try:
        work(Ranks(dist.get_rank(), dist.get_world_size(), device))
    except AlignError as error:
        return type(error).__name__, str(error)
    finally:
        dist.destroy_process_group()
    return None


def _interface_to(endpoint: str) -> str | None:
    """The network interface of this machine that the rendezvous is reached by; nothing is sent."""
    host, _, port = endpoint.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))
        except OSError:
            return None
        address = probe.getsockname()[0]
    own = [name for name, found in psutil.net_if_addrs().items() if any(one.address == address for one in found)]
    return own[0] if own else None


def _end_with_parent() -> None:
    """Asks Linux for SIGTERM when the launcher dies, however it dies: no rank may train on beside the next run's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def _error_class(name: str) -> type[AlignError]:
    import align.errors

    found = getattr(align.errors, name, TrainingError)
    return found if isinstance(found, type) and issubclass(found, AlignError) else TrainingError


def _device(local_rank: int) -> torch.device:
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
