"""Rounds: the ranks of all machines start together, and together again after one was lost.

The store of node 0 counts the rounds. One begins when every machine has joined it. A machine that finds a round begun,
because it takes a lost one's place or its rank died, asks node 0 for another, which alone decides. If node 0 was lost,
the others wait for its successor.
"""

from __future__ import annotations

import datetime
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
from torch.distributed import TCPStore
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousInfo
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.multiprocessing.spawn import ProcessExitedException

from align.config.infrastructure import ClusterConfig
from align.display.console import say
from align.durable.checkpoint import CheckpointFolder
from align.errors import TrainingError

_LOOK_EVERY_S = 0.1
#: Seconds for the store's last answer: that of a machine without power gives none.
_ANSWER_S = 5
#: Seconds that ranks have to end when another one died: nothing that they still compute can be used.
_END_S = 30


def _one_line(record: logging.LogRecord) -> bool:
    """Leaves out where torch's agent stood when a rank exited or was killed: its exit code says more."""
    if record.exc_info and isinstance(record.exc_info[1], ProcessExitedException):
        record.exc_info = None
    return True


logging.getLogger("torch.distributed.elastic.multiprocessing.api").addFilter(_one_line)


class Rounds(StaticTCPRendezvous):
    """torch's static rendezvous, with rounds, and with a store that listens where it is told.

    Args:
        endpoint: HOST:PORT of node 0.
        cluster: the machines.
        listener: the socket of the store, on node 0.
        saves: the run's checkpoints, on node 0: a later one than before begins the count of restarts again.
    """

    def __init__(
        self, endpoint: str, cluster: ClusterConfig, listener: socket.socket | None, saves: CheckpointFolder | None
    ) -> None:
        host, _, port = endpoint.rpartition(":")
        super().__init__(host, int(port), cluster.node_rank, cluster.num_nodes, "", cluster.patience_s)
        self.number, self._over = 0, 0
        self.cluster, self._listener, self._saves = cluster, listener, saves
        self._left, self._furthest = cluster.max_restarts, -1
        self._watcher, self._ended = threading.Thread(), threading.Event()
        self.may_restart()

    def may_restart(self) -> bool:
        """Whether the ranks may start once more; on other machines than node 0, whether they ever may."""
        step = max(self._saves.steps(), default=0) if self._saves is not None else 0
        if step > self._furthest:
            self._furthest, self._left = step, self.cluster.max_restarts
        return self._left > 0

    def next_rendezvous(self) -> RendezvousInfo:
        """Waits for the next round."""
        self.number = self._begin() if self.rank == 0 else self._join()
        self.run_id = f"round {self.number}"
        self._watcher = threading.Thread(target=self._watch, args=(self._store, self.number), daemon=True)
        self._watcher.start()
        return super().next_rendezvous()

    def shutdown(self) -> bool:
        """Ends the thread that watches: if Python ended while it is in torch's store, the process would abort."""
        self._ended.set()
        if self._watcher.ident is not None:
            self._watcher.join(_ANSWER_S)
        return True

    def num_nodes_waiting(self) -> int:
        """torch's agent asks it while its ranks work, and starts them again if it is more than none."""
        if over := self._over == self.number:
            self.let_it_write()
        return int(over)

    def let_it_write(self) -> None:
        """Waits while a rank writes a checkpoint: the ranks start again from it."""
        deadline = time.monotonic() + self.cluster.patience_s
        while self._saves is not None and self._saves.is_writing() and time.monotonic() < deadline:
            time.sleep(_LOOK_EVERY_S)

    def _watch(self, store: Any, number: int) -> None:
        """Learns that the round is over. In a thread: the store of a machine without power answers to nobody."""
        with suppress(RuntimeError):  # the store has ended with node 0; the ranks notice, too
            while self.number == number != self._over and not self._ended.wait(2 * _LOOK_EVERY_S):
                if store.add("round", 0) != number or store.check([f"{number} is over"]):
                    self._over = number

    def _begin(self) -> int:
        """On node 0."""
        if self._listener is not None:
            self._store, self._listener = self._open(self._listener), None
        elif self.may_restart():
            self._left -= 1
            say(f"all ranks start again from step {self._furthest:,} ({self._left} more restarts until the next one)")
        else:
            raise TrainingError("more ranks or machines were lost than cluster.max_restarts; see the output above")
        store: Any = self._store
        number, deadline = int(store.add("round", 1)), time.monotonic() + self.cluster.patience_s
        absent = list(range(1, self.world_size))
        while absent := [node for node in absent if not store.check([f"{number} has {node}"])]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"node {', '.join(map(str, absent))} did not come in cluster.patience_s")
            time.sleep(_LOOK_EVERY_S)
        store.set(f"{number} has begun", "")
        return number

    def _join(self) -> int:
        """On the other nodes."""
        self._store = None  # it may be that of a node 0 that was lost
        joined, deadline = 0, time.monotonic() + self.cluster.patience_s
        while time.monotonic() < deadline:
            try:
                store: Any = self._store or self._open(None)
                self._store = store
                number = int(store.add("round", 0))
                deadline = time.monotonic() + self.cluster.patience_s  # node 0 lives
                if not store.check([f"{number} has begun"]):
                    store.set(f"{number} has {self.rank}", "")
                    joined = number
                elif joined == number:
                    return number
                else:
                    store.set(f"{number} is over", "")
            except (OSError, RuntimeError):  # node 0 does not listen, or its store has ended
                self._store, joined = None, 0
            time.sleep(_LOOK_EVERY_S)
        raise TimeoutError("node 0 did not answer in cluster.patience_s")

    def _open(self, listener: socket.socket | None) -> Any:
        options: dict[str, Any] = {"master_listen_fd": listener.detach()} if listener is not None else {}
        if listener is None:  # torch would wait for node 0 without obeying a signal
            socket.create_connection((self.master_addr, self.master_port), 1).close()
        return TCPStore(
            self.master_addr, self.master_port, None, listener is not None,
            datetime.timedelta(seconds=self.cluster.patience_s), wait_for_workers=False, multi_tenant=True, **options,
        )  # fmt: skip


