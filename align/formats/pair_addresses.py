"""The addresses of an index's pairs, `addresses.parquet` in `data/index`: row i belongs to image i of `items.parquet`.

They are needed when a person asks about one picture, and never by a search. So they stay on the disk in small row
groups, and one group is read for a picture.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.formats.parquet import of_index

ADDRESSES = "addresses.parquet"

IMAGES_AT_ONCE = 1 << 12
_PAGES, _PICTURES = "page_urls", "urls"
_SCHEMA = pa.schema([(_PAGES, pa.list_(pa.string())), (_PICTURES, pa.list_(pa.string()))])


@dataclass(frozen=True, slots=True)
class PairAddress:
    """Where a pair was found. Both are foreign text: check it before you make a link of it.

    Attributes:
        page_url: the page, as the source wrote it; empty: not recorded.
        url: the picture, http or https; empty: it came from no web address.
    """

    page_url: str
    url: str


def write_addresses(directory: Path, nums_pairs: Iterable[NDArray[np.int64]], addresses: Iterable[pa.Table]) -> None:
    """Writes the file, some rows in memory at a time.

    Args:
        directory: exists.
        nums_pairs: pairs of each image, in arrays of IMAGES_AT_ONCE; only the last may be shorter.
        addresses: `page_urls` and `urls` of all pairs, those of the first image first, some at a time; no nulls.

    Raises:
        ValueError: there are not as many addresses as pairs.
    """
    tables = iter(addresses)
    waiting = pa.table({name: pa.array([], pa.string()) for name in _SCHEMA.names})
    num_pairs = 0
    with pq.ParquetWriter(directory / ADDRESSES, _SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for nums in nums_pairs:
            ends = np.concatenate([[0], np.cumsum(nums)])
            num_pairs += int(ends[-1])
            while len(waiting) < ends[-1] and (more := next(tables, None)) is not None:
                waiting = pa.concat_tables([waiting, more])
            if len(waiting) < ends[-1]:
                raise ValueError(f"{num_pairs - int(ends[-1]) + len(waiting)} addresses for {num_pairs} pairs or more")
            some, waiting = waiting.slice(0, ends[-1]).combine_chunks(), waiting.slice(ends[-1])
            lists = [
                pa.ListArray.from_arrays(pa.array(ends, pa.int32()), some[name].combine_chunks())
                for name in _SCHEMA.names
            ]
            writer.write_table(pa.table(lists, schema=_SCHEMA))
    if num_left := len(waiting) + sum(map(len, tables)):
        raise ValueError(f"{num_pairs + num_left} addresses for {num_pairs} pairs")


class PairAddresses:
    """The open file. It stays the same when another index replaces the folder."""

    def __init__(self, path: Path, file: pq.ParquetFile) -> None:
        self._path, self._file, self._lock = path, file, threading.Lock()

    @classmethod
    def load(cls, directory: Path, num_images: int) -> PairAddresses:
        """Opens what `write_addresses` wrote.

        Raises:
            CorruptError: it is damaged, or of another number of images.
        """
        with of_index(directory / ADDRESSES):
            file = pq.ParquetFile(directory / ADDRESSES, pre_buffer=False, page_checksum_verification=True)
            if not file.schema_arrow.equals(_SCHEMA) or file.metadata.num_rows != num_images:
                raise pa.ArrowInvalid("other columns or rows")
        return cls(directory / ADDRESSES, file)

    def of(self, position: int, num_pairs: int) -> tuple[PairAddress, ...]:
        """The addresses of an image's pairs, in their order. Raises CorruptError if they are damaged.

        Args:
            position: of the image, from 0.
            num_pairs: that it has.
        """
        with of_index(self._path):
            with self._lock:
                group = self._file.read_row_group(position // IMAGES_AT_ONCE, use_threads=False)
            row = group.slice(position % IMAGES_AT_ONCE, 1).to_pylist()[0]
            pages, pictures = row[_PAGES], row[_PICTURES]
            if not len(pages) == len(pictures) == num_pairs or None in (*pages, *pictures):
                raise ValueError("addresses are missing")
        return tuple(map(PairAddress, pages, pictures))

    def covered(self, covers: Callable[[str, str], bool]) -> Iterator[int]:
        """The positions of images that have a pair whose (url, page_url) is covered. Raises CorruptError if damaged."""
        for group in range(self._file.num_row_groups):
            with of_index(self._path):
                with self._lock:
                    rows = self._file.read_row_group(group, use_threads=False)
                owners = pc.list_parent_indices(rows[_PAGES].combine_chunks()).to_pylist()
                columns = (pc.list_flatten(rows[name]).to_pylist() for name in (_PICTURES, _PAGES))
                found = {owner for owner, *one in zip(owners, *columns, strict=True) if covers(*one)}
            yield from (group * IMAGES_AT_ONCE + position for position in found)
