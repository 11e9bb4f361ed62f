"""Words and n-grams of many texts at once, as numbers: what the rare-token rule (T2) counts.

A word's number is a 64-bit hash of its bytes, a bigram's is mixed from those of its two words. Numbers in place of
strings let an SQL engine count hundreds of millions of n-grams in eight bytes each; they are integer arithmetic and so
equal on every machine. (The mixing is splitmix64's, in arrays: a hash from a library costs ten times as much, a call a
word.) Two of n different n-grams get one number with a chance of about n^2 / 2^65: 1 in 400 for the 300 million of 50
million pairs, and a few such twins among the tens of billions of a whole crawl. Twins are counted as one, so a rare
token that has a frequent twin would pass for frequent: no pair is ever lost by it.

Words end at spaces, so a text's words are those of its pieces up to spaces; and however many texts there are, their
pieces repeat: each distinct one is looked at once. Pieces in ASCII, most of the web's, take a path of their own: a
handful of operations on the bytes of all of them together find the words that `align.pairs.text.words` finds. In ASCII
the rules of UAX #29 come to this: letters, digits and underscores join; one of `'.:` between two letters joins, and one
of `'.,;` between two digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import regex

from align.pairs.text import is_filename, normalise, personal_data, words

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

#: Stands for a space that does not part two pieces; a normalised text holds no control characters.
_NO_SPACE = "\n"
_DIGITS_OF_A_PHONE_NUMBER = 8

# What a byte is: bits of one table, so that one look tells all.
_LETTER, _DIGIT, _UNDERSCORE, _JOINS_LETTERS, _JOINS_DIGITS, _TRAIT, _DOT = (1 << bit for bit in range(7))
_JOINS = _JOINS_LETTERS | _JOINS_DIGITS
_SOLID = _LETTER | _DIGIT
_CLASS = np.zeros(256, np.uint8)
for _signs, _bit in (
    ("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", _LETTER), ("0123456789", _DIGIT), ("_", _UNDERSCORE),
    ("'.:", _JOINS_LETTERS), ("'.,;", _JOINS_DIGITS), ("/\\@", _TRAIT), (".", _DOT),
):  # fmt: skip
    _CLASS[np.frombuffer(_signs.encode(), np.uint8)] |= _bit
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[ord("A") : ord("Z") + 1] += 32
#: Beyond ASCII, characters of which `normalise` leaves a text as it is: no blanks, each its own normal form, and none
#: that joins the one before it. Not all of them; what most texts are made of.
_PLAIN = (
    "\u00a1-\u02ff\u0391-\u03a1\u03a3-\u03ce\u0400-\u0482\u048a-\u052f\u05d0-\u05ea\u0620-\u064a\u2010-\u2027\u20a0-\u20bf\u2122"
    "\u3001-\u3020\u3041-\u3096\u30a1-\u30fe\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff9d"
)
#: In the pattern language of Arrow: what `normalise` may change.
_ODD = f"[^ -~{_PLAIN}]|^ |  | $"
#: What cameras' names for files begin with.
_CAMERA_INITIAL = np.zeros(256, np.bool_)
_CAMERA_INITIAL[np.frombuffer(b"idpmgvsuIDPMGVSU", np.uint8)] = True
#: The only letters that belong to the space before them, as accents do (halfwidth dakuten and handakuten).
_KATAKANA_SIGNS = "\uff9e\uff9f"
#: The first byte of both: one byte is found at once.
_KATAKANA_BEGIN = _KATAKANA_SIGNS.encode()[:1]
#: One of these, or a digit, stands in each text beyond ASCII that `is_filename` or `personal_data` could say yes to.
_SIGN = regex.compile(r"[/\\@.]")
_ANY_DIGIT = regex.compile(r"\d")
#: Pieces beyond ASCII that are remembered from shard to shard; some 10 MB.
_NUM_REMEMBERED = 1 << 14


@dataclass(frozen=True)
class TextFacts:
    """What texts are made of; one row each.

    Attributes:
        offsets: (N + 1,) where each text's words begin in `words`.
        words: numbers of all words, text after text.
        vocabulary: (V,) numbers of the words of all texts; one may stand there several times.
        occurrences: (V,) how often each of them occurs.
        is_filename: (N,) see `text.is_filename`.
        num_emails: (N,) e-mail addresses.
        num_phones: (N,) phone numbers.
    """

    offsets: Int64s
    words: Int64s
    vocabulary: Int64s
    occurrences: Int64s
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


def numbers(texts: Sequence[str] | pa.StringArray) -> Int64s:
    """The numbers of strings."""
    return _numbers(_array(texts))


def _array(texts: Sequence[str] | pa.StringArray) -> pa.StringArray:
    return texts if isinstance(texts, pa.StringArray) else pa.array(texts, pa.string())


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
    eights: Uint64s = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))  # at every place
    starts, left = offsets[:-1], np.diff(offsets)
    found = left.astype(np.uint64)
    rows = np.arange(len(texts))
    while len(rows):
        some = eights[starts]
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


def text_facts(texts: Sequence[str] | pa.StringArray) -> TextFacts:
    """Everything about the words of normalised texts; equal to the functions of `align.pairs.text`, one by one."""
    array = _array(texts)
    pieces, bounds = _pieces(_with_spaces_hidden(array))
    encoded = pieces.dictionary_encode()
    which = encoded.indices.to_numpy()
    known = _Pieces.of(encoded.dictionary)
    counts = known.counts[which]
    ends = np.concatenate([[0], np.cumsum(counts)])
    # from where each word is taken: from its piece's first one on
    first = np.cumsum(known.counts) - known.counts
    found = known.words[np.repeat(first[which] - ends[:-1], counts) + np.arange(ends[-1])]
    occurrences = np.repeat(np.bincount(which, minlength=len(known.counts)), known.counts)
    facts = TextFacts(
        ends[bounds], found, known.words, occurrences, np.zeros(len(array), np.bool_), np.zeros(len(array), np.int64),
        np.zeros(len(array), np.int64),
    )  # fmt: skip
    for row in np.flatnonzero(_suspicious(array, known, which, bounds)).tolist():
        text = array[row].as_py()
        facts.is_filename[row] = is_filename(text)
        facts.num_emails[row], facts.num_phones[row] = personal_data(text)
    return facts


def _pieces(texts: pa.StringArray) -> tuple[pa.StringArray, Int64s]:
    """All pieces, each with the space behind it, and (N + 1,) where each text's begin; cut without copying them."""
    spaced = pc.binary_join_element_wise(texts, "", " ")
    ends = np.flatnonzero(_characters(spaced) == ord(" ")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    data = spaced.buffers()[2] or pa.py_buffer(b"")
    pieces = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), data)
    return pieces, np.searchsorted(offsets, _offsets(spaced).astype(np.int32))


