"""Words and n-grams of many texts at once, as hashes: what the rare-token rule (T2) counts.

A word's hash is 64 bits of its bytes; a bigram's is mixed from those of its two words. With hashes instead of strings,
an SQL engine counts hundreds of millions of n-grams in eight bytes each. Hashes are integer arithmetic, so they are
equal on every machine. (The mixing is splitmix64's, on arrays: a library's hash costs ten times as much, one call per
word.) Two of n different n-grams share a hash with a chance of about n^2 / 2^65: 1 in 400 for the 300 million of 50
million pairs, and a few cases among the tens of billions of a whole crawl. They are counted as one, so a rare token
that shares the hash of a frequent one counts as frequent: no pair is lost.

Words end at spaces, so a text is split at its spaces into pieces first. Pieces repeat, however many texts there are,
and each distinct one is analysed once. Pieces in ASCII, most of the web's, have a path of their own: a handful of
operations on the bytes of all pieces together find the words that `align.pairs.text.words` finds. In ASCII the rules of
UAX #29 are: letters, digits and underscores join; one of `'.:` between two letters joins, and one of `'.,;` between two
digits.
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

from align.pairs.text import UNSPACED, is_filename, normalise, num_words, personal_data, words

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

#: Replaces a space that does not separate two pieces; a normalised text holds no control characters.
_NO_SPACE = "\n"
_DIGITS_OF_A_PHONE_NUMBER = 8

# The kinds of a byte as bits in one table, so that one lookup tells all of them.
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
#: Characters beyond ASCII that `normalise` does not change: none is a blank or joins the character before it, and each
#: is its own normal form. These are not all such characters, but those that most texts consist of.
_PLAIN = (
    "\u00a1-\u02ff\u0391-\u03a1\u03a3-\u03ce\u0400-\u0482\u048a-\u052f\u05d0-\u05ea\u0620-\u064a\u2010-\u2027\u20a0-\u20bf\u2122"
    "\u3001-\u3020\u3041-\u3096\u30a1-\u30fe\u4e00-\u9fff\uac00-\ud7a3\uff01-\uff9d"
)
#: A pattern (in Arrow's syntax) for what `normalise` may change.
_ODD = f"[^ -~{_PLAIN}]|^ |  | $"
#: The first letters of the file names that cameras give.
_CAMERA_INITIAL = np.zeros(256, np.bool_)
_CAMERA_INITIAL[np.frombuffer(b"idpmgvsuIDPMGVSU", np.uint8)] = True
#: The only letters that join the space before them, as accents do (halfwidth dakuten and handakuten).
_KATAKANA_SIGNS = "\uff9e\uff9f"
#: The first byte of both: searching for one byte is fast.
_KATAKANA_BEGIN = _KATAKANA_SIGNS.encode()[:1]
#: Every text beyond ASCII that `is_filename` or `personal_data` may match has one of these, or a digit.
_SIGN = regex.compile(r"[/\\@.]")
_ANY_DIGIT = regex.compile(r"\d")
#: Short pieces beyond ASCII that are remembered from shard to shard; about 10 MB, at most 80 MB.
_NUM_REMEMBERED, _REMEMBERED_CHARACTERS = 1 << 14, 64
#: Pieces beyond ASCII whose words are strings at the same time, before they become hashes.
_PIECES_AT_ONCE = 512


@dataclass(frozen=True)
class TextFacts:
    """What N texts are made of.

    Attributes:
        offsets: (N + 1,) where each text's words begin in `words`.
        words: hashes of all words, text after text.
        vocabulary: (V,) hashes of the words of all texts; a word may occur several times.
        occurrences: (V,) how often each entry of `vocabulary` occurs in the texts.
        num_words: (N,) words as T3 counts them: see `text.num_words`.
        is_filename: (N,) see `text.is_filename`.
        num_emails: (N,) e-mail addresses.
        num_phones: (N,) phone numbers.
    """

    offsets: Int64s
    words: Int64s
    vocabulary: Int64s
    occurrences: Int64s
    num_words: Int64s
    is_filename: Flags
    num_emails: Int64s
    num_phones: Int64s

    @property
    def num_unigrams(self) -> Int64s:
        """(N,) words of each text, as T2 looks at them."""
        return np.diff(self.offsets)

    def bigrams(self) -> tuple[Int64s, Int64s]:
        """(offsets, hashes) of all neighbouring words, text after text."""
        last = np.zeros(len(self.words), np.bool_)
        ends = self.offsets[1:][self.num_unigrams > 0]
        last[ends - 1] = True
        first = np.flatnonzero(~last)
        offsets = np.concatenate([[0], np.cumsum(np.maximum(self.num_unigrams - 1, 0))]).astype(np.int64)
        unsigned = self.words.view(np.uint64)
        return offsets, _mixed(unsigned[first], unsigned[first + 1]).view(np.int64)


def _array(texts: Sequence[str] | pa.StringArray) -> pa.StringArray:
    return texts if isinstance(texts, pa.StringArray) else pa.array(texts, pa.string())


def ngram_hashes(unigrams: Sequence[str]) -> tuple[list[int], list[int]]:
    """The hashes of a text's words, and of its bigrams, in order."""
    word_hashes = hashes(unigrams)
    unsigned = word_hashes.view(np.uint64)
    return word_hashes.tolist(), _mixed(unsigned[:-1], unsigned[1:]).view(np.int64).tolist()


