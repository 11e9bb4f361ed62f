"""One process or several: launching, and what they tell each other.

torch's elastic launcher starts the ranks (rendezvous on loopback; `torchrun` does the same across machines and is
recognised by its environment). gloo on CPUs, NCCL on GPUs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from align.errors import AlignError, TrainingError

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

    def sum_gradients(self, module: nn.Module) -> None:
        """Replaces every gradient by its sum over ranks, in one message.

        A sum and no mean: the loss is that of the global batch, and each rank has its own rows' share of the gradient.
        """
        if self.world_size == 1:
            return
        grads = [param.grad for param in module.parameters() if param.grad is not None]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


def default_processes(batch_size: int, group: int) -> int:
    """Ranks where none are asked for: one a GPU, or else one a core, and no more than the batch divides into.

    A rank per core, since towers this small are too short a work for OpenMP's threads to share
    (`tests/benchmarks/ranks.py` measures it).

    Args:
        batch_size: of the global batch.
        group: batch-norm group; a rank's part is a multiple of it.
    """
    most = torch.cuda.device_count() if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    return next((count for count in range(most, 1, -1) if batch_size % (count * group) == 0), 1)


def launch(work: Callable[[Ranks], None], num_processes: int, num_threads: int | None) -> None:
    """Runs `work` on every rank and returns when all have ended.

    Args:
        work: picklable where there are several processes.
        num_processes: ranks on this machine.
        num_threads: CPU threads a rank; None shares the machine's cores evenly.

    Raises:
        AlignError: the one that ended a rank.
        TrainingError: a rank died.
    """
    threads = num_threads or max(1, len(os.sched_getaffinity(0)) // num_processes)
    if num_processes == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            work(Ranks(0, 1, _device(0)))
        finally:
            torch.set_num_threads(before)
        return
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=num_processes, run_id="align", rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{_free_port()}", rdzv_configs={"rank": 0, "timeout": 60}, max_restarts=0,
        start_method="spawn", monitor_interval=0.2,
    )  # fmt: skip
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in signals}
    try:
        outcomes: dict[int, Outcome] = elastic_launch(config, _worker)(work, threads)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise TrainingError(
            f"training process {rank} died (exit code {failure.exitcode}); see its output above"
        ) from None
    except SignalException as error:
        raise TrainingError(f"training was stopped by {error.sigval.name}; run the stage again to go on") from None
    finally:  # the launcher leaves its own handlers behind, which outlive the job that they were for
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for outcome in outcomes.values():
        if outcome is not None:
            raise _error_class(outcome[0])(outcome[1])


def _worker(work: Callable[[Ranks], None], threads: int) -> Outcome:
    _end_with_parent()
    torch.set_num_threads(threads)
    device = _device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        work(Ranks(dist.get_rank(), dist.get_world_size(), device))
    except AlignError as error:
        return type(error).__name__, str(error)
    finally:
        dist.destroy_process_group()
    return None


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
