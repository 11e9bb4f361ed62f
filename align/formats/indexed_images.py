"""The images of `data/index`: `items.parquet`, a row for each image, and `thumbnails.jpegs`.

A million rows take some hundred megabytes: they stay in Arrow's columns, and an `IndexedImage` is made when it is asked
for. A thumbnail is a range of bytes of `thumbnails.jpegs`, so that one read fetches it, even from a store. The
addresses of the pairs stay on the disk: a person asks for those of one picture, and one row group is read.

A filter looks at the columns themselves. RE2 finds whole words in the texts: in a million, within tenths of a second.
The columns of a catalogue are a stranger's: a condition names a known column and a value, and nothing of either is ever
run. A column has numbers (see `align.formats.written_numbers`), or texts.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.durable.memory import allocating_at_most
from align.errors import CorruptError, DataError
from align.formats.parquet import readable
from align.formats.written_numbers import read_number

ITEMS, THUMBNAILS = "items.parquet", "thumbnails.jpegs"

#: Rows of a row group: so many are read for the addresses of one image.
ROWS_AT_ONCE = 1 << 12
_MAX_THUMBNAIL = 1 << 20
#: What reading the table may allocate, and so much for each image: 64 columns of a catalogue are 64 kB.
_TABLE_BYTES, _IMAGE_BYTES = 256 << 20, 128 << 10

_NAME, _TEXTS = pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string())  # few different names
_ON_DISK = ("page_urls", "urls")
_COLUMNS = "columns"  # of a catalogue: a struct of texts and numbers, where null is an empty value
_SCHEMA = pa.schema([
    ("key", pa.string()), ("image_id", pa.string()), ("texts", _TEXTS), ("split", _NAME), ("shard", _NAME),
    ("offset_bytes", pa.int64()), ("size_bytes", pa.int64()), ("keys", _TEXTS), *((name, _TEXTS) for name in _ON_DISK),
    ("thumbnail_offset_bytes", pa.int64()), ("thumbnail_size_bytes", pa.int64()),
])  # fmt: skip

#: RE2's own word boundary knows ASCII only.
_NO_LETTER = r"[^\pL\pM\pN_]"
#: Characters; shorter ones are in most texts, as a part of other words.
_LONG_WORD = 4
_OPERATOR = re.compile("<=|>=|=|<|>")
_COMPARE = {"=": pc.equal, "<": pc.less, ">": pc.greater, "<=": pc.less_equal, ">=": pc.greater_equal}
#: Different texts of a column that a page offers to choose from, and the characters of each.
_MAX_CHOICES, _LONGEST_CHOICE = 50, 100
#: Values that are named where no image meets a condition.
_NUM_OFFERED = 8

Value = str | int | float | None
Vectors32 = NDArray[np.float32]


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
        columns: of its row in a catalogue.
    """

    key: str
    image_id: str
    texts: tuple[str, ...]
    split: str
    shard: str
    offset_bytes: int
    size_bytes: int
    keys: tuple[str, ...]
    columns: dict[str, Value] = field(default_factory=dict)

    def image(self, tar: Path) -> bytes:
        """Reads its JPEG from the tar that `shard` names."""
        with tar.open("rb") as file:
            file.seek(self.offset_bytes)
            return file.read(self.size_bytes)


_FIELDS = _SCHEMA.names[:8]


@dataclass(frozen=True, slots=True)
class PairAddress:
    """Where a pair was found. Both are foreign text: check it before you make a link of it.

    Attributes:
        page_url: the page, as the source wrote it; empty: not recorded.
        url: the picture, http or https; empty: it came from no web address.
    """

    page_url: str
    url: str