def hashes(texts: Sequence[str] | pa.StringArray) -> Int64s:
    """Mixes the bytes of each string, eight at a time, into 64 bits; for many strings at once."""
    texts = _array(texts)
    _, offsets_buffer, data = texts.buffers()
    if not len(texts):
        return np.zeros(0, np.int64)
    offsets = np.frombuffer(offsets_buffer, np.int32, len(texts) + 1, texts.offset * 4).astype(np.int64)
    padded = np.zeros(offsets[-1] + 8, np.uint8)
    padded[: offsets[-1]] = np.frombuffer(data, np.uint8, offsets[-1]) if data else 0
    eights: Uint64s = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))  # from every byte on
    starts, left = offsets[:-1], np.diff(offsets)
    mixed = left.astype(np.uint64)
    rows = np.arange(len(texts))
    while len(rows):
        some = eights[starts]
        some &= _MASKS[np.minimum(left, 8)]
        mixed[rows] = _mixed(mixed[rows], some)
        more = left > 8
        rows, starts, left = rows[more], starts[more] + 8, left[more] - 8
    return mixed.view(np.int64)


#: Entry n selects the first n of eight bytes.
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


def _mixed(first: Uint64s, second: Uint64s) -> Uint64s:
    """Makes one number of two, by the odd multipliers and shifts of splitmix64: their order and every bit count."""
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + second
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def text_facts(texts: Sequence[str] | pa.StringArray) -> TextFacts:
    """Everything about the words of normalised texts; equal to what `align.pairs.text` says of each text."""
    array = _array(texts)
    pieces, bounds = _pieces(_with_spaces_hidden(array))
    encoded = pieces.dictionary_encode()
    which = encoded.indices.to_numpy()
    known = _Pieces.of(encoded.dictionary)
    counts = known.counts[which]
    ends = np.concatenate([[0], np.cumsum(counts)])
    # each word is taken from the words of its piece, which begin at `first`
    first = np.cumsum(known.counts) - known.counts
    text_words = known.words[np.repeat(first[which] - ends[:-1], counts) + np.arange(ends[-1])]
    occurrences = np.repeat(np.bincount(which, minlength=len(known.counts)), known.counts)
    facts = TextFacts(
        offsets=ends[bounds],
        words=text_words,
        vocabulary=known.words,
        occurrences=occurrences,
        num_words=np.diff(np.concatenate([[0], np.cumsum(known.num_words[which])])[bounds]),
        is_filename=np.zeros(len(array), np.bool_),
        num_emails=np.zeros(len(array), np.int64),
        num_phones=np.zeros(len(array), np.int64),
    )
    for row in np.flatnonzero(_suspicious(array, known, which, bounds)).tolist():
        text = array[row].as_py()
        facts.is_filename[row] = is_filename(text)
        facts.num_emails[row], facts.num_phones[row] = personal_data(text)
    return facts


def _pieces(texts: pa.StringArray) -> tuple[pa.StringArray, Int64s]:
    """All pieces, each with the space after it, and (N + 1,) where each text's begin; the pieces are not copied."""
    spaced = pc.binary_join_element_wise(texts, "", " ")
    ends = np.flatnonzero(_characters(spaced) == ord(" ")) + 1
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    data = spaced.buffers()[2] or pa.py_buffer(b"")
    pieces = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), data)
    return pieces, np.searchsorted(offsets, _offsets(spaced).astype(np.int32))


def _with_spaces_hidden(texts: pa.StringArray) -> pa.StringArray:
    """The texts, where those with a letter that joins the space before it are one piece."""
    data = _characters(texts).tobytes()
    if _KATAKANA_BEGIN not in data or not any(sign.encode() in data for sign in _KATAKANA_SIGNS):
        return texts
    rows = pc.match_substring_regex(texts, f"[{_KATAKANA_SIGNS}]")
    return pc.if_else(rows, pc.replace_substring(texts, " ", _NO_SPACE), texts)


def normal_forms(texts: pa.StringArray) -> pa.StringArray:
    """`align.pairs.text.normalise` of many texts, with null as the empty text; most are in that form already."""
    texts = pc.fill_null(texts, "")
    odd = pc.match_substring_regex(texts, _ODD)
    forms = [normalise(text) for text in texts.filter(odd).to_pylist()]
    return pc.replace_with_mask(texts, odd, pa.array(forms, pa.string()))


def _offsets(texts: pa.StringArray) -> Int64s:
    """(N + 1,) where each string begins in `_characters`."""
    if not len(texts):
        return np.zeros(1, np.int64)
    offsets = np.frombuffer(texts.buffers()[1], np.int32, len(texts) + 1, texts.offset * 4).astype(np.int64)
    return np.asarray(offsets - offsets[0])


