"""A text's normal form and words, and whether it is a file name or has a person's address or number.

The paper leaves open what a unigram is for a given script. Decision: a word of Unicode's default word segmentation
(UAX #29) that has at least one letter or digit, lower-cased. So `don't`, `1920x1080` and `alt_img` are one word each,
an ideograph or a Hiragana or Thai character is a word of its own, and emoji or punctuation are not words.

Rule T3 counts texts in these scripts, which have no spaces, in another way (`num_words`): a run of such characters is
half as many words, rounded up. With a word for each character, T3 would drop most of their sentences as too long.

`align.filter.words` finds the same words in many texts at once.
"""

from __future__ import annotations

import unicodedata

import regex

#: A UAX #29 segment that starts with a letter, digit or joining underscore (WORD gives `\b` its Unicode meaning).
_SEGMENT = regex.compile(r"\b[\p{L}\p{M}\p{N}\p{Pc}].*?\b", flags=regex.WORD | regex.VERSION1 | regex.DOTALL)
_WORD_LIKE = regex.compile(r"[\p{L}\p{N}]")
#: A run of characters of scripts without spaces: Han, Kana with its signs of length and voice, and those for which
#: Unicode needs a dictionary (LB=SA): Thai, Lao, Khmer, Burmese and others. Accents belong to the character before.
UNSPACED = regex.compile(
    r"(?:[[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\uff70\uff9e\uff9f\p{LB=SA}]--[\p{Nd}\p{P}\p{S}\p{M}]]\p{M}*)+",
    flags=regex.VERSION1,
)
_MARK = regex.compile(r"\p{M}")
#: The most characters of a text, or of an address, that we store or look at: a web page, table or tar may hold any
#: number. A text of this many was most likely cut, and is never kept (`filter.max_characters` is lower).
MAX_CHARACTERS = 8192
#: Combining marks in a row that are kept; those after them are dropped. 30 is the limit of Unicode's stream-safe form
#: (UAX #15): no language needs as many, and the time of NFC grows with the square of their number.
_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
#: White space, and the control and unpaired surrogate characters that parsers leave in texts and tables cannot store.
_BLANK = regex.compile(r"[\s\p{Cc}\p{Cs}]+")

_EXTENSIONS = frozenset({
    "jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "svg", "svgz", "bmp", "tif", "tiff", "ico", "avif", "heic",
    "heif", "jxl", "psd", "eps", "xcf", "pdf", "mp4", "webm",
})  # fmt: skip
_STEM_END = regex.compile(r"[\w)\]-]")
_PATH = regex.compile(
    r"""
      (?:https?|ftp|file|data)://?\S+                                           # a URL
    | (?:\.{0,2}/|~/|[a-z]:[\\/])\S+                                            # an absolute or relative path
    | [^\s\\/]+(?:[\\/][^\s\\/]+){2,}                                           # folders/in/between
    """,
    flags=regex.VERBOSE | regex.IGNORECASE | regex.VERSION1,
)
#: The names that cameras and tools give to files.
_CAMERA = regex.compile(
    r"(?:img|dsc[nf]?|dscn|p|pict|mvi|gopr|vid|screenshot|screen shot|image|photo|scan|untitled|unnamed)"
    r"[\s_-]*\(?\d[\d\s_.:()-]*(?:at [\d.:]+)?",
    flags=regex.IGNORECASE | regex.VERSION1,
)

_EMAIL = regex.compile(r"[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}\p{L}{2,24}")
#: International (+1 ...), or grouped as phone numbers are (3-3-4, or 0 and an area code first); not dates or sizes.
_PHONE = regex.compile(
    r"""(?<![\w+/.-])(?:
      \+\d(?:[\s().-]{0,3}\d){7,14}
    | \(?\d{3}\)?[\s.-]\d{3}[.-]\d{4}
    | \(?0\d{1,4}\)?[\s/-]\d{3,4}[\s-]?\d{3,5}
    )(?![\w-])""",
    flags=regex.VERBOSE | regex.VERSION1,
)


def normalise(text: str) -> str:
    """The form in which texts are compared and kept: NFC, white space and control characters as single spaces.

    It keeps the first MAX_CHARACTERS, and the first 30 of any combining marks in a row.
    """
    text = text[:MAX_CHARACTERS]
    if not text.isascii():
        text = unicodedata.normalize("NFC", str(_MANY_MARKS.sub(r"\1", text)))
    if text.isprintable():  # its only blanks are spaces, as in most texts
        return " ".join(text.split())
    return str(_BLANK.sub(" ", text)).strip()


def words(text: str) -> list[str]:
    """The unigrams of a text in order, lower-cased (in Python: SQL engines disagree on some Unicode)."""
    lowered = unicodedata.normalize("NFC", text.lower())
    return [segment for segment in _SEGMENT.findall(lowered) if _WORD_LIKE.search(segment)]


def num_words(text: str) -> int:
    """The words of a text as rule T3 counts them: `words`, but two characters of a run without spaces are one."""
    return len(words(UNSPACED.sub(lambda run: f" {'字' * -(-len(_MARK.sub('', run[0])) // 2)} ", text)))


def is_filename(text: str) -> bool:
    """Whether a normalised text is a file name, a path or a URL, and nothing else.

    A rule of ours, not the paper's: a path splits into 3 to 20 words and so passes T3, and it passes T1 if every
    picture has its own file name.
    """
    stem, _, extension = text.rpartition(".")
    if extension.casefold() in _EXTENSIONS and _STEM_END.match(stem[-1:]):
        return True
    if " " not in text and _PATH.fullmatch(text):
        return True
    return _CAMERA.fullmatch(text) is not None


def personal_data(text: str) -> tuple[int, int]:
    """The numbers of a text's e-mail addresses and phone numbers."""
    emails = len(_EMAIL.findall(text)) if "@" in text else 0
    return emails, len(_PHONE.findall(text))


def mask_personal_data(text: str) -> str:
    """The text, with all but the first letter or digit of each e-mail address and phone number hidden."""

    def hidden(match: regex.Match[str]) -> str:
        address = str(match[0])
        return address[0] + str(_WORD_LIKE.sub("•", address[1:]))

    return str(_PHONE.sub(hidden, _EMAIL.sub(hidden, text)))
