"""The images of `data/index`: a table of where they came from and what is said of them, and a file of thumbnails.

A million rows take some hundred megabytes: they stay in Arrow's columns, and an `IndexedImage` is made when it is asked
for. A thumbnail is a range of bytes of `thumbnails.jpegs`, so that one read fetches it, even from a store.

Where each pair was found is in a file of its own, `align.formats.pair_addresses`, which no search reads; the words of
the texts are in another, `align.formats.indexed_words`.
"""

from __future__ import annotations

import os
import weakref
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.errors import CorruptError, DataError
from align.formats.indexed_words import write_words
from align.formats.pair_addresses import IMAGES_AT_ONCE, write_addresses
from align.formats.parquet import of_index, read_whole

ITEMS, THUMBNAILS = "items.parquet", "thumbnails.jpegs"

_ROWS_AT_ONCE = 1 << 14
_MAX_THUMBNAIL = 1 << 20
_NAME = pa.dictionary(pa.int32(), pa.string())  # few different ones
_SCHEMA = pa.schema([
    ("key", pa.string()), ("image_id", pa.string()), ("texts", pa.list_(pa.string())), ("split", _NAME),
    ("shard", _NAME), ("offset_bytes", pa.int64()), ("size_bytes", pa.int64()), ("keys", pa.list_(pa.string())),
    ("thumbnail_offset_bytes", pa.int64()), ("thumbnail_size_bytes", pa.int64()),
])  # fmt: skip
_PAIRS = pa.schema([("key", pa.string()), ("image_id", pa.string())])


@dataclass(frozen=True, slots=True)
class IndexedImage:
    """One indexed image.

    Attributes:
        key: key of its tar sample.
        image_id: sha256 of its original bytes.
        texts: all its kept texts.
        split: train, val or test.
        shard: tar file, relative to the folder of the shards.
        offset_bytes: start of the JPEG in that file.
        size_bytes: length of the JPEG.
        keys: of the pairs with these texts, parallel to them.
    """

    key: str
    image_id: str
    texts: tuple[str, ...]
    split: str
    shard: str
    offset_bytes: int
    size_bytes: int
    keys: tuple[str, ...]

    def image(self, tar: Path) -> bytes:
        """Reads its JPEG from the tar that `shard` names."""
        with tar.open("rb") as file:
            file.seek(self.offset_bytes)
            return file.read(self.size_bytes)


_FIELDS = tuple(field.name for field in fields(IndexedImage))


class IndexedImages(Sequence[IndexedImage]):
    """The images in the order of the index; a row becomes an `IndexedImage` when it is asked for."""

    def __init__(self, table: pa.Table, thumbnails: Path | None) -> None:
        self._table = table
        self._columns = [table[name] for name in _FIELDS]
        self._thumbnails: int | None = None
        if thumbnails is not None:
            self._thumbnails = os.open(thumbnails, os.O_RDONLY)  # the same file, even when the folder is replaced
            weakref.finalize(self, os.close, self._thumbnails)

    @classmethod
    def load(cls, directory: Path, num_images: int, *, thumbnails: bool) -> IndexedImages:
        """Opens what `ImagesWriter` wrote.

        Raises:
            CorruptError: a file is missing or damaged.
        """
        with of_index(directory / ITEMS, num_images):
            table = read_whole(directory / ITEMS, read_dictionary=["split", "shard"])
            if not table.schema.equals(_SCHEMA):
                raise pa.ArrowInvalid("other columns")
            texts = pc.list_flatten(table["texts"])
            if any(column.null_count for column in (*table.columns, texts)):
                raise pa.ArrowInvalid("values are missing")
            return cls(table, directory / THUMBNAILS if thumbnails else None)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, position: int) -> IndexedImage: ...

    @overload
    def __getitem__(self, position: slice) -> list[IndexedImage]: ...

    def __getitem__(self, position: int | slice) -> IndexedImage | list[IndexedImage]:
        if isinstance(position, slice):
            return [self[number] for number in range(*position.indices(len(self)))]
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        values: Iterator[Any] = (column[position].as_py() for column in self._columns)
        row: list[Any] = [tuple(value) if isinstance(value, list) else value for value in values]
        return IndexedImage(*row)

    def texts(self) -> Iterator[list[str]]:
        """The texts of each image in turn."""
        for chunk in self._table["texts"].chunks:
            yield from chunk.to_pylist()

    def with_image_ids(self, image_ids: Collection[str]) -> NDArray[np.bool_]:
        """(len(self),) bool: which images have one of these sha256s."""
        return _numpy(pc.is_in(self._table["image_id"], value_set=pa.array(sorted(image_ids), pa.string())))

    def position(self, key: str) -> int:
        """The row of an image. Raises DataError if no image has this key."""
        keys, order = self._table["key"], self._by_key
        place = bisect_left(order, key, key=lambda row: keys[int(row)].as_py())
        if place == len(order) or keys[int(order[place])].as_py() != key:
            raise no_image(key)
        return int(order[place])

    @cached_property
    def _by_key(self) -> NDArray[np.uint32]:
        """The rows in order of their keys. (Bytes of UTF-8 have the order of Python's strings.)"""
        return np.asarray(pc.sort_indices(self._table["key"])).astype(np.uint32)

    def thumbnail(self, position: int) -> bytes:
        """A JPEG.

        Raises:
            DataError: the index has no thumbnails.
            CorruptError: the file ends before it.
        """
        if self._thumbnails is None:
            raise DataError("the index has no thumbnails; set index.thumbnail_px and run `align index` again")
        offset = self._table["thumbnail_offset_bytes"][position].as_py()
        size = self._table["thumbnail_size_bytes"][position].as_py()
        if not (0 <= size <= _MAX_THUMBNAIL and 0 <= offset <= offset + size <= os.fstat(self._thumbnails).st_size):
            raise CorruptError(f"{THUMBNAILS} of the index ends before image {position}; run `align index` again")
        return os.pread(self._thumbnails, size, offset)

    def in_splits(self, splits: Sequence[str]) -> NDArray[np.bool_]:
        """(len(self),): which images are in one of these splits."""
        return _numpy(pc.is_in(self._table["split"].cast(pa.string()), value_set=pa.array(splits, pa.string())))

    @property
    def texts_column(self) -> pa.ChunkedArray:
        """The texts of each image."""
        return self._table["texts"]


