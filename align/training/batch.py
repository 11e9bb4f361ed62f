"""A batch, and what decides its content."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Which samples a global batch holds.

    Attributes:
        seed: of the run.
        batch_size: of the global batch.
        shuffle_block: images that are shuffled together, see `align.training.order`.
    """

    seed: int
    batch_size: int
    shuffle_block: int


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each sample.

    Attributes:
        image_px: side of the random crop.
        num_draws: numbers per sample for stochastic depth.
        flip: whether half of the images are mirrored.
        phrase_dropout: share of the texts that lose some of their phrases.
    """

    image_px: int
    num_draws: int
    flip: bool
    phrase_dropout: float = 0.0


@dataclass(frozen=True)
class Batch:
    """One rank's part of a batch of B pairs.

    Attributes:
        images: (B, H, W, 3) uint8, a quarter of the size of float32.
        texts: B texts; text i belongs to image i.
        draws: (B, num_blocks) float32, the numbers for stochastic depth.
        num_quarantined: rows in which another sample replaces one that cannot be read.
        teacher: (B, 2, E) float16, the teacher's embeddings of each picture, not cropped, and of its whole text; None:
            there is no teacher.
    """

    images: Tensor
    texts: list[str]
    draws: Tensor
    num_quarantined: int = 0
    teacher: Tensor | None = None
