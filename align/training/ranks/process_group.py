"""One process or several: how the ranks of a run start and end, and the messages between them.

A process is one rank. torchrun, mpirun or srun start the ranks (`align.services.job`); without them `align pretrain`
does, by torch's elastic launcher, on this machine or on those of `cluster` in params.yaml, which all run the same
command. A launcher starts all ranks again when one has died; over several machines align's own does not. An error that
all ranks have, such as a loss that is not finite, each returns, and nothing starts again. An error that one rank alone
has ends its process at once, with its line and its exit code: the launcher ends the others.

Nothing here checks who connects, so the ranks of one machine listen on loopback only, and several machines on the
network interface that leads to rank 0. What comes from the network is read as numbers, never unpickled.
"""

from __future__ import annotations

import datetime
import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import DistStoreError, PrefixStore, TCPStore

from align.config.infrastructure import ClusterConfig
from align.config.recipe import even_ranks
from align.display.console import say, say_traceback
from align.durable.cores import cores
from align.durable.processes import when_parent_ends
from align.errors import AlignError, StoppedError, TrainingError, first_line
from align.services.job import Place, place_of_job

#: For which torch's launcher sets handlers, and leaves them.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this rank writes files and progress lines."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; all ranks get the same answer. Hosts wait for each other, no device."""
        return flag if self.world_size == 1 else bool(self.max(torch.tensor(int(flag))))  # on the CPU: gloo's

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


def default_processes(batch_size: int, group: int, num_cores: int) -> int:
    """Chooses one rank per GPU, or else per core, as far as the batch divides into multiples of batch-norm's group."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    chosen = even_ranks(batch_size, group, gpus or num_cores)
    if chosen < gpus:
        say(
            f"warning: {chosen} of {gpus} GPUs train, the others are idle: a batch of {batch_size:,} divides into no "
            f"more parts that are multiples of model.batch_norm_group {group}; a batch_size that is a multiple of "
            f"{gpus * group} uses all"
        )
    return chosen


def launch(
    work: Callable[[Ranks], None], num_processes: int, num_threads: int | None, cluster: ClusterConfig | None = None,
    *, place: Place | None = None,
) -> None:  # fmt: skip
    """Runs `work` on every rank, or as the rank that a launcher has started, and returns when it has ended.

    Args:
        work: picklable if this process starts several ranks. Where it may be started again, it resumes.
        num_processes, num_threads: ranks that this process starts; of each, None shares the machine's cores evenly.
        cluster: the machines, and how long they wait; None: this one, without restarts.
        place: this process among the ranks of a launcher; None: it starts them.

    Raises:
        StoppedError: this process, or all ranks, were told to end.
        TrainingError: that of all ranks; or a rank died or had one of its own, or the machines could not connect.
    """
    timeout = datetime.timedelta(seconds=cluster.patience_s if cluster else 600)
    threads = num_threads or (cores(place.local_world_size) if place else max(1, cores() // num_processes))
    if place is not None:
        _be_rank(work, threads, timeout, place)
    elif num_processes > 1 or (cluster is not None and cluster.num_nodes > 1):
        _start(work, num_processes, threads, timeout, cluster)
    else:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            work(Ranks(0, 1, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")))
        finally:
            torch.set_num_threads(before)


def _start(
    work: Callable[[Ranks], None], num_processes: int, threads: int, timeout: datetime.timedelta,
    cluster: ClusterConfig | None,
) -> None:  # fmt: skip
    """Starts the ranks of this machine by torch's launcher, and waits for them."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import LaunchConfig, elastic_launch

    nodes, node, endpoint, max_restarts = 1, 0, "127.0.0.1:0", cluster.max_restarts if cluster else 0
    if cluster is not None and cluster.num_nodes > 1:  # ranks that wait for those of a lost machine would wait in vain
        nodes, node, endpoint, max_restarts = cluster.num_nodes, cluster.node_rank, str(cluster.rendezvous), 0
    host, _, port = endpoint.rpartition(":")
    store = _listen(host, int(port), timeout, several=nodes > 1) if node == 0 else None
    config = LaunchConfig(
        nodes, nodes, num_processes, run_id="align", rdzv_backend="static",
        rdzv_endpoint=f"{host}:{store.port if store else port}",
        rdzv_configs={"rank": node, "timeout": int(timeout.total_seconds())},
        max_restarts=max_restarts, shutdown_timeout=cluster.stop_s if cluster else None,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )  # fmt: skip
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_one_line)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        outcomes = elastic_launch(config, _started)(work, threads, timeout)
    except SignalException as error:
        kind = StoppedError if error.sigval == signal.SIGTERM else TrainingError
        raise kind(f"training was stopped by {error.sigval.name}; run the stage again to resume") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == StoppedError.exit_code:
            raise StoppedError("training was stopped by SIGTERM; run the stage again to resume") from None
        why = f"training process {rank} ended with exit code {failure.exitcode}; its output is above"
        raise TrainingError(why) from None
    except (DistStoreError, TimeoutError) as error:
        why = f"node {node} of {nodes} could not reach the others at {endpoint}: {first_line(error)}"
        raise TrainingError(why) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if shared := [error for _, error in sorted(outcomes.items()) if error is not None]:  # in the order of ranks
        raise shared[0]


