"""Words and n-grams of many texts at once, as numbers: what the rare-token rule (T2) counts.

A word's number is a 64-bit hash of its bytes, a bigram's is mixed from those of its two words. Numbers in place of
strings let an SQL engine count hundreds of millions of n-grams in eight bytes each; they are integer arithmetic and so
equal on every machine. (The mixing is splitmix64's, in arrays: a hash from a library costs ten times as much, a call a
word.) Two of n different n-grams get one number with a chance of about n^2 / 2^65: 1 in 400 for the 300 million of 50
million pairs, and a few such twins among the tens of billions of a whole crawl. Twins are counted as one, so a rare
token that has a frequent twin would pass for frequent: no pair is ever lost by it.

Texts in ASCII, most of the web's, take a path of their own: a handful of operations on the bytes of all texts together
find the words that `align.pairs.text.words` finds. In ASCII the rules of UAX #29 come to this: letters, digits and
underscores join; one of `'.:` between two letters joins, and one of `'.,;` between two digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from align.pairs.text import is_filename, personal_data, words

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

#: Stands between two texts; a normalised text holds no control characters.
_END = "\n"
_DIGITS_OF_A_PHONE_NUMBER = 8


def _table(characters: str) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, np.bool_)
    table[np.frombuffer(characters.encode(), np.uint8)] = True
    return table


_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[ord("A") : ord("Z") + 1] += 32
_DIGIT = _table("0123456789")
_LETTER = _table("abcdefghijklmnopqrstuvwxyz")
_SOLID = _DIGIT | _LETTER
_JOINS_LETTERS = _table("'.:")
_JOINS_DIGITS = _table("'.,;")


@dataclass(frozen=True)
class TextFacts:
    """What texts are made of; one row each.

    Attributes:
        offsets: (N + 1,) where each text's words begin in `words`.
        words: numbers of all words, text after text.
        is_filename: (N,) see `text.is_filename`.
        num_emails: (N,) e-mail addresses.
        num_phones: (N,) phone numbers.
    """

    offsets: Int64s
    words: Int64s
    is_filename: Flags
    num_emails: Int64s
    num_phones: Int64s

    @property
    def num_words(self) -> Int64s:
        """(N,) words of each text."""
        return np.diff(self.offsets)

    def bigrams(self) -> tuple[Int64s, Int64s]:
        """(offsets, numbers) of all neighbouring words, text after text."""
        last = np.zeros(len(self.words), np.bool_)
        ends = self.offsets[1:][self.num_words > 0]
        last[ends - 1] = True
        first = np.flatnonzero(~last)
        offsets = np.concatenate([[0], np.cumsum(np.maximum(self.num_words - 1, 0))]).astype(np.int64)
        unsigned = self.words.view(np.uint64)
        return offsets, _mixed(unsigned[first], unsigned[first + 1]).view(np.int64)


def numbers(texts: Sequence[str]) -> Int64s:
    """The numbers of strings."""
    return _numbers(pa.array(texts, pa.string()))


def ngram_numbers(unigrams: Sequence[str]) -> tuple[list[int], list[int]]:
    """Numbers of a text's words, and of its bigrams, in order."""
    found = numbers(unigrams)
    return found.tolist(), _mixed(found[:-1].view(np.uint64), found[1:].view(np.uint64)).view(np.int64).tolist()


def _numbers(texts: pa.StringArray) -> Int64s:
    """Mixes the bytes of each string, eight at a time, into 64 bits; so many strings at once that Python is cheap."""
    _, offsets_buffer, data = texts.buffers()
    if not len(texts):
        return np.zeros(0, np.int64)
    offsets = np.frombuffer(offsets_buffer, np.int32, len(texts) + 1, texts.offset * 4).astype(np.int64)
    padded = np.zeros(offsets[-1] + 8, np.uint8)
    padded[: offsets[-1]] = np.frombuffer(data, np.uint8, offsets[-1]) if data else 0
    eights = np.lib.stride_tricks.sliding_window_view(padded, 8)
    starts, left = offsets[:-1], np.diff(offsets)
    found = left.astype(np.uint64)
    rows = np.arange(len(texts))
    while len(rows):
        some = np.ascontiguousarray(eights[starts]).view("<u8")[:, 0]
        some &= _MASKS[np.minimum(left, 8)]
        found[rows] = _mixed(found[rows], some)
        more = left > 8
        rows, starts, left = rows[more], starts[more] + 8, left[more] - 8
    return found.view(np.int64)


