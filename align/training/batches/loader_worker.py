"""A loader process: a worker of torch's DataLoader that makes some rows of each batch, in memory that it shares with
its rank.

It imports what decodes and tokenises, and no model.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from align.durable.processes import when_parent_ends
from align.errors import AlignError
from align.training.batches.batch import Arrays, Augmentation, Rows, Sampling
from align.training.batches.rows import AHEAD, RowMaker
from align.training.batches.samples import SplitSamples

#: Batches that a process is asked for ahead.
ASKED = 1
#: Batches that shared memory holds: one is taken, ASKED wait, and AHEAD - 1 are in preparation beside.
NUM_SLOTS = AHEAD + ASKED

#: Signals that people and supervisors send to a whole group.
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Part(NamedTuple):
    """What a process says of its rows of one batch.

    Attributes:
        rows: all of them that does not lie in shared memory.
        unreadable: a line for each sample that cannot be read and was replaced.
    """

    rows: Rows
    unreadable: list[str]


class Told(Protocol):
    """An event that processes share."""

    def set(self) -> None:
        """Tells all of them."""

    def is_set(self) -> bool:
        """Whether they were told."""


@dataclass(frozen=True)
class Parts(IterableDataset[Part | AlignError]):
    """The rows of a rank's part of each batch, divided evenly among the workers of a DataLoader; picklable.

    Attributes:
        sources: functions that open the splits, with their weights.
        sampling, augmentation, num_threads: see `RowMaker`.
        share: the first of the global batch's rows that the rank has, and the first that it has not.
        steps: the first one, and the first that is not made.
        slots: NUM_SLOTS times the arrays of the share, in shared memory.
        told: that the rank was told to end, so no read waits for an unavailable store.
    """

    sources: tuple[tuple[Callable[[], SplitSamples], float], ...]
    sampling: Sampling
    augmentation: Augmentation
    share: tuple[int, int]
    num_threads: int
    steps: tuple[int, int]
    slots: list[list[Tensor]]
    told: Told

    def slot(self, step: int) -> list[Tensor]:
        """The memory of a step's batch."""
        return self.slots[(step - self.steps[0]) % NUM_SLOTS]

    def __iter__(self) -> Iterator[Part | AlignError]:
        """In a process: its part of each step, in order. An error is a value: torch would change its words."""
        worker = get_worker_info()
        assert worker is not None
        num_rows = self.share[1] - self.share[0]
        begin, end = (num_rows * number // worker.num_workers for number in (worker.id, worker.id + 1))
        unreadable: deque[str] = deque()
        try:
            sources = [(opened(), weight) for opened, weight in self.sources]
            for samples, _ in sources:
                samples.tars.stopped = self.told.is_set
                if worker.id:
                    samples.tars.tell = as_it_is  # all wait for the same store: the first process says so
            maker = RowMaker(
                sources, self.sampling, self.augmentation, (self.share[0] + begin, self.share[0] + end),
                self.num_threads, unreadable.append,
            )  # fmt: skip
            for _, rows in maker.made(
                *self.steps, lambda step: Arrays._make(array[begin:end].numpy() for array in self.slot(step))
            ):
                yield Part(rows, [unreadable.popleft() for _ in range(len(unreadable))])
        except AlignError as error:
            yield error


def as_it_is(value: Any) -> Any:
    """For torch, which would make tensors of all that a process sends."""
    return value


def alone(_: int) -> None:
    """Lets this process end with the rank, however that ends, and leave the rank's group.

    Signals to the group (Ctrl-C, a flow that is cancelled) must not end it while the rank still finishes its step. It
    forgets those until now: the rank blocked them at the start.
    """
    when_parent_ends(partial(os._exit, 0))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other loader processes have the other cores
    os.setsid()
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