def _one_line(record: logging.LogRecord) -> bool:
    """Leaves out where torch's launcher stood when a rank ended: its exit code says more."""
    record.exc_info = None
    return True


def _started(work: Callable[[Ranks], None], threads: int, timeout: datetime.timedelta) -> TrainingError | None:
    """Works as a rank that `_start` has started; returns the error that all ranks have."""
    when_parent_ends(partial(os.kill, os.getpid(), signal.SIGTERM))
    place, launcher = place_of_job(), multiprocessing.parent_process()
    shared: TrainingError | None = None
    assert place is not None and launcher is not None
    try:
        _be_rank(work, threads, timeout, place)
    except StoppedError as error:  # not returned: torch waits for the ranks of a launcher that was told to end, too
        if place.rank == 0:
            say(f"align: error: rank 0: {error}")
        os._exit(error.exit_code)
    except TrainingError as error:
        shared = error
    if not launcher.is_alive():
        os._exit(1)  # torch would wait for it to take what is returned
    return shared


def _be_rank(work: Callable[[Ranks], None], threads: int, timeout: datetime.timedelta, place: Place) -> None:
    torch.set_num_threads(threads)
    gpus, device = torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.device("cpu")
    if gpus:
        device = torch.device("cuda", place.local_rank if gpus > 1 else 0)  # a launcher may show each its own only
        torch.cuda.set_device(device)  # NCCL and FSDP read it there
    if place.local_rank == 0 and 1 < gpus > place.local_world_size:
        say(f"warning: {place.local_world_size} of {gpus} GPUs of this machine train: start a process for each")
    several = place.local_world_size < place.world_size
    _use_interface_to(place.host, several=several)
    try:
        hosts = place.rank == 0 and not place.has_store
        store = _listen(place.host, place.port, timeout, several=several) if hosts else TCPStore(
            place.host, place.port, is_master=False, timeout=timeout
        )  # fmt: skip
        # a launcher's store survives a restart, and addresses of dead ranks are useless
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo", store=PrefixStore(place.attempt, store), rank=place.rank,
            world_size=place.world_size, timeout=timeout, device_id=device if gpus else None,
        )  # fmt: skip
        work(Ranks(place.rank, place.world_size, device))
    except (TrainingError, StoppedError):  # all ranks have it
        raise
    except AlignError as error:
        say(f"align: error: rank {place.rank}: {error}")
        os._exit(error.exit_code)  # at once: other ranks may wait for this one, and it for them
    except Exception as error:  # noqa: BLE001 - whatever it is, so does this
        if isinstance(error, dist.DistError) or "/gloo/" in str(error):
            say(f"rank {place.rank} ends, as another one has ended or hangs: {first_line(error)}")
        else:
            say_traceback(type(error), error, error.__traceback__)
        os._exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _listen(host: str, port: int, timeout: datetime.timedelta, *, several: bool) -> TCPStore:
    """Opens the store by which the ranks find each other, at this address alone; port 0 takes a free one.

    Left to itself, torch listens at all addresses; a store that it opens in this process at the same port is this one.
    A name that is loopback's here and another address elsewhere is listened to at all addresses. Raises TrainingError:
    this machine has no such address, or the port is taken.
    """
    try:
        everywhere = several and socket.gethostbyname(host).startswith("127.")
        listener = socket.create_server(("" if everywhere else host, port))
    except OSError as error:
        raise TrainingError(
            f"this machine cannot listen at {host}:{port}: {error.strerror or error}; cluster.rendezvous, or the "
            "launcher's MASTER_ADDR and MASTER_PORT, must be an address of the machine of rank 0, and a free port"
        ) from None
    return TCPStore(
        host, listener.getsockname()[1], is_master=True, timeout=timeout, multi_tenant=True, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def _use_interface_to(host: str, *, several: bool) -> None:
    """Has gloo and NCCL listen on the interface through which this machine reaches a host; nothing is sent to it.

    With several machines GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME win, for a network of their own.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect((host, 9))
        address = probe.getsockname()[0]
        names = [name for name, some in psutil.net_if_addrs().items() if any(one.address == address for one in some)]
        ours = {"GLOO_SOCKET_IFNAME": names[0], "NCCL_SOCKET_IFNAME": f"={names[0]}"} if names else {}
        os.environ.update({key: value for key, value in ours.items() if key not in os.environ or not several})