#: Of eight bytes the first n.
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


def _mixed(first: Uint64s, second: Uint64s) -> Uint64s:
    """One number of two, by the odd multipliers and shifts of splitmix64: the order counts, and every bit does."""
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + second
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: Uint64s = mixed ^ (mixed >> np.uint64(31))
    return found


def text_facts(texts: Sequence[str]) -> TextFacts:
    """Everything about the words of normalised texts; equal to the functions of `align.pairs.text`, one by one."""
    ascii_rows = np.array([text.isascii() for text in texts], np.bool_)
    plain = [text for text in texts if text.isascii()]
    others = [text for text in texts if not text.isascii()]
    ascii_counts, ascii_words, look = _ascii_words(plain)
    split = [words(text) for text in others]
    other_words = _numbers(pa.array(chain.from_iterable(split), pa.string()))

    counts = np.zeros(len(texts), np.int64)
    counts[ascii_rows] = ascii_counts
    counts[~ascii_rows] = [len(row) for row in split]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    from_ascii = np.repeat(ascii_rows, counts)
    found = np.empty(offsets[-1], np.int64)
    found[from_ascii], found[~from_ascii] = ascii_words, other_words

    facts = TextFacts(
        offsets, found, np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    )
    wanted = np.ones(len(texts), np.bool_)
    wanted[ascii_rows] = look
    for row in np.flatnonzero(wanted).tolist():
        facts.is_filename[row] = is_filename(texts[row])
        facts.num_emails[row], facts.num_phones[row] = personal_data(texts[row])
    return facts


def _ascii_words(texts: Sequence[str]) -> tuple[Int64s, Int64s, Flags]:
    """(words per text, numbers of all words, whether a text could be a file name or hold personal data)."""
    if not texts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    # an end on either side too, so that every character has two neighbours
    raw = np.frombuffer(f"{_END}{_END.join(texts)}{_END}".encode("ascii"), np.uint8)
    characters = _LOWER[raw]
    letter, digit = _LETTER[characters], _DIGIT[characters]
    inside = letter | digit | (characters == ord("_"))
    joint = np.zeros(len(raw), np.bool_)
    joint[1:-1] = (_JOINS_LETTERS[characters[1:-1]] & letter[:-2] & letter[2:]) | (
        _JOINS_DIGITS[characters[1:-1]] & digit[:-2] & digit[2:]
    )
    inside |= joint
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    text_starts = np.flatnonzero(characters == ord(_END))[:-1]
    if len(starts):
        solid = np.maximum.reduceat(letter | digit, starts)  # a word of underscores alone is none
        # reduceat runs on to the next start, over characters that are in no word and so neither letter nor digit
        starts, ends = starts[solid], ends[solid]
        kept = np.repeat(np.append(solid, False), np.append(edges[1::2] - edges[::2], 0))
        letters = characters[inside][kept]
    else:
        letters = characters[:0]
    lengths = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int32)
    array = pa.StringArray.from_buffers(len(starts), pa.py_buffer(lengths), pa.py_buffer(letters))
    bounds = np.searchsorted(starts, np.append(text_starts, len(raw)))
    look = _suspicious(characters, digit, text_starts)
    return np.diff(bounds), _numbers(array), look


def _suspicious(characters: npt.NDArray[np.uint8], digit: Flags, text_starts: Int64s) -> Flags:
    """Which texts `is_filename` or `personal_data` could say yes to: all others lack what every yes needs."""
    trait = (characters == ord("/")) | (characters == ord("\\")) | (characters == ord("@"))
    trait[:-1] |= (characters[:-1] == ord(".")) & _SOLID[characters[1:]]  # an extension
    traits = np.logical_or.reduceat(trait, text_starts)
    num_digits = np.add.reduceat(digit, text_starts, dtype=np.int32)
    # a name by a camera begins with one of its prefixes and goes on with digits, blanks and few letters
    camera = (num_digits > 0) & _CAMERA_INITIAL[characters[text_starts + 1]]
    return traits | camera | (num_digits >= _DIGITS_OF_A_PHONE_NUMBER)


_CAMERA_INITIAL = _table("idpmgvsu")
