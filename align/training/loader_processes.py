"""A rank's loader processes: their start, the batches out of shared memory, and their end.

The rows of the rank's part of each batch are divided among them, so a batch is ready when each has made its few. The
memory is anonymous (memfd): it has no name that a killed run could leave behind, and /dev/shm, which containers keep
small, does not bound it. It is reserved before the start, so that a machine with too little says so at once.

The processes are spawned: a rank has threads, and a fork of it could wait for a lock that nobody holds.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import send_handle

import torch

from align.errors import AlignError, TrainingError
from align.training.batch import Batch, Rows, new_arrays, num_bytes, whole
from align.training.loader_worker import (
    GROUP_SIGNALS,
    NUM_SLOTS,
    Job,
    SlotFree,
    Stop,
    Unavailable,
    Unreadable,
    slot,
    work,
)
from align.training.process_group import RestartError
from align.training.samples import SplitSamples

#: Seconds after which a rank that waits for rows asks whether it was told to end.
_POLL_S = 0.2
#: Seconds within which the kernel tells how a process ended whose pipe has closed.
_END_S = 10.0


@dataclass(frozen=True)
class _Worker:
    """A loader process, and the pipe to it."""

    process: SpawnProcess
    pipe: Connection


class LoaderProcesses:
    """Makes batches in order. A context; its end kills the processes, which keep nothing.

    Args:
        job: of all of them together: its `part` is the rank's share.
        sources: of the rank, opened; they are asked whether it was told to end, and say when the store is unavailable.
        report: takes the words of each sample that cannot be read and was replaced.
        num_processes: at most one for each row is started.
        pin: whether batches lie in page-locked memory.

    Raises:
        TrainingError: this machine has too little memory for the batches, or cannot start the processes.
    """

    def __init__(
        self, job: Job, sources: Sequence[SplitSamples], report: Callable[[str], None], *, num_processes: int,
        pin: bool,
    ) -> None:  # fmt: skip
        self._job, self._sources, self._report, self._pin = job, sources, report, pin
        self._num_rows = job.share[1] - job.share[0]
        self._next, self._told = job.steps[0], False
        self._workers: list[_Worker] = []
        num_processes = min(num_processes, self._num_rows)
        size = NUM_SLOTS * num_bytes(self._num_rows, job.augmentation)
        descriptor = _reserved(size)
        try:
            self._buffer = mmap.mmap(descriptor, size)
            for _ in range(num_processes):
                self._workers.append(_started())
            edges = [job.share[0] + self._num_rows * number // num_processes for number in range(num_processes + 1)]
            for worker, part in zip(self._workers, pairwise(edges), strict=True):
                with suppress(BrokenPipeError, ConnectionResetError):  # it is dead: its rows will be missed
                    send_handle(worker.pipe, descriptor, worker.process.pid)
                    worker.pipe.send(replace(job, part=part))
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise TrainingError(f"loader processes cannot be started ({error.strerror}); {_WITHOUT}") from None
            raise
        finally:
            os.close(descriptor)

    def batch(self) -> Batch:
        """The batch of the next step, in memory of its own. One thread at a time may call this.

        Raises:
            RestartError: a process has died.
            AlignError: what a process could not make its rows for.
        """
        made: dict[int, Rows] = {}
        missing = {worker.pipe: number for number, worker in enumerate(self._workers)}
        while missing:
            for pipe in wait(list(missing), _POLL_S):
                number = missing[pipe]  # type: ignore[index]  # they are the same objects
                message = self._message(number)
                if isinstance(message, Rows):
                    made[number] = message
                    del missing[self._workers[number].pipe]
            if not self._told and any(samples.tars.stopped() for samples in self._sources):
                self._told = True
                self._tell(Stop())
        job, arrays = self._job, new_arrays(self._num_rows, self._job.augmentation, pin=self._pin)
        shared = slot(self._buffer, self._next - job.steps[0], self._num_rows, job.augmentation)
        for ours, theirs in zip(arrays, shared, strict=True):
            torch.from_numpy(ours).copy_(torch.from_numpy(theirs))  # without the GIL
        self._next += 1
        self._tell(SlotFree())
        in_order = [made[number] for number in range(len(self._workers))]
        rows = Rows(
            [text for part in in_order for text in part.texts], [ids for part in in_order for ids in part.ids],
            sum(part.num_quarantined for part in in_order),
        )  # fmt: skip
        return whole(arrays, rows, job.augmentation.tokenizer, pin=self._pin)

    def kill(self) -> None:
        """Ends the processes; a call of `batch` in another thread raises."""
        for worker in self._workers:
            worker.process.kill()

    def close(self) -> None:
        """Ends the processes and waits for their end."""
        self.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def _message(self, number: int) -> object:
        """The next one of a process; what it says and what it raises is said and raised here."""
        try:
            message = self._workers[number].pipe.recv()
        except (EOFError, OSError):
            raise self._death(number) from None
        if isinstance(message, AlignError):
            raise message
        if isinstance(message, Unreadable):
            self._report(message.line)
        if isinstance(message, Unavailable):
            self._sources[message.source].tars.unavailable(message.line)
        return message

    def _tell(self, message: Stop | SlotFree) -> None:
        for worker in self._workers:
            with suppress(OSError):  # it is dead: its rows will be missed
                worker.pipe.send(message)

    def _death(self, number: int) -> RestartError:
        process = self._workers[number].process
        deadline = time.monotonic() + _END_S
        while process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.01)
        code = process.exitcode
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += ", perhaps for its memory"
        else:
            how = f"ended with exit code {code}; see its output above"
        return RestartError(f"loader process {number + 1} of {len(self._workers)} {how}; run the stage again to resume")


_WITHOUT = "num_loader_processes: 0 does without"


def _started() -> _Worker:
    """Starts a loader process. What is sent to the group meanwhile must not end it, see `loader_worker`."""
    ours, theirs = multiprocessing.Pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        process = multiprocessing.get_context("spawn").Process(target=work, args=(theirs,), name="loader", daemon=True)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return _Worker(process, ours)


def _reserved(size: int) -> int:
    """The descriptor of memory that is there: a page that is missing would end the process that touches it."""
    descriptor = None
    try:
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("align-batches", os.MFD_CLOEXEC)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise TrainingError(
            f"{size / 2**20:,.0f} MiB for the batches of loader processes cannot be had ({error.strerror}); "
            f"{_WITHOUT}, and a smaller batch_size or more ranks need less"
        ) from None
    return descriptor
