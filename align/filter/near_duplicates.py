"""Near-duplicates of evaluation images (rule I5) after appendix A: an embedding, k-means, cosine above a cut.

The paper: 4,000 clusters; each image goes to its 10 nearest ones, and from them into 120 buckets, one for each choice
of 3; images that share a bucket are compared. Deviation: no buckets. A view of an evaluation image belongs to its
nearest cluster, and a training image is compared with the views in its 10 nearest clusters (faiss calls these probes).

Memory is bounded however many images there are: embeddings are on disk, one file per shard (2 bytes per number), and
one shard is read at a time; k-means gets a bounded sample. The evaluation images are in memory, 72 kB each by default.
If they do not fit, they can be compared a part at a time, as the clusters do not depend on them.

Near-duplicates by hash complement the embedding, which needs a network and sees only images that the other rules keep.
Fingerprints are computed once per distinct image. Two images are the same if (1) their 64-bit perceptual hashes (signs
of the lowest 8 x 8 frequencies of a 32 x 32 grey thumbnail) differ in few bits and (2) the colours of their 16 x 16
thumbnails correlate closely. The hash is only a sieve: it survives re-encoding and resizing of a busy picture, but up
to 18 of its bits flip for a plain one (a flag), and two clock faces have the same hash. The thumbnails decide: on the
sample, copies that were re-encoded or resized to half correlate at 0.999 and above, the closest different pictures (two
flags with different emblems) at 0.997. Crops and flips are left to the embedding.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from align.config.filter import FilterConfig
from align.durable.files import replaced
from align.errors import DataError
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


def near_duplicates(images: Fingerprints, references: Fingerprints, config: FilterConfig) -> list[tuple[int, int]]:
    """All (row of `images`, row of `references`) that show the same picture; compares 1024 rows at a time."""
    matches: list[tuple[int, int]] = []
    for start in range(0, len(images.owners), _COMPARE_ROWS):
        block = slice(start, start + _COMPARE_ROWS)
        distance = np.bitwise_count(images.phashes[block, None] ^ references.phashes[None, :])
        left, right = np.nonzero(distance <= config.max_phash_distance)
        left = left + start
        correlation = np.einsum("nd,nd->n", images.thumbnails[left], references.thumbnails[right])
        both_flat = ~images.thumbnails[left].any(axis=1) & ~references.thumbnails[right].any(axis=1)
        apart = np.abs(images.colours[left] - references.colours[right]).max(axis=1, initial=0.0)
        same = (correlation > config.thumbnail_correlation_above) | (both_flat & (apart < _FLAT_DISTANCE))
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


#: (vectors (N, D) float32, number of clusters) -> centroids (K, D) float32, L2-normalised.
#: `align.services.vector_index.kmeans` is one.
Kmeans = Callable[[NDArray[np.float32], int], NDArray[np.float32]]

#: k-means gets at most this many images per cluster, and this many in all (half a gigabyte by default), ...
_SAMPLE_PER_CLUSTER = 64
_MAX_SAMPLE = 1 << 16
#: ... and makes at most so many clusters that each has this many images; 4,000 still fit.
_MIN_PER_CLUSTER = 16
#: Rows of a file written, or of a shard compared, at a time.
_BLOCK_ROWS = 1024
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
    """Writes (name, (width,) vector) or (name, (V, width) views) to an Arrow file, atomically, a block at a time.

    Equal rows give equal bytes. Without rows the file is valid and empty.
    """
    schema = pa.schema([("name", pa.string()), ("vector", pa.list_(pa.float16(), width))])
    path.parent.mkdir(exist_ok=True)
    with replaced(path, on_disk=False) as beside, pa.ipc.new_file(str(beside), schema) as writer:
        remaining = iter(rows)
        while block := list(islice(remaining, _BLOCK_ROWS)):
            views = [np.atleast_2d(vectors) for _, vectors in block]
            names = [name for (name, _), some in zip(block, views, strict=True) for _ in some]
            numbers = pa.array(np.concatenate(views).astype(np.float16, copy=False).ravel())
            columns = [pa.array(names, pa.string()), pa.FixedSizeListArray.from_arrays(numbers, width)]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def read_embeddings(path: Path, start: int = 0, stop: int | None = None) -> Embeddings:
    """Reads rows of what `write_embeddings` wrote. Raises DataError if the file is missing or is not such a file."""
    table = _read(path, None)[start:stop]
    width = table.schema.field("vector").type.list_size
    vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Embeddings(table["name"].to_pylist(), vectors.reshape(-1, width))


def _read(path: Path, columns: list[int] | None) -> pa.Table:
    try:
        options = pa.ipc.IpcReadOptions(included_fields=columns)
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file, options=options) as reader:
            return reader.read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path}: no embeddings here ({str(error).splitlines()[0]}); run `align filter` again"
        ) from None


def sampled_share(num_images: int, config: FilterConfig) -> float:
    """Which share of the images, by `is_sampled`, has all that k-means needs, even if most of them do not decode."""
    return min(1.0, 4 * _sample_size(config) / max(num_images, 1))


def is_sampled(name: str, share: float) -> bool:
    """Whether an image is in a share of all: those whose hashed names are the lowest."""
    return int.from_bytes(_place(name)[:8]) < share * 2.0**64


def centroids_of(sampled: Sequence[Path], config: FilterConfig, kmeans: Kmeans) -> NDArray[np.float32]:
    """(K, D) clusters of the training images; K is 0 if there are none.

    Args:
        sampled: files of `write_embeddings` that have the sampled images; names are image_ids, each once. Their order
            does not matter.
        config: `near_duplicate_clusters`.
        kmeans: see `Kmeans`.

    Raises:
        DataError: a file is unreadable.
    """
    sample = _sample(sampled, _sample_size(config))
    num_clusters = max(1, min(config.near_duplicate_clusters, len(sample) // _MIN_PER_CLUSTER))
    return kmeans(sample, num_clusters) if len(sample) else sample


def clusters_of(references: Embeddings, centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """(N,) the nearest cluster of each row of the references."""
    rows = range(0, len(references.names), _BLOCK_ROWS)
    blocks = (references.vectors[start : start + _BLOCK_ROWS].astype(np.float32) for start in rows)
    return np.concatenate([np.zeros(0, np.int64), *(_nearest(block, centroids, 1)[:, 0] for block in blocks)])


def near_duplicates_in(
    path: Path, references: Embeddings, groups: tuple[NDArray[np.float32], NDArray[np.int64]], config: FilterConfig
) -> Iterator[NearDuplicate]:
    """Yields every (training image, evaluation image) of a shard whose cosine is above the cut, each once.

    Args:
        path: a file of `write_embeddings`.
        references: of the evaluation images: one row per view, under the image's name.
        groups: the clusters, as `centroids_of`, and those of the references, as `clusters_of`.
        config: `near_duplicate_probes`, `near_duplicate_cosine_above`.

    Raises:
        DataError: the file is unreadable.
    """
    (centroids, clusters), shard = groups, read_embeddings(path)
    cut = config.near_duplicate_cosine_above
    probed = _nearest(shard.vectors.astype(np.float32), centroids, config.near_duplicate_probes)
    best: dict[tuple[int, str], float] = {}
    for cluster in range(len(centroids)):
        members, rows = np.flatnonzero(clusters == cluster), np.flatnonzero((probed == cluster).any(axis=1))
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            for left, right, cosine in _above(shard.vectors[block], references.vectors[members], cut):
                match = (int(block[left]), references.names[members[right]])
                best[match] = max(best.get(match, -1.0), cosine)
    for (row, name), closest in sorted(best.items()):
        yield NearDuplicate(shard.names[row], name, closest)


def _sample_size(config: FilterConfig) -> int:
    return min(_SAMPLE_PER_CLUSTER * config.near_duplicate_clusters, _MAX_SAMPLE)


def _place(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _sample(shards: Sequence[Path], size: int) -> NDArray[np.float32]:
    """(at most `size`, D): the images with the lowest hashed ids, in that order, however shards divide them."""
    candidates = (
        (_place(name), number, row)
        for number, path in enumerate(shards)
        for row, name in enumerate(_read(path, [0])["name"].to_pylist())
    )
    chosen = heapq.nsmallest(size, candidates)
    rows: dict[int, list[tuple[int, int]]] = {}  # shard -> (row there, row in the sample)
    for position, (_, number, row) in enumerate(chosen):
        rows.setdefault(number, []).append((row, position))
    width = read_embeddings(shards[0], 0, 0).vectors.shape[1] if shards else 0
    sample = np.zeros((len(chosen), width), dtype=np.float32)
    for number, pairs in rows.items():
        rows_in_shard, rows_in_sample = np.array(pairs).T
        sample[rows_in_sample] = read_embeddings(shards[number]).vectors[rows_in_shard]
    return sample


def _above(vectors: NDArray[np.float16], others: NDArray[np.float16], cut: float) -> Iterator[tuple[int, int, float]]:
    """(row, row of the others, their cosine to 4 decimals) of those above the cut; rows ascend."""
    left, right = np.nonzero(vectors.astype(np.float32) @ others.astype(np.float32).T > cut - _MARGIN)
    for start in range(0, len(left), _BLOCK_ROWS):
        rows, close = left[start : start + _BLOCK_ROWS], right[start : start + _BLOCK_ROWS]
        # each match once more in float64: a float32 sum may depend on the other rows of the matrix
        cosines = (vectors[rows].astype(np.float64) * others[close]).sum(axis=1).round(4)
        above = cosines > cut
        yield from zip(rows[above].tolist(), close[above].tolist(), cosines[above].tolist(), strict=True)


def _nearest(vectors: NDArray[np.float32], centroids: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """(N, at most `count`) the nearest clusters of each vector, in any order."""
    count = min(count, len(centroids))
    return np.argpartition(-(vectors @ centroids.T), count - 1, axis=1)[:, :count]