def _with_spaces_hidden(texts: pa.StringArray) -> pa.StringArray:
    """Texts in one piece where a space may not be parted from what follows it."""
    data = _characters(texts).tobytes()
    if _KATAKANA_BEGIN not in data or not any(sign.encode() in data for sign in _KATAKANA_SIGNS):
        return texts
    rows = pc.match_substring_regex(texts, f"[{_KATAKANA_SIGNS}]")
    return pc.if_else(rows, pc.replace_substring(texts, " ", _NO_SPACE), texts)


def normal_forms(texts: pa.StringArray) -> pa.StringArray:
    """`align.pairs.text.normalise` of many texts, null as the empty one; most are in that form already."""
    texts = pc.fill_null(texts, "")
    odd = pc.match_substring_regex(texts, _ODD)
    forms = [normalise(text) for text in texts.filter(odd).to_pylist()]
    return pc.replace_with_mask(texts, odd, pa.array(forms, pa.string()))


def _offsets(texts: pa.StringArray) -> Int64s:
    """(N + 1,) where each string begins in `_characters`."""
    if not len(texts):
        return np.zeros(1, np.int64)
    found: Int64s = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, texts.offset * 4).astype(np.int64)
    found -= found[0]
    return found


def _characters(texts: pa.StringArray) -> Bytes:
    """The bytes of all strings, one after the other."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return np.zeros(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int32, len(texts) + 1, texts.offset * 4)
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]


@dataclass(frozen=True)
class _Pieces:
    """What distinct pieces of texts are made of; one row each.

    Attributes:
        counts: (N,) words.
        words: numbers of all words, piece after piece.
        digits: (N,) digits.
        trait: (N,) whether it has what a path, an extension or an address needs.
        foreign: (N,) whether it goes beyond ASCII.
    """

    counts: Int64s
    words: Int64s
    digits: Int64s
    trait: Flags
    foreign: Flags

    @staticmethod
    def of(pieces: pa.StringArray) -> _Pieces:
        ascii_rows = pc.string_is_ascii(pieces).to_numpy(zero_copy_only=False)
        counts, digits = np.zeros(len(pieces), np.int64), np.zeros(len(pieces), np.int64)
        trait = np.zeros(len(pieces), np.bool_)
        counts[ascii_rows], ascii_words, digits[ascii_rows], trait[ascii_rows] = _ascii_pieces(
            pieces.filter(pa.array(ascii_rows))
        )
        others = [_foreign_piece(piece) for piece in pieces.filter(pa.array(~ascii_rows)).to_pylist()]
        counts[~ascii_rows] = [len(found) for found, _, _ in others]
        digits[~ascii_rows] = [number for _, number, _ in others]
        trait[~ascii_rows] = [sign for _, _, sign in others]
        from_ascii = np.repeat(ascii_rows, counts)
        numbers_of_words = np.empty(len(from_ascii), np.int64)
        numbers_of_words[from_ascii] = ascii_words
        numbers_of_words[~from_ascii] = _numbers(
            pa.array(chain.from_iterable(found for found, _, _ in others), pa.string())
        )
        return _Pieces(counts, numbers_of_words, digits, trait, ~ascii_rows)


@lru_cache(_NUM_REMEMBERED)
def _foreign_piece(piece: str) -> tuple[tuple[str, ...], int, bool]:
    """The words, the number of digits and the trait of a piece beyond ASCII."""
    found = tuple(words(piece.replace(_NO_SPACE, " ")))
    return found, len(_ANY_DIGIT.findall(piece)), _SIGN.search(piece) is not None


def _ascii_pieces(pieces: pa.StringArray) -> tuple[Int64s, Int64s, Int64s, Flags]:
    """`counts`, `words`, `digits` and `trait` of `_Pieces`."""
    if not len(pieces):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    # a space before the first too, so that every character of a piece has two neighbours
    raw = np.concatenate([np.array([ord(" ")], np.uint8), _characters(pieces)])
    begins = _offsets(pieces)[:-1] + 1
    kind = _CLASS[raw]
    inside = (kind & (_SOLID | _UNDERSCORE)) != 0
    joints = np.flatnonzero(kind & _JOINS)
    before, here, after = kind[joints - 1], kind[joints], kind[joints + 1]
    letters = here & _JOINS_LETTERS != 0, before & after & _LETTER != 0
    digits = here & _JOINS_DIGITS != 0, before & after & _DIGIT != 0
    inside[joints[(letters[0] & letters[1]) | (digits[0] & digits[1])]] = True
    starts, ends = _runs(inside)
    # a word of underscores alone is none
    hollow = [
        row for row in np.flatnonzero(kind[starts] & _UNDERSCORE) if not (kind[starts[row] : ends[row]] & _SOLID).any()
    ]
    if hollow:
        for row in hollow:
            inside[starts[row] : ends[row]] = False
        starts, ends = np.delete(starts, hollow), np.delete(ends, hollow)
    lengths = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int32)
    array = pa.StringArray.from_buffers(len(starts), pa.py_buffer(lengths), pa.py_buffer(_LOWER[raw[inside]]))
    counts = np.diff(np.searchsorted(starts, np.append(begins, len(raw))))

    def owners(places: Int64s) -> Int64s:
        found: Int64s = np.searchsorted(begins, places, side="right") - 1
        return found

    trait = np.zeros(len(pieces), np.bool_)
    trait[owners(np.flatnonzero(kind & _TRAIT))] = True
    trait[owners(joints[(here & _DOT != 0) & (after & _SOLID != 0)])] = True  # an extension
    num_digits = np.bincount(owners(np.flatnonzero(kind & _DIGIT)), minlength=len(pieces))
    return counts, _numbers(array), num_digits, trait


def _runs(flags: Flags) -> tuple[Int64s, Int64s]:
    """(first places, ends) of what is set in a row, of flags that are clear at both ends."""
    edges = np.flatnonzero(flags[1:] != flags[:-1]) + 1
    return edges[::2], edges[1::2]


def _suspicious(texts: pa.StringArray, known: _Pieces, which: Int64s, bounds: Int64s) -> Flags:
    """Which texts `is_filename` or `personal_data` could say yes to: all others lack what every yes needs."""
    if not len(texts):
        return np.zeros(0, np.bool_)
    trait, foreign = (np.logical_or.reduceat(flags[which], bounds[:-1]) for flags in (known.trait, known.foreign))
    digits = np.add.reduceat(known.digits[which], bounds[:-1])
    # a name by a camera begins with one of its prefixes and goes on with digits, blanks and few letters
    first = np.append(_characters(texts), np.uint8(0))[_offsets(texts)[:-1]]
    camera = (digits > 0) & (foreign | _CAMERA_INITIAL[first])
    found: Flags = trait | camera | (digits >= _DIGITS_OF_A_PHONE_NUMBER)
    return found
