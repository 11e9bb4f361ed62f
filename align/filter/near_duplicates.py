"""Near-duplicates of evaluation images (rule I5) after appendix A: an embedding, and a cosine above a cut.

The paper: 4,000 clusters; each image goes to its 10 nearest ones, and from them into 120 buckets, one for each choice
of 3; images that share a bucket are compared. Deviation: no buckets, and no clusters of training images. An index of
the views of the evaluation images (`align.services.vector_index.RangeIndex`) finds what may be above the cut; what is
above it is decided here. So a training image is compared with the same views, whichever others there are.

Memory is bounded however many images there are: a block of embeddings is compared as soon as the network has computed
it, and none is stored. The index is a file, whose pages the processes of a machine share.

Near-duplicates by hash complement the embedding, which needs a network and sees only images that the other rules keep.
Fingerprints are computed once per distinct image. Two images are the same if (1) their 64-bit perceptual hashes (signs
of the lowest 8 x 8 frequencies of a 32 x 32 grey thumbnail) differ in few bits and (2) the colours of their 16 x 16
thumbnails correlate closely. The hash is only a sieve: it survives re-encoding and resizing of a busy picture, but up
to 18 of its bits flip for a plain one (a flag), and two clock faces have the same hash. The thumbnails decide: on the
sample, copies that were re-encoded or resized to half correlate at 0.999 and above, the closest different pictures (two
flags with different emblems) at 0.997. Crops and flips are left to the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from align.errors import DataError
from align.formats.evaluation_set import DistinctPictures
from align.pairs.perceptual_hash import THUMBNAIL_PX, ImageSignals

Out = TypeVar("Out")

#: Two images are the same if their hashes differ in at most this many of 64 bits ...
_MAX_BITS = 20
#: ... and the colours of their thumbnails correlate above this: copies reach 0.999, flags with another emblem 0.997.
_CORRELATION_ABOVE = 0.998
#: Rows of the hash comparison at a time: bounds its memory.
_COMPARED_AT_ONCE = 1024
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


def matches_by_hash(images: Fingerprints, references: Fingerprints) -> list[tuple[int, int]]:
    """All (row of `images`, row of `references`) that show the same picture; compares 1024 rows at a time."""
    matches: list[tuple[int, int]] = []
    for start in range(0, len(images.owners), _COMPARED_AT_ONCE):
        block = slice(start, start + _COMPARED_AT_ONCE)
        distance = np.bitwise_count(images.phashes[block, None] ^ references.phashes[None, :])
        left, right = np.nonzero(distance <= _MAX_BITS)
        left = left + start
        correlation = np.einsum("nd,nd->n", images.thumbnails[left], references.thumbnails[right])
        both_flat = ~images.thumbnails[left].any(axis=1) & ~references.thumbnails[right].any(axis=1)
        apart = np.abs(images.colours[left] - references.colours[right]).max(axis=1, initial=0.0)
        same = (correlation > _CORRELATION_ABOVE) | (both_flat & (apart < _FLAT_DISTANCE))
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


#: Rows of a file written, or of a shard compared, at a time.
_ROWS_AT_ONCE = 1024
#: The largest error of a float32 sum.
_MARGIN = 1e-3


@dataclass(frozen=True)
class Embeddings:
    """Named vectors.

    Attributes:
        names: (N,); a name may occur several times, for the views of one evaluation image.
        vectors: (N, D) float16, of length at most 1.
    """

    names: list[str]
    vectors: NDArray[np.float16]


@dataclass(frozen=True)
class NearDuplicate:
    """A training image that shows what an evaluation image shows, and its cosine with the closest view (4 decimals)."""

    image_id: str
    reference: str
    cosine: float


def write_embeddings(path: Path, rows: Iterable[tuple[str, NDArray[np.float16]]], width: int) -> None:
    """Writes (name, (width,) vector) or (name, (V, width) views) to an Arrow file, a block at a time.

    Equal rows give equal bytes. Without rows the file is valid and empty.
    """
    schema = pa.schema([("name", pa.string()), ("vector", pa.list_(pa.float16(), width))])
    with pa.ipc.new_file(str(path), schema) as writer:
        remaining = iter(rows)
        while block := list(islice(remaining, _ROWS_AT_ONCE)):
            views = [np.atleast_2d(vectors) for _, vectors in block]
            names = [name for (name, _), some in zip(block, views, strict=True) for _ in some]
            numbers = pa.array(np.concatenate(views).astype(np.float16, copy=False).ravel())
            columns = [pa.array(names, pa.string()), pa.FixedSizeListArray.from_arrays(numbers, width)]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def read_embeddings(path: Path) -> Embeddings:
    """Reads what `write_embeddings` wrote. Raises DataError if the file is missing or is not such a file."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            table = reader.read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: no embeddings here ({str(error).splitlines()[0]}); run `align filter` again"
        ) from None
    width = table.schema.field("vector").type.list_size
    vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Embeddings(table["name"].to_pylist(), vectors.reshape(-1, width))


#: (vectors (N, D) float32, cut) -> all (row, row of the references) whose cosine is above the cut, ordered by row, and
#: perhaps some below it. `align.services.vector_index.RangeIndex.above` is one.
Above = Callable[[NDArray[np.float32], float], tuple[NDArray[np.int64], NDArray[np.int64]]]


def matches_by_embedding(
    images: Iterable[tuple[str, NDArray[np.float16]]], references: Embeddings, find: Above, cut: float
) -> Iterator[NearDuplicate]:
    """Yields every (training image, evaluation image) whose cosine is above the cut, each once.

    Args:
        images: (name, (width,) vector) of distinct training images.
        references: of the evaluation images: one row per view, under the image's name.
        find: finds rows of the references.
        cut: `filter.near_duplicate_cosine_above`.
    """
    remaining = iter(images)
    while named := list(islice(remaining, _ROWS_AT_ONCE)):
        block = np.stack([vector for _, vector in named]).astype(np.float16, copy=False)
        best: dict[tuple[int, str], float] = {}
        rows, others = find(block.astype(np.float32), cut - _MARGIN)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            left, right = rows[start : start + _ROWS_AT_ONCE], others[start : start + _ROWS_AT_ONCE]
            # each match once more in float64: a float32 sum may depend on the other rows of the matrix
            cosines = (block[left].astype(np.float64) * references.vectors[right]).sum(axis=1).round(4)
            for row, other, cosine in zip(left.tolist(), right.tolist(), cosines.tolist(), strict=True):
                match = (row, references.names[other])
                if cosine > max(cut, best.get(match, -1.0)):
                    best[match] = cosine
        for (row, name), closest in sorted(best.items()):
            yield NearDuplicate(named[row][0], name, closest)
