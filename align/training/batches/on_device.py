"""Batches on their way to a GPU: the copies of the next one run on a stream of their own, beside the step's kernels.

A batch is a function of its step alone, so a run that ends between a copy and its step loses nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch

from align.training.batches.batch import Batch

What = TypeVar("What")


class Copies(Protocol):
    """Where copies run. `SideStream` is the one; a test has another."""

    def beside(self) -> AbstractContextManager[object]:
        """Within the block copies are started beside the step."""
        ...

    def hand_over(self, batch: Batch) -> None:
        """Makes what the step does from now on wait for the copies of a batch; the host does not wait."""
        ...


class SideStream:
    """A second stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        stream: Any = torch.cuda.Stream
        self._device, self._stream = device, stream(device)

    def beside(self) -> AbstractContextManager[object]:
        """See `Copies`."""
        return torch.cuda.stream(self._stream)

    def hand_over(self, batch: Batch) -> None:
        """See `Copies`. The memory is the side stream's: without a record it could be reused while the step reads."""
        step = torch.cuda.current_stream(self._device)
        step.wait_stream(self._stream)
        for tensor in batch.tensors():
            tensor.record_stream(step)


def one_ahead(
    batches: Iterator[tuple[Batch, What]], device: torch.device, copies: Copies | None = None
) -> Generator[tuple[Batch, What]]:
    """The batches on their device; when one is handed out, the next one's copies have been started, and no more.

    Args:
        batches: on the CPU, in pinned memory if the device is a GPU, each with what belongs to it.
        device: of the model; for a CPU the batches pass as they are, and none is read ahead.
        copies: None: a new side stream.
    """
    if device.type == "cpu" and copies is None:
        yield from batches
        return
    copies = copies or SideStream(device)
    ready = None
    while True:
        # The step waits for what has been copied until now, so this comes before the next copies.
        if ready is not None:
            copies.hand_over(ready[0])
        following = None
        if (item := next(batches, None)) is not None:
            with copies.beside():
                following = item[0].to(device), item[1]
        if ready is not None:
            yield ready
        if following is None:
            return
        ready = following
