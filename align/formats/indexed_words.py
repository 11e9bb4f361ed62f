"""The words of an index's texts, `words.parquet` in `data/index`: which images each word belongs to.

A text is cut at white space into pieces such as `heart` and `(heart-shaped)`. The words of the file are the pieces, and
the runs of letters, marks, digits and underscores within them, all without case. So a word of such characters is looked
up; one with other characters (`c++`) is searched for in the pieces, which are far fewer than the texts.

RE2 decides what a letter is, by `[\\pL\\pM\\pN_]`, and which letters differ only in case, by `(?i)`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.formats.parquet import of_index, read_whole

WORDS = "words.parquet"

_SCHEMA = pa.schema([("word", pa.string()), ("images", pa.large_list(pa.uint32()))])
_OTHER = r"[^\pL\pM\pN_]"
_ROWS_AT_ONCE = 1 << 14
#: Letters that RE2 takes for the same, although Python maps them to no common letter.
_SAME = str.maketrans("\u1fd3\u1fe3\ufb05", "\u0390\u03b0\ufb06")

Images = NDArray[np.uint32]


def write_words(directory: Path, items: Path) -> None:
    """Writes the file.

    Args:
        directory: exists.
        items: a table with the texts of each image.
    """
    numbers: dict[str, int] = {}
    pairs, first = [np.zeros(0, np.uint64)], 0
    for batch in pq.ParquetFile(items).iter_batches(_ROWS_AT_ONCE, columns=["texts"]):
        pairs.append(_pairs(batch.column(0), first, numbers))
        first += len(batch)
    words = sorted(numbers)
    place = np.empty(len(words), np.uint64)
    place[[numbers[word] for word in words]] = np.arange(len(words), dtype=np.uint64)
    for some in pairs:
        some[:] = place[some >> np.uint64(32)] << np.uint64(32) | some & np.uint64(0xFFFFFFFF)
    found = np.concatenate(pairs)
    pairs.clear()
    found.sort()
    ends = np.searchsorted(found, np.arange(len(words) + 1, dtype=np.uint64) << np.uint64(32))
    images = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(found.astype(np.uint32)))
    table = pa.table([pa.array(words, pa.string()), images], schema=_SCHEMA)
    pq.write_table(table, directory / WORDS, compression="zstd", write_page_checksum=True)


def _pairs(texts: pa.ListArray, first: int, numbers: dict[str, int]) -> NDArray[np.uint64]:
    """(word, image) of some images, each once: the word's number in the upper half, the image's in the lower."""
    pieces = pc.utf8_split_whitespace(pc.list_flatten(texts))
    images = pc.list_parent_indices(texts).take(pc.list_parent_indices(pieces)).to_numpy().astype(np.uint64)
    coded = pc.list_flatten(pieces).dictionary_encode()
    runs = pc.replace_substring_regex(coded.dictionary, f"{_OTHER}+", " ")
    words = [
        {_same_case(piece), *_same_case(run).split()}
        for piece, run in zip(coded.dictionary.to_pylist(), runs.to_pylist(), strict=True)
    ]
    of_piece = np.array([numbers.setdefault(word, len(numbers)) for some in words for word in some], np.uint64)
    lengths = np.array([len(some) for some in words], np.int64)
    begins, piece = np.cumsum(lengths) - lengths, coded.indices.to_numpy()
    repeats = lengths[piece]
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    word = of_piece[np.repeat(begins[piece], repeats) + within]
    return np.unique(word << np.uint64(32) | np.repeat(images, repeats) + np.uint64(first))


class IndexedWords:
    """The words in memory: at most some 100 bytes a text."""

    def __init__(self, table: pa.Table, num_images: int) -> None:
        self._words, images = map(_whole, table.columns)
        self._images: Images = images.values.to_numpy()
        self._ends = images.offsets.to_numpy()
        self._num_images = num_images
        self._odd = np.flatnonzero(pc.match_substring_regex(self._words, _OTHER))
        self._odd_words = self._words.take(pa.array(self._odd))

    @classmethod
    def load(cls, directory: Path, num_images: int) -> IndexedWords:
        """Opens what `write_words` wrote. Raises CorruptError if it is damaged, or of other images."""
        with of_index(directory / WORDS, num_images):
            table = read_whole(directory / WORDS)
            words, images = map(_whole, table.columns)
            if not table.schema.equals(_SCHEMA) or words.null_count or images.null_count or images.values.null_count:
                raise pa.ArrowInvalid("other columns, or values are missing")
            highest = pc.max(images.values).as_py()
            in_order = pc.all(pc.less(words[:-1], words[1:]), min_count=0).as_py()
            if not in_order or (highest is not None and highest >= num_images):
                raise pa.ArrowInvalid("other images, or the order is wrong")
            return cls(table, num_images)

    def matching(self, words: str, texts: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Which images have a text with these words one after the other: as whole words, in upper or lower case.

        Args:
            words: with white space in between.
            texts: of each image; they are read only if there are several words.

        Returns:
            (number of images,) bool.
        """
        found = np.ones(self._num_images, np.bool_)
        several = words.split()
        for word in several:
            mine = np.zeros(self._num_images, np.bool_)
            for row in self._rows(_same_case(word)):
                mine[self._images[self._ends[row] : self._ends[row + 1]]] = True
            found &= mine
        if len(several) > 1:
            rows = np.flatnonzero(found)
            some = texts.take(pa.array(rows)).combine_chunks()
            hits = pc.match_substring_regex(pc.list_flatten(some), whole_words(several))
            found[:] = False
            found[rows[np.unique(pc.list_parent_indices(some).filter(hits).to_numpy())]] = True
        return found

    def _rows(self, word: str) -> Iterator[int]:
        """The rows of the file whose images have a word."""
        if pc.match_substring_regex(pa.scalar(word), _OTHER).as_py():
            near = np.flatnonzero(pc.match_substring(self._odd_words, word))
            yield from self._odd[
                near[pc.match_substring_regex(self._odd_words.take(pa.array(near)), whole_words([word]))]
            ]
        else:
            row = bisect_left(range(len(self._words)), word, key=lambda row: self._words[row].as_py())
            if row < len(self._words) and self._words[row].as_py() == word:
                yield row


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which always copies


def whole_words(words: Sequence[str]) -> str:
    """A pattern of RE2, whose own word boundary knows ASCII only. Words may have any white space between them."""
    inner = r"\s+".join("".join(rf"\x{{{ord(character):x}}}" for character in word) for word in words)
    return rf"(?i)(?:^|{_OTHER}){inner}(?:$|{_OTHER})"


def _same_case(text: str) -> str:
    """Equal for texts that differ in case only."""
    return text.lower() if text.isascii() else "".join(map(_same_letter, text)).translate(_SAME)


def _same_letter(letter: str) -> str:
    return next((one for one in (letter.casefold(), letter.lower()) if len(one) == 1), letter)
