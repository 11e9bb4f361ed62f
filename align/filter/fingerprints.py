"""Near-duplicates by hash (rule I5), from fingerprints that are computed once per distinct image.

They complement the paper's embedding (`align.filter.near_duplicates`), which needs a network and sees only images that
the other rules keep. Two images are the same if (1) their 64-bit perceptual hashes (signs of the lowest 8 x 8
frequencies of a 32 x 32 grey thumbnail) differ in few bits and (2) the colours of their 16 x 16 thumbnails correlate
closely. The hash is only a sieve: it survives re-encoding and resizing of a busy picture, but up to 18 of its bits flip
for a plain one (a flag), and two clock faces have the same hash. The thumbnails decide: on the sample, copies that were
re-encoded or resized to half correlate at 0.999 and above, the closest different pictures (two flags with different
emblems) at 0.997. Crops and flips are left to the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from align.formats.evaluation_set import DistinctPictures
from align.pairs.perceptual_hash import THUMBNAIL_PX, ImageSignals

Out = TypeVar("Out")

#: Rows of the hash comparison at a time: bounds its memory.
_COMPARE_ROWS = 1024
#: Standard deviation (0 to 255) below which a thumbnail counts as one colour, since correlation means nothing ...
_FLAT_STD = 1.0
#: ... and the mean colours of two such pictures must be this close.
_FLAT_DISTANCE = 4.0


@dataclass(frozen=True)
class Fingerprints:
    """Images to compare against.

    Attributes:
        owners: (N,) the name of each image, such as an image_id.
        phashes: (N,) uint64.
        thumbnails: (N, 768) float32, centred and of length 1; all 0 for a picture of one colour.
        colours: (N, 3) float32 mean colour, 0 to 255.
    """

    owners: list[str]
    phashes: np.ndarray[tuple[int], np.dtype[np.uint64]]
    thumbnails: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    colours: np.ndarray[tuple[int, int], np.dtype[np.float32]]

    @staticmethod
    def of(images: Iterable[tuple[str, ImageSignals]]) -> Fingerprints:
        """From (owner, signals). Images that do not decode are left out, as they resemble nothing."""
        decoded = [
            (owner, s.phash, s.thumbnail) for owner, s in images if s.phash is not None and s.thumbnail is not None
        ]
        pixels = np.frombuffer(b"".join(thumbnail for _, _, thumbnail in decoded), dtype=np.uint8)
        pixels = pixels.reshape(len(decoded), THUMBNAIL_PX**2, 3).astype(np.float32)
        centred = (pixels - pixels.mean(axis=(1, 2), keepdims=True)).reshape(len(decoded), 3 * THUMBNAIL_PX**2)
        flat = centred.std(axis=1) < _FLAT_STD
        length = np.linalg.norm(centred, axis=1)
        thumbnails = np.where(flat[:, None], 0, centred / np.maximum(length, 1e-6)[:, None]).astype(np.float32)
        phashes = np.array([phash for _, phash, _ in decoded], dtype=np.uint64)
        return Fingerprints([owner for owner, _, _ in decoded], phashes, thumbnails, pixels.mean(axis=1))


def near_duplicates(
    images: Fingerprints, references: Fingerprints, *, max_phash_distance: int, correlation_above: float
) -> list[tuple[int, int]]:
    """All (row of `images`, row of `references`) that show the same picture; compares 1024 rows at a time."""
    matches: list[tuple[int, int]] = []
    for start in range(0, len(images.owners), _COMPARE_ROWS):
        block = slice(start, start + _COMPARE_ROWS)
        distance = np.bitwise_count(images.phashes[block, None] ^ references.phashes[None, :])
        left, right = np.nonzero(distance <= max_phash_distance)
        left = left + start
        correlation = np.einsum("nd,nd->n", images.thumbnails[left], references.thumbnails[right])
        both_flat = ~images.thumbnails[left].any(axis=1) & ~references.thumbnails[right].any(axis=1)
        apart = np.abs(images.colours[left] - references.colours[right]).max(axis=1, initial=0.0)
        same = (correlation > correlation_above) | (both_flat & (apart < _FLAT_DISTANCE))
        matches += [(int(a), int(b)) for a, b in zip(left[same], right[same], strict=True)]
    return matches


def by_content(
    look: Callable[[Iterable[tuple[str, bytes]]], Iterable[tuple[str, Out]]], images: DistinctPictures
) -> Iterator[tuple[str, Out]]:
    """The results of `look`, repeated for each name of an image. `look` gets each image once, under its first name."""
    owners = {names[0]: names for names in images.names}
    for first, result in look(images.read()):
        for name in owners[first]:
            yield name, result
