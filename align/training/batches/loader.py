"""Training batches, each a pure function of its step, prepared ahead by loader processes or by threads.

Each epoch draws one of an image's texts; the last, incomplete batch of an epoch is dropped. A rank takes a contiguous
part of every batch, so the global batch is the same for any number of ranks, processes and threads, and resuming needs
no saved state.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace

import torch

from align.display.console import say
from align.training.batches.batch import Augmentation, Batch, Sampling, Workers, new_arrays, whole
from align.training.batches.loader_processes import made_by_processes, shared_slots
from align.training.batches.loader_worker import Parts
from align.training.batches.rows import AHEAD, RowMaker
from align.training.batches.samples import SplitSamples

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
        self._augmentation = augmentation = replace(augmentation, teacher_width=samples.teacher_width)
        self._sampling, self._workers = sampling, workers
        share = sampling.batch_size // world_size
        self._share = (rank * share, (rank + 1) * share)
        num_threads = workers.num_threads or torch.get_num_threads()
        self._maker = RowMaker(self._sources, sampling, augmentation, self._share, num_threads, self._report)
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
            RestartError: a loader process has died.
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
            num_threads=self._workers.num_threads or 1, steps=(first_step, num_steps),
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
