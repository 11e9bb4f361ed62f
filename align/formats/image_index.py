"""The format of `data/index`: which images are indexed, where their bytes are stored, their thumbnails and vectors.

`vectors.faiss` (and `vectors.npy`, if it is approximate) hold one vector per image; row i of `items.parquet` has all
that is said of vector i: texts, addresses, the columns of a catalogue, and which bytes of `thumbnails.jpegs` are its
thumbnail. `index.json` names the model and the shards that all belong to, the rules that kept the pairs, and the size
of each file. A search with another model or over other shards is an error, never a wrong answer.

With thumbnails the folder needs nothing else to show what it finds, and where that comes from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from align.durable.files import sha256_file, to_json, write_text
from align.errors import CorruptError, DataError
from align.formats.indexed_images import (
    ITEMS,
    IndexedImage,
    IndexedImages,
    PairAddress,
    Vectors32,
    no_image,
    write_images,
)
from align.formats.json_file import StoredModel, parse
from align.interfaces.vectors import Vectors

__all__ = ["Hit", "ImageIndex", "IndexHeader", "IndexedImage", "write_index"]

VECTORS = "vectors.faiss"
_HEADER = "index.json"
#: What an image of a catalogue has in place of a split.
CATALOGUE = "catalogue"
#: Filters whose images are remembered: each takes one bool per image.
_NUM_FILTERS = 16


class Promise(StoredModel):
    """How sure its answers in words are; `align.search.surely` measures it.

    Attributes:
        lines: level, such as 0.9 -> least score of a picture that holds it, for words that are not split; 2: no picture
            does.
        slope: how much the lines rise by what `Embedder.splits` says of a text.
        num_concepts: of the held-out texts by which the lines were drawn, and of whose kind the promise is.
    """

    lines: dict[float, float]
    slope: float
    num_concepts: int


class IndexFacts(StoredModel):
    """What an index was made from, and what was found.

    Attributes:
        model_digest: of the model.
        shards_digest: of the shards.
        thumbnail_px: longest side of a thumbnail; 0: there are none.
        rules: code of each rule of the filter -> what it drops, as a condition, None if it was off; none of them
            dropped a pair that is here. Empty: nobody knows the rules.
        warning: why its answers may be wrong, as `align index` found; None: it found nothing, or did not look.
        promise: how sure its answers are; None: it has too few held-out texts to say.
    """

    model_digest: str
    shards_digest: str
    thumbnail_px: int
    rules: dict[str, str | None] = Field(default_factory=dict)
    warning: str | None = None
    promise: Promise | None = None


class IndexHeader(IndexFacts):
    """index.json.

    Attributes:
        num_items: the number of images.
        width: length of a vector.
        files: name -> size in bytes, of all other files.
        vectors_sha256: file of vectors -> hex sha256; the tables have checksums of their own.
    """

    schema_version: Literal[5] = 5
    num_items: int
    width: int
    files: dict[str, int]
    vectors_sha256: dict[str, str]


@dataclass(frozen=True)
class Hit:
    """An image that a search returns, and its cosine with the query (image + text queries are normalised first)."""

    item: IndexedImage
    score: float


def write_index(
    directory: Path,
    images: Iterable[tuple[pa.Table, Vectors32]],
    build: Callable[[Iterator[Vectors32], Path], Vectors],
    facts: IndexFacts,
) -> None:
    """Writes the files; equal contents are equal bytes.

    Args:
        directory: exists; hidden files in it are not of the index.
        images: some at a time, see `write_images`; at least one.
        build: writes their vectors to a file.
        facts: what it is made from.

    Raises:
        CorruptError: not as many vectors as images were written.
    """
    vectors = build(write_images(directory, images, thumbnails=facts.thumbnail_px > 0), directory / VECTORS)
    if len(vectors) != (num_images := pq.read_metadata(directory / ITEMS).num_rows):
        raise CorruptError(f"{directory}: {len(vectors)} vectors for {num_images} images")
    files = [path for path in sorted(directory.iterdir()) if not path.name.startswith(".") and path.name != _HEADER]
    header = IndexHeader(
        **facts.model_dump(),
        num_items=num_images,
        width=vectors.width,
        files={path.name: path.stat().st_size for path in files},
        vectors_sha256={path.name: sha256_file(path) for path in files if path.match("vectors.*")},
    )
    write_text(directory / _HEADER, to_json(header.model_dump()))


def copy_index(directory: Path, out: Path, *, model_digest: str) -> None:
    """Copies an index to a new folder for a model that embeds alike, such as the same one with rounded weights.

    Raises as `ImageIndex.load`.
    """
    header = _read_header(directory)
    out.mkdir()
    for name in header.files:
        shutil.copyfile(directory / name, out / name)
    write_text(out / _HEADER, to_json(header.model_copy(update={"model_digest": model_digest}).model_dump()))


def _read_header(directory: Path) -> IndexHeader:
    """Reads index.json, and checks the sizes of the files that it names."""
    path = directory / _HEADER
    if not path.is_file():
        raise DataError(f"{directory}: there is no index; run `align index` first")
    header = parse(IndexHeader, path.read_bytes(), path, "run `align index` again")
    for name, size in header.files.items():
        file = directory / name
        if file.parent != directory or not file.is_file():
            raise CorruptError(f"{file}: missing; run `align index` again")
        if (found := file.stat().st_size) != size:
            raise CorruptError(f"{file}: {found:,} bytes, not the {size:,} of {_HEADER}; run `align index` again")
    return header


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The indexed images with their vectors.

    Attributes:
        header: index.json.
        items: the images, in the order of the index.
    """

    header: IndexHeader
    items: IndexedImages
    _vectors: Vectors
    _allowed: Callable[..., NDArray[np.bool_]]
    _shown: NDArray[np.bool_] | None = None  # all

    @classmethod
    def load(cls, directory: Path, load_vectors: Callable[[Path], Vectors]) -> ImageIndex:
        """Opens what `write_index` wrote. It stays the same when another index replaces the folder.

        Args:
            directory: the folder.
            load_vectors: reads the file of vectors.

        Raises:
            DataError: there is no index.
            FormatError: index.json has another schema_version or layout.
            CorruptError: a file is damaged or cut off, or the files do not belong together.
        """
        header = _read_header(directory)
        for name in (name for name in header.files if Path(name).match("vectors.*")):
            if sha256_file(directory / name) != header.vectors_sha256.get(name):
                raise CorruptError(
                    f"{directory / name}: damaged: its sha256 is not the one in {_HEADER}; run `align index`"
                )
        vectors = load_vectors(directory / VECTORS)
        items = IndexedImages.load(directory, len(vectors), thumbnails=header.thumbnail_px > 0)
        if len(vectors) != header.num_items or vectors.width != header.width:
            raise CorruptError(f"{directory}: vectors and index.json disagree; run `align index` again")
        return cls(header, items, vectors, lru_cache(_NUM_FILTERS)(items.matching))

    def without(self, image_ids: Collection[str], covers: Callable[[str, str], bool] | None) -> ImageIndex:
        """The same index without images that `IndexedImages.listed`: no key names them, and no search finds them."""
        shown = ~self.items.listed(image_ids, covers)
        return replace(self, _shown=None if shown.all() else shown)

    def promising(self, promise: Promise, directory: Path) -> ImageIndex:
        """The same index with a promise, which is written into its folder."""
        header = self.header.model_copy(update={"promise": promise})
        write_text(directory / _HEADER, to_json(header.model_dump(mode="json")))
        return replace(self, header=header)

    @property
    def num_images(self) -> int:
        """The images that are not left out."""
        return len(self.items) if self._shown is None else int(np.count_nonzero(self._shown))

    @property
    def has_thumbnails(self) -> bool:
        """Whether `thumbnail` has pictures."""
        return self.header.thumbnail_px > 0

    def item(self, key: str) -> IndexedImage:
        """The image with this key. Raises DataError if there is none."""
        return self.items[self._position(key)]

    def addresses(self, key: str) -> tuple[PairAddress, ...]:
        """Where the pairs of an image were found, parallel to its `keys`. Raises DataError if no image has this key;
        CorruptError if they are damaged.
        """
        return self.items.addresses(self._position(key))

    def thumbnail(self, key: str) -> bytes:
        """The thumbnail of an image: a JPEG, square as the shards' images are. Raises DataError if no image has this
        key, or the index has no thumbnails; CorruptError if the file of the thumbnails is damaged.
        """
        return self.items.thumbnail(self._position(key))

    def vector(self, key: str) -> NDArray[np.float32]:
        """The stored (width,) vector of an image. Raises DataError if no image has this key."""
        return self._vectors.vector(self._position(key))

    def _position(self, key: str) -> int:
        position = self.items.position(key)
        if self._shown is not None and not self._shown[position]:
            raise no_image(key)
        return position

    def spread(self, number: int) -> list[IndexedImage]:
        """At most so many images, evenly over all, without those that are left out."""
        positions = np.arange(len(self.items)) if self._shown is None else np.flatnonzero(self._shown)
        return [self.items[int(some[0])] for some in np.array_split(positions, number) if len(some)]

    def allowed(
        self, splits: Sequence[str] = (), words: Sequence[str] = (), where: Sequence[str] = ()
    ) -> NDArray[np.bool_] | None:
        """The images that pass a filter, as (number of images,) booleans; None: all. See `IndexedImages.matching`."""
        given = tuple(splits), tuple(words), tuple(where)
        return self._allowed(*given) if any(given) else None

    def search(
        self,
        query: NDArray[np.float32] | None,
        k: int,
        *,
        exclude: Sequence[str] = (),
        allowed: NDArray[np.bool_] | None = None,
    ) -> list[Hit]:
        """The k images nearest to one query, nearest first. Fewer than k only if there are no more.

        Args:
            query: (width,), L2-normalised; None: the first images in the order of the index, with scores of 0.
            k: at least 1.
            exclude: keys of images that are left out.
            allowed: see `allowed`.
        """
        if self._shown is not None:
            allowed = self._shown if allowed is None else allowed & self._shown
        if query is None:
            positions = np.arange(len(self.items)) if allowed is None else np.flatnonzero(allowed)
            return [Hit(self.items[int(position)], 0.0) for position in positions[:k]]
        scores, ids = self._vectors.search(query[np.newaxis], k + len(exclude), allowed)
        found = ((self.items[int(position)], float(score)) for score, position in zip(scores[0], ids[0], strict=True))
        return [Hit(item, score) for item, score in found if item.key not in exclude][:k]
