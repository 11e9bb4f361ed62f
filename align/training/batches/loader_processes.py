"""A rank's loader processes: the workers of torch's DataLoader, and the batches that they make.

The rows of the rank's part of each batch are divided among them, so a batch is ready when each has made its few, and
few batches are in memory however many processes there are. torch's shared memory is in /dev/shm, where it has no name.

The processes are spawned: a rank has threads, and a fork of it could wait for a lock that nobody holds.
"""

from __future__ import annotations

import shutil
import signal
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from align.errors import AlignError, TrainingError
from align.training.batches.batch import Augmentation, Batch, Rows, new_arrays, num_bytes, whole
from align.training.batches.loader_worker import ASKED, GROUP_SIGNALS, NUM_SLOTS, Part, Parts, alone, as_it_is
from align.training.process_group import RestartError

_SHARED = Path("/dev/shm")
_WITHOUT = "num_loader_processes: 0 does without"


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
        RestartError: a process has died.
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
        raise RestartError(
            f"a loader process has died, perhaps for memory: {error}; run the stage again to resume"
        ) from None
    if isinstance(part, AlignError):
        raise part
    return part