def write_images(
    directory: Path, images: Iterable[tuple[pa.Table, Vectors32]], *, thumbnails: bool
) -> Iterator[Vectors32]:
    """Writes images, some at a time, and yields their vectors. Equal contents are equal bytes.

    Args:
        directory: exists.
        images: rows with the columns of `items.parquet`, but with `thumbnail`, a JPEG, in place of its range; and their
            (number, width) vectors.
        thumbnails: whether there are any; without, each is empty.
    """
    num_bytes, table = 0, None
    with ExitStack() as files:
        pictures = files.enter_context((directory / THUMBNAILS).open("wb")) if thumbnails else None
        for rows, vectors in images:
            jpegs = rows["thumbnail"].to_pylist()
            sizes = np.array([len(jpeg) for jpeg in jpegs], np.int64)
            offsets, num_bytes = num_bytes + np.cumsum(sizes) - sizes, num_bytes + int(sizes.sum())
            ranges = {"thumbnail_offset_bytes": offsets, "thumbnail_size_bytes": sizes}
            schema = pa.schema([*_SCHEMA, *(one for one in rows.schema if one.name == _COLUMNS)])
            whole = {name: ranges[name] if name in ranges else rows[name] for name in schema.names}
            if table is None:
                options = {"compression": "zstd", "write_page_checksum": True}
                table = files.enter_context(pq.ParquetWriter(directory / ITEMS, schema, **options))
            table.write_table(pa.table(whole).cast(schema), ROWS_AT_ONCE)
            if pictures is not None:
                pictures.writelines(jpegs)
            yield vectors


@contextmanager
def _reading(path: Path, num_images: int = 0) -> Iterator[None]:
    """Reads the table in bounded memory. Raises CorruptError for what Arrow and checks in the block raise over it."""
    bound = _TABLE_BYTES + num_images * _IMAGE_BYTES
    with readable(path, "damaged", "run `align index` again", CorruptError), allocating_at_most(bound):
        yield


