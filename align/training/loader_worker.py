"""A loader process: makes some rows of each batch of a rank, into memory that both share.

It lives in a session of its own, so that signals to the rank's group (Ctrl-C, a flow that is cancelled) do not end it
while the rank still finishes its step. It ends when its pipe does, which the kernel closes however the rank ends.

It imports what decodes and tokenises, and no model.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, NamedTuple

import torch

from align.errors import AlignError
from align.training.batch import Arrays, Augmentation, Sampling, arrays_in, num_bytes
from align.training.rows import AHEAD, RowMaker
from align.training.samples import SplitSamples

#: Batches that shared memory holds.
NUM_SLOTS = AHEAD

#: Signals that people and supervisors send to a whole group.
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@dataclass(frozen=True)
class Job:
    """What one loader process makes; picklable.

    Attributes:
        sources: functions that open the splits, with their weights.
        sampling, augmentation, part, num_threads: see `RowMaker`.
        share: the first of the global batch's rows that the rank has, and the first that it has not.
        steps: the first one, and the first that is not made.
    """

    sources: tuple[tuple[Callable[[], SplitSamples], float], ...]
    sampling: Sampling
    augmentation: Augmentation
    part: tuple[int, int]
    share: tuple[int, int]
    num_threads: int
    steps: tuple[int, int]


class SlotFree(NamedTuple):
    """To a loader process: the rank has taken the oldest batch out of shared memory."""


class Stop(NamedTuple):
    """To a loader process: the rank was told to end, so no read waits for an unavailable store."""


class Unreadable(NamedTuple):
    """From a loader process: a sample cannot be read and was replaced."""

    line: str


class Unavailable(NamedTuple):
    """From a loader process: the store of a source does not answer."""

    source: int
    line: str


def slot(buffer: Any, number: int, num_rows: int, augmentation: Augmentation) -> Arrays:
    """The memory of one of NUM_SLOTS batches."""
    return arrays_in(buffer, number % NUM_SLOTS * num_bytes(num_rows, augmentation), num_rows, augmentation)


def work(pipe: Connection) -> None:
    """The process's main function.

    Args:
        pipe: brings the file descriptor of the slots and a Job; then SlotFree and Stop. Gets Rows, one for each step in
            order, Unreadable and Unavailable, and an AlignError in place of the rows that cannot be made.
    """
    _leave_the_group()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other loader processes have the other cores
    torch.set_num_threads(1)
    try:
        memory, job = recv_handle(pipe), pipe.recv()
    except (EOFError, OSError):
        return
    free, told = threading.Semaphore(NUM_SLOTS), threading.Event()
    listener = threading.Thread(target=_listen, args=(pipe, free, told), daemon=True)
    listener.start()
    tell = _Pipe(pipe).send
    sources = [(opened(), weight) for opened, weight in job.sources]
    for number, (samples, _) in enumerate(sources):
        samples.tars.stopped = told.is_set
        samples.tars.tell = lambda line, number=number: tell(Unavailable(number, line))
    num_rows, (first, end) = job.share[1] - job.share[0], job.steps
    buffer = mmap.mmap(memory, NUM_SLOTS * num_bytes(num_rows, job.augmentation))

    def rows_of(step: int) -> Arrays:
        free.acquire()
        of_rank = slot(buffer, step - first, num_rows, job.augmentation)
        return of_rank.rows(job.part[0] - job.share[0], job.part[1] - job.share[0])

    try:
        maker = RowMaker(
            sources, job.sampling, job.augmentation, job.part, job.num_threads, lambda line: tell(Unreadable(line))
        )
        for _, rows in maker.made(first, end, rows_of):
            tell(rows)
    except AlignError as error:
        tell(error)
    listener.join()  # until the rank ends this process, or itself


class _Pipe:
    """Sends from several threads."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def send(self, message: object) -> None:
        """Sends a message; if nobody is there to take it, the listener ends this process."""
        with self._lock:
            try:
                self._pipe.send(message)
            except OSError:
                threading.Event().wait()


def _listen(pipe: Connection, free: threading.Semaphore, told: threading.Event) -> None:
    try:
        while True:
            if isinstance(pipe.recv(), Stop):
                told.set()
            else:
                free.release()
    except (EOFError, OSError):
        os._exit(0)


def _leave_the_group() -> None:
    """Leaves the rank's group, and forgets what was sent to the group until now: the rank blocked it at the start."""
    os.setsid()
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
