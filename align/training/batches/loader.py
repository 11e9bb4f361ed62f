"""Training batches, each a pure function of its step, prepared ahead by loader processes or by threads.

Each epoch draws one of an image's texts; the last, incomplete batch of an epoch is dropped. A rank takes a contiguous
part of every batch, so the global batch is the same for any number of ranks, processes and threads, and resuming needs
no saved state.

Loader processes are the workers of torch's DataLoader. The rows of the rank's part of each batch are divided among
them, so a batch is ready when each has made its few, and few batches are in memory however many processes there are.
torch's shared memory is in /dev/shm, where it has no name. They are spawned: a rank has threads, and a fork of it could
wait for a lock that nobody holds. A process imports this module, so it imports no model.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from align.display.console import say
from align.durable.processes import when_parent_ends
from align.errors import AlignError, DataError, TrainingError
from align.training.batches.batch import (
    Arrays,
    Augmentation,
    Batch,
    Rows,
    Sampling,
    Workers,
    new_arrays,
    num_bytes,
    whole,
)
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


@dataclass(frozen=True)
class Parts(IterableDataset[Part | AlignError]):
    """The rows of a rank's part of each batch, divided evenly among the workers of a DataLoader; picklable.

    Attributes:
        sources: functions that open the splits, with their weights.
        sampling, augmentation: see `RowMaker`.
        share: the first of the global batch's rows that the rank has, and the first that it has not.
        steps: the first one, and the first that is not made.
        slots: NUM_SLOTS times the arrays of the share, in shared memory.
        told: that the rank was told to end, so no read waits for an unavailable store.
    """

    sources: tuple[tuple[Callable[[], SplitSamples], float], ...]
    sampling: Sampling
    augmentation: Augmentation
    share: tuple[int, int]
    steps: tuple[int, int]
    slots: list[list[Tensor]]
    told: Event

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
                1, unreadable.append,
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


_SHARED = Path("/dev/shm")
_WITHOUT = "num_loader_processes: 0 does without"

#: Seconds after which a rank that waits for a batch asks whether it was told to end.
_POLL_S = 0.2


class TrainLoader:
    """Training batches.

    Args:
        samples: the split.
        sampling: which samples each batch holds.
        augmentation: what is drawn for each sample.
        extra: more splits with their weights; the weight of `samples` is 1.
        rank, world_size: select this process's part of each batch.
        workers: who makes the batches.

    Attributes:
        wait_s: seconds that `batches` has kept its caller waiting.
        num_quarantined: rows so far in which another sample replaced an unreadable one, on this rank since it started.

    Raises:
        ConfigError: a split has fewer images than its share of one batch.
    """

    def __init__(
        self, samples: SplitSamples, *, sampling: Sampling, augmentation: Augmentation,
        extra: Sequence[tuple[SplitSamples, float]] = (), rank: int = 0, world_size: int = 1,
        workers: Workers = Workers(),  # noqa: B008 (frozen)
    ) -> None:  # fmt: skip
        self._sources = [(samples, 1.0), *extra]
        self._augmentation = augmentation
        self._sampling, self._workers = sampling, workers
        share = sampling.batch_size // world_size
        self._share = (rank * share, (rank + 1) * share)
        threads = torch.get_num_threads()
        self._maker = RowMaker(self._sources, sampling, augmentation, self._share, threads, self._report)
        self.wait_s, self.num_quarantined = 0.0, 0
        self._lock, self._reported = threading.Lock(), set[str]()

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0 over all epochs."""
        with closing(self.batches(step, step + 1)) as batches:
            return next(batches)

    def batches(self, first_step: int, num_steps: int) -> Generator[Batch]:
        """The batches of steps `first_step` to `num_steps`; AHEAD of them are in preparation.

        Raises:
            CorruptError: a sample cannot be read and `on_corrupt` is "stop", or no replacement can be read either.
            DataError: a tar is gone.
            ServiceError: the store was unavailable for longer than `patience_s`.
            DataError: a loader process has died.
            TrainingError: loader processes cannot be started.
        """
        making = self._in_processes if self._workers.num_processes else self._in_threads
        with closing(making(first_step, num_steps)) as made:
            while True:
                start = time.monotonic()
                batch = next(made, None)
                self.wait_s += time.monotonic() - start
                if batch is None:
                    return
                self.num_quarantined += batch.num_quarantined
                yield batch

    def _in_threads(self, first_step: int, num_steps: int) -> Generator[Batch]:
        num_rows, tokenizer, pin = self._share[1] - self._share[0], self._augmentation.tokenizer, self._workers.pin
        with closing(self._maker.made(
            first_step, num_steps, lambda _: new_arrays(num_rows, self._augmentation, pin=pin)
        )) as made:  # fmt: skip
            for arrays, rows in made:
                yield whole(arrays, rows, tokenizer, pin=pin)

    def _in_processes(self, first_step: int, num_steps: int) -> Generator[Batch]:
        number, told = self._workers.num_processes, multiprocessing.get_context("spawn").Event()
        parts = Parts(
            sources=tuple((samples.elsewhere(number), weight) for samples, weight in self._sources),
            sampling=self._sampling, augmentation=self._augmentation, share=self._share,
            steps=(first_step, num_steps),
            slots=shared_slots(self._share[1] - self._share[0], self._augmentation), told=told,
        )  # fmt: skip
        made = made_by_processes(parts, self._report, num_processes=number, pin=self._workers.pin)
        taker = ThreadPoolExecutor(1, thread_name_prefix="loader-take")
        waiting: deque[Future[Batch]] = deque()
        step = first_step
        try:
            while step < num_steps or waiting:
                while step < num_steps and len(waiting) < AHEAD:
                    waiting.append(taker.submit(next, made))
                    step += 1
                while not wait([waiting[0]], _POLL_S).done:
                    if any(samples.tars.stopped() for samples, _ in self._sources):
                        told.set()
                yield waiting.popleft().result()
        finally:
            told.set()
            taker.shutdown(cancel_futures=True)
            made.close()

    def _report(self, error: str) -> None:
        """Reports, once per tar, that it has samples which cannot be read."""
        tar = error.partition(": sample ")[0]
        with self._lock:
            known = tar in self._reported
            self._reported.add(tar)
        if not known:
            say(f"quarantined; other samples replace those of this tar that cannot be read: {error}")