class Agent(LocalElasticAgent):
    """torch's agent, which starts and watches the ranks of this machine, in rounds.

    Args:
        work: what a rank does, with these arguments and the number of the round.
        num_processes: ranks on this machine.
        rounds: when they start, and how long they may take to end.
        scratch: a folder for torch's files.
    """

    def __init__(
        self, work: Callable[..., Any], arguments: tuple[Any, ...], num_processes: int, rounds: Rounds, scratch: str
    ) -> None:
        spec = WorkerSpec("rank", num_processes, rounds, entrypoint=work, max_restarts=1, monitor_interval=0.2)
        super().__init__(spec, DefaultLogsSpecs(log_dir=scratch))
        self._arguments, self._rounds = arguments, rounds

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        worker_group.spec.args = (*self._arguments, self._rounds.number)
        return super()._start_workers(worker_group)  # type: ignore[no-any-return]  # a decorator of torch hides its type

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        context: Any = self._pcontext
        if any(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in context.pids().values()):
            self._rounds.let_it_write()  # torch would kill the others after 30 s
            context._worker_finished_event.set()  # for ranks that have returned
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            self._remaining_restarts = 1  # of torch's own count
            if not self._rounds.may_restart():
                [(rank, failure)] = result.failures.items()
                raise TrainingError(
                    f"training process {rank} died (exit code {failure.exitcode}); see its output above"
                )
        return result

    def _shutdown(self, death_sig: signal.Signals | None = None, *_: Any, **__: Any) -> None:
        """Ends the ranks: after this signal to the run, or because all start again."""
        context: Any = self._pcontext
        if context is not None:
            context._worker_finished_event.set()  # for ranks that have returned
            context.close(death_sig or signal.SIGTERM, self._rounds.cluster.stop_s if death_sig else _END_S)