class IndexedImages:
    """The images in the order of the index. They stay the same when another index replaces the folder.

    Attributes:
        columns: of a catalogue: name -> texts, or numbers.
    """

    def __init__(self, table: pa.Table, path: Path, file: pq.ParquetFile, thumbnails: Path | None) -> None:
        self._table = table
        own = table[_COLUMNS] if _COLUMNS in table.column_names else None
        self.columns = {} if own is None else dict(zip([one.name for one in own.type], own.flatten(), strict=True))
        self._path, self._file, self._lock = path, file, threading.Lock()
        self._ends = np.cumsum([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        self._thumbnails: int | None = None
        if thumbnails is not None:
            self._thumbnails = os.open(thumbnails, os.O_RDONLY)
            weakref.finalize(self, os.close, self._thumbnails)

    @classmethod
    def load(cls, directory: Path, num_images: int | None = None, *, thumbnails: bool = False) -> IndexedImages:
        """Opens what `write_images` wrote.

        Args:
            directory: has it.
            num_images: that belong to the rest of the index; None: nobody knows.
            thumbnails: whether there are any.

        Raises:
            CorruptError: a file is missing or damaged, or belongs to another index.
        """
        path = directory / ITEMS
        with _reading(path):
            options: dict[str, Any] = {"read_dictionary": ["split", "shard"], "page_checksum_verification": True}
            file = pq.ParquetFile(path, pre_buffer=False, **options)
            schema, num_rows = file.schema_arrow, file.metadata.num_rows
            more = list(schema)[len(_SCHEMA) :]
            kinds = {pa.string(), pa.float64()}
            if not pa.schema(list(schema)[: len(_SCHEMA)]).equals(_SCHEMA) or not all(
                one.name == _COLUMNS and pa.types.is_struct(one.type) and {part.type for part in one.type} <= kinds
                for one in more
            ):
                raise pa.ArrowInvalid("other columns")
            if num_images is not None and num_rows != num_images:
                raise pa.ArrowInvalid(f"{num_rows:,} rows, not {num_images:,}")
        with _reading(path, num_rows if num_images is None else num_images):
            # in one thread, since a thread that cannot start ends the process
            table = file.read([name for name in schema.names if name not in _ON_DISK], use_threads=False)
            table.validate(full=True)
            inner = (pc.list_flatten(table[name]) for name in ("texts", "keys"))
            if any(column.null_count for column in (*table.columns, *inner)):
                raise pa.ArrowInvalid("values are missing")
            return cls(table, path, file, directory / THUMBNAILS if thumbnails else None)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, position: int) -> IndexedImage:
        row: dict[str, Any] = {name: self._table[name][position].as_py() for name in _FIELDS}
        lists = {name: tuple(value) for name, value in row.items() if isinstance(value, list)}
        columns = {name: _plain(column[position].as_py()) for name, column in self.columns.items()}
        return IndexedImage(**row | lists, columns=columns)

    def __iter__(self) -> Iterator[IndexedImage]:
        return map(self.__getitem__, range(len(self)))

    def texts(self) -> Iterator[list[str]]:
        """The texts of each image in turn."""
        for chunk in self._table["texts"].chunks:
            yield from chunk.to_pylist()

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
        """A JPEG. Raises DataError if the index has no thumbnails; CorruptError if the file ends before it."""
        if self._thumbnails is None:
            raise DataError("the index has no thumbnails; set index.thumbnail_px and run `align index` again")
        offset = self._table["thumbnail_offset_bytes"][position].as_py()
        size = self._table["thumbnail_size_bytes"][position].as_py()
        if not (0 <= size <= _MAX_THUMBNAIL and 0 <= offset <= offset + size <= os.fstat(self._thumbnails).st_size):
            raise CorruptError(f"{THUMBNAILS} of the index ends before image {position}; run `align index` again")
        return os.pread(self._thumbnails, size, offset)

    def addresses(self, position: int) -> tuple[PairAddress, ...]:
        """Where the pairs of an image were found, parallel to its `keys`. Raises CorruptError if that is damaged."""
        group = int(np.searchsorted(self._ends, position, "right"))
        rows = self._addresses_in(group)
        pages, pictures = (rows[name][position - int(self._ends[group])].as_py() for name in _ON_DISK)
        with _reading(self._path):
            if not len(pages) == len(pictures) == len(self[position].keys) or None in (*pages, *pictures):
                raise ValueError("addresses are missing")
        return tuple(map(PairAddress, pages, pictures))

    def listed(self, image_ids: Collection[str], covers: Callable[[str, str], bool] | None = None) -> NDArray[np.bool_]:
        """The images of a list of take-downs, as (len(self),) bool.

        Args:
            image_ids: sha256s of pictures.
            covers: whether an image is listed for the (url, page_url) of one of its pairs; None: for none.

        Raises:
            CorruptError: the addresses are damaged.
        """
        found = np.array(pc.is_in(self._table["image_id"], value_set=pa.array(sorted(image_ids), pa.string())))
        if covers is None:
            return found
        for group, end in enumerate(self._ends):
            rows = self._addresses_in(group)
            with _reading(self._path):
                pages, pictures = (pc.list_flatten(rows[name]).to_pylist() for name in _ON_DISK)
                owners = pc.list_parent_indices(rows["urls"].combine_chunks()).to_pylist()
                pairs = zip(owners, pictures, pages, strict=True)
                found[[int(end) - len(rows) + owner for owner, *pair in pairs if covers(*pair)]] = True
        return found

    def _addresses_in(self, group: int) -> pa.Table:
        """The addresses of a row group."""
        with _reading(self._path), self._lock:
            return self._file.read_row_group(group, _ON_DISK, use_threads=False)

    def matching(
        self, splits: Sequence[str] = (), words: Sequence[str] = (), where: Sequence[str] = ()
    ) -> NDArray[np.bool_]:
        """The images that pass a filter, as (len(self),) bool.

        Args:
            splits: only images of these; none: of any.
            words: only images that have a text with each of these, as a whole word, in upper or lower case.
            where: only images that fulfil each of these: `COLUMN=VALUE`, or `<`, `<=`, `>`, `>=` for one of numbers.

        Raises:
            DataError: a condition names no column, or a value that does not suit it.
        """
        found = np.ones(len(self), np.bool_)
        if splits:
            found &= np.asarray(pc.is_in(self._table["split"].cast(pa.string()), pa.array(splits, pa.string())))
        for condition in where:
            found &= self._fulfilling(condition)
        for word in sorted(words, key=len, reverse=True):  # the longest is the rarest, and leaves few texts to the next
            found = self._with_word(word, found)
        return found

    @cached_property
    def _flat_texts(self) -> tuple[pa.ChunkedArray, NDArray[np.int32]]:
        """All texts, and the row of each."""
        column = self._table["texts"]
        return pc.list_flatten(column), np.repeat(np.arange(len(self), dtype=np.int32), pc.list_value_length(column))

    def _with_word(self, word: str, among: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of some images have a text with this word."""
        texts, owners = self._flat_texts
        if 2 * np.count_nonzero(among) < len(among):
            mask = among[owners]
            texts, owners = texts.filter(pa.array(mask)), owners[mask]
        for pattern in _patterns(word):
            hits = pc.match_substring_regex(texts, pattern)
            texts, owners = texts.filter(hits), owners[np.asarray(hits)]
        found = np.zeros(len(among), np.bool_)
        found[owners] = True
        return found & among

    @cached_property
    def choices(self) -> dict[str, list[str] | None]:
        """Column -> its texts to choose from, in order; empty: they are many, long, or seldom repeat; None: numbers."""
        found: dict[str, list[str] | None] = {}
        for name, column in self.columns.items():
            different = None if pa.types.is_floating(column.type) else pc.unique(column.drop_null())
            few = different is not None and len(different) <= min(_MAX_CHOICES, len(column) // 2)
            few = few and (pc.max(pc.utf8_length(different)).as_py() or 0) <= _LONGEST_CHOICE
            found[name] = None if different is None else sorted(different.to_pylist()) if few else []
        return found

    def offered(self, where: Sequence[str]) -> str:
        """Values that the columns of some conditions have, in words, alike ones first; empty if there are none."""
        found = {}
        for name, _, value in map(self._parsed, where):
            column = self.columns[name]
            if (choices := self.choices[name]) is None:
                found[name] = "{min:.15g} to {max:.15g}".format(**pc.min_max(column).as_py())
                continue
            values = choices or pc.unique(column.slice(0, ROWS_AT_ONCE).drop_null()).to_pylist()
            alike = [one for one in values if one.casefold() == value.casefold()]
            some = [*dict.fromkeys([*alike, *values])][:_NUM_OFFERED]
            shown = ", ".join(one[:_LONGEST_CHOICE] for one in some) or "nothing"
            is_all = len(some) == len(values) and (choices or len(column) <= ROWS_AT_ONCE)
            found[name] = shown if is_all else f"{shown}, …"
        return "; ".join(f"in {name} there is: {values}" for name, values in found.items())

    def _fulfilling(self, condition: str) -> NDArray[np.bool_]:
        """Which images fulfil a condition."""
        return self._compared(*self._parsed(condition))

    def _parsed(self, condition: str) -> tuple[str, str, str]:
        """The column, the operator and the value of a condition."""
        names = {name.casefold(): name for name in self.columns} | {name: name for name in self.columns}
        for operator in _OPERATOR.finditer(condition):
            written = condition[: operator.start()].strip()
            name = names.get(written) or names.get(written.casefold())
            if name is not None:
                return name, operator[0], condition[operator.end() :].strip()
        known = ", ".join(self.columns) or "none; `align index --source` makes an index with columns"
        raise DataError(f"{condition!r}: expected COLUMN=VALUE, <, <=, > or >= with a column of the index: {known}")

    def _compared(self, name: str, operator: str, text: str) -> NDArray[np.bool_]:
        column, value = self.columns[name], text  # type: pa.ChunkedArray, str | float
        if pa.types.is_floating(column.type):
            try:
                value = read_number(text)
            except ValueError as error:
                raise DataError(f"{name}{operator}{text}: column {name} has numbers, and {text!r} {error}") from None
        elif operator != "=":
            why = "if it should have numbers: `align index` names the cell that is none"
            raise DataError(f"{name}{operator}{text}: column {name} has texts, which only = compares; {why}")
        return np.asarray(pc.fill_null(_COMPARE[operator](column, value), False))


def no_image(key: str) -> DataError:
    """No image of an index has this key."""
    return DataError(f"no image with key {key!r} in the index; `align search TEXT` prints keys")


def _patterns(word: str) -> list[str]:
    """RE2's pattern of a word in upper or lower case, with no letter, mark, digit or underscore beside it.

    Before that the word alone, if it is a long one: that takes half the time, and few texts are left.
    """
    literal = "".join(rf"\x{{{ord(character):x}}}" for character in word)
    whole = rf"(?i)(?:^|{_NO_LETTER}){literal}(?:$|{_NO_LETTER})"
    return [whole] if len(word) < _LONG_WORD else [f"(?i){literal}", whole]


def _plain(value: Value) -> Value:
    return int(value) if isinstance(value, float) and value.is_integer() else value
