"""A batch, what decides its content, and how it lies in memory.

On its way to a GPU the copies of the next batch run on a stream of their own, beside the step's kernels. A batch is a
function of its step alone, so a run that ends between a copy and its step loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.model.tokenizer import TextTokenizer, pad
from align.training.batches.order import SHUFFLE_BLOCK

_TORCH_TYPES: dict[Any, torch.dtype] = {np.uint8: torch.uint8, np.float16: torch.float16, np.float32: torch.float32}


@dataclass(frozen=True)
class Sampling:
    """Which samples a global batch holds.

    Attributes:
        seed: of the run.
        batch_size: of the global batch.
        shuffle_block: images that are shuffled together, see `align.training.batches.order`.
    """

    seed: int
    batch_size: int
    shuffle_block: int = SHUFFLE_BLOCK


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each sample, and what becomes of its text.

    Attributes:
        image_px: side of the random crop.
        num_draws: numbers per sample for stochastic depth.
        flip: whether half of the images are mirrored.
        crop_scale: smallest and largest side of the crop, relative to `image_px`, to which it is resized.
        phrase_dropout: share of the texts that lose some of their phrases.
        sentence_share: share of the texts that are shown in a sentence.
        tokenizer: of the texts; None leaves them to the step.
    """

    image_px: int
    num_draws: int
    flip: bool
    crop_scale: tuple[float, float] = (1.0, 1.0)
    phrase_dropout: float = 0.0
    sentence_share: float = 0.0
    tokenizer: TextTokenizer | None = None


@dataclass(frozen=True)
class Workers:
    """Who makes a rank's part of each batch. None of it changes the batches.

    Attributes:
        num_processes: loader processes, which divide the rows among themselves; 0: threads of the rank, as many as
            torch computes with.
        pin: whether batches lie in page-locked memory, from which a GPU copies while the host works.
    """

    num_processes: int = 0
    pin: bool = False


class Arrays(NamedTuple):
    """What has a fixed size in N rows of a batch."""

    images: NDArray[np.uint8]
    draws: NDArray[np.float32]


#: Memory for the rows that a step needs; may wait until some is free.
Memory = Callable[[int], Arrays]


def _shapes(num_rows: int, augmentation: Augmentation) -> Iterator[tuple[tuple[int, ...], type[np.generic]]]:
    """Of `Arrays`, in order."""
    yield (num_rows, augmentation.image_px, augmentation.image_px, 3), np.uint8
    yield (num_rows, augmentation.num_draws), np.float32


def new_arrays(num_rows: int, augmentation: Augmentation, *, pin: bool = False) -> Arrays:
    """Arrays of N rows in memory of their own."""
    return Arrays._make(
        torch.empty(shape, dtype=_TORCH_TYPES[kind], pin_memory=pin).numpy()
        for shape, kind in _shapes(num_rows, augmentation)
    )


def num_bytes(num_rows: int, augmentation: Augmentation) -> int:
    """Of the arrays of N rows."""
    return sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in _shapes(num_rows, augmentation))


class Rows(NamedTuple):
    """What else N rows of a batch hold; can be pickled.

    Attributes:
        texts: N texts.
        ids: their tokens, see `TextTokenizer.ids`; empty without a tokenizer.
        num_quarantined: rows in which another sample replaces one that cannot be read.
    """

    texts: list[str]
    ids: list[list[int]]
    num_quarantined: int


class Tokens(NamedTuple):
    """The texts of a batch for the text tower.

    Attributes:
        ids: (B, T) int64, padded to the longest.
        lengths: (B,) int64, on the host, so that nothing waits for a GPU to tell them.
    """

    ids: Tensor
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: list[list[int]], pad_id: int, *, pin: bool = False) -> Tokens:
        """Pads sequences of ids."""
        ids, _ = pad(sequences, pad_id)
        return cls(ids.pin_memory() if pin else ids, np.array([len(ids) for ids in sequences], dtype=np.int64))


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch of B pairs.

    Attributes:
        images: (B, H, W, 3) uint8, a quarter of the size of float32.
        texts: B texts; text i belongs to image i.
        draws: (B, num_blocks) float32, the numbers for stochastic depth.
        num_quarantined: rows in which another sample replaces one that cannot be read.
        tokens: of the texts; None: the step makes them.
    """

    images: Tensor
    texts: list[str]
    draws: Tensor
    num_quarantined: int = 0
    tokens: Tokens | None = None

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [self.images, self.draws, *([self.tokens.ids] if self.tokens else ())]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device. The host does not wait for copies from pinned memory."""
        there = {id(tensor): tensor.to(device, non_blocking=True) for tensor in self.tensors()}
        tokens = self.tokens and self.tokens._replace(ids=there[id(self.tokens.ids)])
        return replace(self, images=there[id(self.images)], draws=there[id(self.draws)], tokens=tokens)


def whole(arrays: Arrays, rows: Rows, tokenizer: TextTokenizer | None, *, pin: bool = False) -> Batch:
    """A batch of all that its rows hold."""
    tokens = Tokens.of(rows.ids, tokenizer.pad_id, pin=pin) if tokenizer else None
    images, draws = map(torch.from_numpy, arrays)
    return Batch(images, rows.texts, draws, rows.num_quarantined, tokens)


class SideStream:
    """A second stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        stream: Any = torch.cuda.Stream
        self._device, self._stream = device, stream(device)

    def beside(self) -> AbstractContextManager[object]:
        """Within the block copies are started beside the step."""
        return torch.cuda.stream(self._stream)

    def hand_over(self, batch: Batch) -> None:
        """Makes what the step does from now on wait for the copies of a batch; the host does not wait.

        The memory is the side stream's: without a record it could be reused while the step reads.
        """
        step = torch.cuda.current_stream(self._device)
        step.wait_stream(self._stream)
        for tensor in batch.tensors():
            tensor.record_stream(step)


def one_ahead(batches: Iterator[Batch], device: torch.device, copies: SideStream | None = None) -> Generator[Batch]:
    """The batches on their device; when one is handed out, the next one's copies have been started, and no more.

    Args:
        batches: on the CPU, in pinned memory if the device is a GPU.
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
            copies.hand_over(ready)
        following = None
        if (batch := next(batches, None)) is not None:
            with copies.beside():
                following = batch.to(device)
        if ready is not None:
            yield ready
        if following is None:
            return
        ready = following
