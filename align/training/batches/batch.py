"""A batch, and its way to a GPU: the copies of the next one run on a stream of their own, beside the step's kernels."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.model.tokenizer import pad


class Tokens(NamedTuple):
    """Texts for the text tower: (B, T) int64 ids, padded to the longest, and (B,) int64 lengths, always on the host."""

    ids: Tensor
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: list[list[int]], pad_id: int, *, pin: bool = False) -> Tokens:
        """Pads sequences of ids; `pin` puts them into page-locked memory."""
        ids, _ = pad(sequences, pad_id)
        return cls(ids.pin_memory() if pin else ids, np.array([len(ids) for ids in sequences], dtype=np.int64))


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch of B pairs.

    Attributes:
        images: (B, H, W, 3) uint8, a quarter of the size of float32.
        texts, tokens: text i belongs to image i.
        draws: (B, num_blocks) float32, the numbers for stochastic depth.
        num_quarantined: rows in which another sample replaces one that cannot be read.
        drawn: the texts as they are stored, before any of their phrases are dropped.
        numbers: (B,) int64 on the host, the number in its split of each sample that is shown.
    """

    images: Tensor
    texts: list[str]
    draws: Tensor
    tokens: Tokens
    num_quarantined: int = 0
    drawn: list[str] = field(default_factory=list)
    numbers: Tensor | None = None

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, draws, and ids of the tokens."""
        return self.images, self.draws, self.tokens.ids

    def to(self, device: torch.device) -> Batch:
        """Copies the batch to a device. The host does not wait for copies from pinned memory."""
        images, draws, ids = (tensor.to(device, non_blocking=True) for tensor in self.tensors())
        return replace(self, images=images, draws=draws, tokens=self.tokens._replace(ids=ids))


def one_ahead(batches: Iterator[Batch], device: torch.device) -> Generator[Batch]:
    """Yields batches of pinned memory on a GPU, when the next one's copies have been started; for a CPU as they are."""
    if device.type == "cpu":
        yield from batches
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch

    def start() -> Batch | None:
        if (batch := next(batches, None)) is None:
            return None
        with torch.cuda.stream(copies):
            return batch.to(device)

    ready = start()
    while ready is not None:
        step = torch.cuda.current_stream(device)
        step.wait_stream(copies)  # before the next copies start: it waits for all that have started until now
        for tensor in ready.tensors():
            tensor.record_stream(step)  # the memory is that of `copies`, and could be reused while the step reads
        following = start()
        yield ready
        ready = following