def no_image(key: str) -> DataError:
    """No image of an index has this key."""
    return DataError(f"no image with key {key!r} in the index; `align search TEXT` prints keys")


class ImagesWriter:
    """Writes the table and the thumbnails, one image after the other, then the words; `write_found` writes the rest.

    Args:
        directory: exists.
        thumbnails: whether the images have any.

    Attributes:
        num_images: that were added.
    """

    def __init__(self, directory: Path, *, thumbnails: bool) -> None:
        self._table = pq.ParquetWriter(directory / ITEMS, _SCHEMA, compression="zstd", write_page_checksum=True)
        self._thumbnails = (directory / THUMBNAILS).open("wb") if thumbnails else None
        self._directory = directory
        self._rows: list[dict[str, Any]] = []
        self._num_bytes = 0
        self.num_images = 0

    def __enter__(self) -> ImagesWriter:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._rows:
            self._flush()
        self._table.close()
        if self._thumbnails is not None:
            self._thumbnails.close()
        if failure == (None, None, None):
            write_words(self._directory, self._directory / ITEMS)

    def add(self, item: IndexedImage, thumbnail: bytes) -> None:
        """Adds an image. `thumbnail` is a JPEG, or empty if the index has none."""
        row = {name: getattr(item, name) for name in _FIELDS}
        self._rows.append(row | {"thumbnail_offset_bytes": self._num_bytes, "thumbnail_size_bytes": len(thumbnail)})
        self._num_bytes += len(thumbnail)
        self.num_images += 1
        if self._thumbnails is not None:
            self._thumbnails.write(thumbnail)
        if len(self._rows) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._table.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA))
        self._rows.clear()


def write_found(directory: Path, addresses: Iterable[pa.Table]) -> None:
    """Writes the addresses of the images that an `ImagesWriter` wrote: `page_urls` and `urls`, parallel to `pairs`."""
    items = pq.ParquetFile(directory / ITEMS, pre_buffer=False)
    nums_pairs = (
        pc.list_value_length(batch["keys"]).to_numpy().astype(np.int64)
        for batch in items.iter_batches(IMAGES_AT_ONCE, columns=["keys"])
    )
    write_addresses(directory, nums_pairs, addresses)


def pairs(directory: Path) -> Iterator[pa.Table]:
    """`key` and `image_id` of the pairs of all images that an `ImagesWriter` wrote, in order, some at a time."""
    items = pq.ParquetFile(directory / ITEMS, pre_buffer=False)
    for batch in items.iter_batches(_ROWS_AT_ONCE, columns=["keys", "image_id"]):
        owners = pc.list_parent_indices(batch["keys"])
        yield pa.table([pc.list_flatten(batch["keys"]), batch["image_id"].take(owners)], schema=_PAIRS)


def _numpy(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    return np.asarray(column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(False))