def shared_slots(num_rows: int, augmentation: Augmentation) -> list[list[Tensor]]:
    """Shared memory for NUM_SLOTS batches of N rows; all of it is there, since copying touches each page.

    Raises:
        TrainingError: there is too little: a page that is missing would end the process that touches it.
    """
    size = NUM_SLOTS * num_bytes(num_rows, augmentation)
    if _SHARED.is_dir() and (free := shutil.disk_usage(_SHARED).free) < size:
        raise TrainingError(
            f"{_SHARED} has {free / 2**20:,.0f} MiB for the batches of loader processes, which need "
            f"{size / 2**20:,.0f}; {_WITHOUT}, and a smaller batch_size or more ranks need less"
        )
    slots = [[torch.from_numpy(array) for array in new_arrays(num_rows, augmentation)] for _ in range(NUM_SLOTS)]
    for tensor in (tensor for slot in slots for tensor in slot):
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    return slots


def made_by_processes(
    parts: Parts, report: Callable[[str], None], *, num_processes: int, pin: bool
) -> Generator[Batch]:
    """Makes batches in order, each in memory of its own. The end of the generator is that of the processes.

    A thread that is not the main one has to start it: else torch would raise a process's death in the middle of
    whatever the main thread does.

    Args:
        parts: of the batches.
        report: takes the words of each sample that cannot be read and was replaced.
        num_processes: at most one for each row is started.
        pin: whether batches lie in page-locked memory.

    Raises:
        TrainingError: this machine cannot start the processes.
        DataError: a process has died.
        AlignError: what a process could not make its rows for.
    """
    num_rows = parts.share[1] - parts.share[0]
    num_processes = min(num_processes, num_rows)
    workers = _started(parts, num_processes)
    try:
        for step in range(*parts.steps):
            made = [_next(workers) for _ in range(num_processes)]
            for line in (line for part in made for line in part.unreadable):
                report(line)
            arrays = new_arrays(num_rows, parts.augmentation, pin=pin)
            for ours, theirs in zip(arrays, parts.slot(step), strict=True):
                torch.from_numpy(ours).copy_(theirs)  # without the GIL
            rows = Rows(
                [text for part in made for text in part.rows.texts], [ids for part in made for ids in part.rows.ids],
                sum(part.rows.num_quarantined for part in made),
            )  # fmt: skip
            yield whole(arrays, rows, parts.augmentation.tokenizer, pin=pin)
    finally:
        workers._shutdown_workers()  # type: ignore[attr-defined]  # else they live as long as an error's traceback


def _started(parts: Parts, number: int) -> Iterator[Part | AlignError]:
    """Starts the processes. What is sent to the group meanwhile must not end them, see `alone`."""
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # as many as params.yaml says
    loader = DataLoader(
        parts, batch_size=None, num_workers=number, collate_fn=as_it_is, prefetch_factor=ASKED,
        worker_init_fn=alone, multiprocessing_context="spawn", generator=torch.Generator(),
    )  # fmt: skip
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        return iter(loader)
    except OSError as error:
        raise TrainingError(f"loader processes cannot be started ({error.strerror}); {_WITHOUT}") from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next(workers: Iterator[Part | AlignError]) -> Part:
    try:
        part = next(workers)
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise DataError(
            f"a loader process has died, perhaps for memory: {error}; run the stage again to resume"
        ) from None
    if isinstance(part, AlignError):
        raise part
    return part