def _characters(texts: pa.StringArray) -> Bytes:
    """The bytes of all strings, one after the other."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return np.zeros(0, np.uint8)
    bounds = np.frombuffer(offsets, np.int32, len(texts) + 1, texts.offset * 4)
    return np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]


@dataclass(frozen=True)
class _Pieces:
    """What N distinct pieces of texts are made of.

    Attributes:
        counts: (N,) number of words.
        words: hashes of all words, piece after piece.
        num_words: (N,) as in TextFacts.
        digits: (N,) number of digits.
        trait: (N,) whether it has a sign that a path, an extension or an address needs.
        foreign: (N,) whether it has characters beyond ASCII.
    """

    counts: Int64s
    words: Int64s
    num_words: Int64s
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
        foreign = _foreign_pieces(pieces.filter(pa.array(~ascii_rows)))
        counts[~ascii_rows], foreign_words, foreign_lengths, digits[~ascii_rows], trait[~ascii_rows] = foreign
        lengths = counts.copy()
        lengths[~ascii_rows] = foreign_lengths
        from_ascii = np.repeat(ascii_rows, counts)
        word_hashes = np.empty(len(from_ascii), np.int64)
        word_hashes[from_ascii] = ascii_words
        word_hashes[~from_ascii] = foreign_words
        return _Pieces(counts, word_hashes, lengths, digits, trait, ~ascii_rows)


def _foreign_pieces(pieces: pa.StringArray) -> tuple[list[int], Int64s, list[int], list[int], list[bool]]:
    """`counts`, `words`, `num_words`, `digits` and `trait` of `_Pieces`, for pieces beyond ASCII."""
    counts, lengths, digits, trait = list[int](), list[int](), list[int](), list[bool]()
    hashed = [np.zeros(0, np.int64)]
    for start in range(0, len(pieces), _PIECES_AT_ONCE):
        block = [
            (_remembered_piece if len(piece) <= _REMEMBERED_CHARACTERS else _foreign_piece)(piece)
            for piece in pieces.slice(start, _PIECES_AT_ONCE).to_pylist()
        ]
        counts += [len(piece_words) for piece_words, *_ in block]
        lengths += [length for _, length, _, _ in block]
        digits += [number for _, _, number, _ in block]
        trait += [sign for *_, sign in block]
        hashed.append(hashes([*chain.from_iterable(piece_words for piece_words, *_ in block)]))
    return counts, np.concatenate(hashed), lengths, digits, trait


def _foreign_piece(piece: str) -> tuple[tuple[str, ...], int, int, bool]:
    """The words, `num_words`, the number of digits and the trait of a piece beyond ASCII."""
    text = piece.replace(_NO_SPACE, " ")
    piece_words = tuple(words(text))
    length = num_words(text) if UNSPACED.search(text) else len(piece_words)
    return piece_words, length, len(_ANY_DIGIT.findall(piece)), _SIGN.search(piece) is not None


_remembered_piece = lru_cache(_NUM_REMEMBERED)(_foreign_piece)


def _ascii_pieces(pieces: pa.StringArray) -> tuple[Int64s, Int64s, Int64s, Flags]:
    """`counts`, `words`, `digits` and `trait` of `_Pieces`."""
    if not len(pieces):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_)
    # a space before the first piece, so that every character of a piece has two neighbours
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
    # underscores alone are not a word
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

    def owners(positions: Int64s) -> Int64s:
        """The piece that each byte belongs to."""
        return np.asarray(np.searchsorted(begins, positions, side="right") - 1)

    trait = np.zeros(len(pieces), np.bool_)
    trait[owners(np.flatnonzero(kind & _TRAIT))] = True
    trait[owners(joints[(here & _DOT != 0) & (after & _SOLID != 0)])] = True  # an extension
    num_digits = np.bincount(owners(np.flatnonzero(kind & _DIGIT)), minlength=len(pieces))
    return counts, hashes(array), num_digits, trait


def _runs(flags: Flags) -> tuple[Int64s, Int64s]:
    """(starts, ends) of the runs of set flags; the flags are clear at both ends."""
    edges = np.flatnonzero(flags[1:] != flags[:-1]) + 1
    return edges[::2], edges[1::2]


def _suspicious(texts: pa.StringArray, known: _Pieces, which: Int64s, bounds: Int64s) -> Flags:
    """The texts that `is_filename` or `personal_data` may match: all others lack a sign that every match has."""
    if not len(texts):
        return np.zeros(0, np.bool_)
    trait, foreign = (np.logical_or.reduceat(flags[which], bounds[:-1]) for flags in (known.trait, known.foreign))
    digits = np.add.reduceat(known.digits[which], bounds[:-1])
    # a camera's file name is one of a few prefixes, then digits, blanks and few letters
    first = np.append(_characters(texts), np.uint8(0))[_offsets(texts)[:-1]]
    camera = (digits > 0) & (foreign | _CAMERA_INITIAL[first])
    return np.asarray(trait | camera | (digits >= _DIGITS_OF_A_PHONE_NUMBER))
