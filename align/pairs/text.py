"""What a text is: its normal form, its words, and whether it is only a file name.

The paper leaves open what a unigram is for a given script. Decision: a word of Unicode's default word segmentation
(UAX #29) that holds at least one letter or digit, lower-cased. So `don't`, `1920x1080` and `alt_img` are one word each,
an ideograph or a Hiragana or Thai character is a word of its own (such a text has no spaces, and `\\w+` would take a
whole sentence for one word and drop these languages at rule T3), and emoji or punctuation are no words.
"""

from __future__ import annotations

import unicodedata

import regex

#: A UAX #29 segment that starts with a letter, digit or joining underscore (WORD gives `\b` its Unicode meaning).
_SEGMENT = regex.compile(r"\b[\p{L}\p{M}\p{N}\p{Pc}].*?\b", flags=regex.WORD | regex.VERSION1 | regex.DOTALL)
_WORD_LIKE = regex.compile(r"[\p{L}\p{N}]")
#: White space, and the control and unpaired surrogate characters that parsers leave in texts and no table can hold.
_BLANK = regex.compile(r"[\s\p{Cc}\p{Cs}]+")

_EXTENSIONS = "jpe?g|jpe|jfif|png|gif|webp|svgz?|bmp|tiff?|ico|avif|heic|heif|jxl|psd|eps|xcf|pdf|mp4|webm"
_FILE_NAME = regex.compile(
    rf"""
      .*[\w)\]-]\.(?:{_EXTENSIONS})                                             # any name with a picture's extension
    | (?:https?|ftp|file|data)://?\S+                                           # a URL
    | (?:\.{{0,2}}/|~/|[a-z]:[\\/])\S+                                          # an absolute or relative path
    | [^\s\\/]+(?:[\\/][^\s\\/]+){{2,}}                                           # folders/in/between
    | (?:img|dsc[nf]?|dscn|p|pict|mvi|gopr|vid|screenshot|screen\ shot|image|photo|scan|untitled|unnamed)
      [\s_-]*\(?\d[\d\s_.:()-]*(?:at\ [\d.:]+)?                                 # what cameras and tools call a file
    """,
    flags=regex.VERBOSE | regex.IGNORECASE | regex.VERSION1,
)


def normalise(text: str) -> str:
    """The form in which texts are compared and kept: NFC, white space and control characters as single spaces."""
    return str(_BLANK.sub(" ", unicodedata.normalize("NFC", text))).strip()


def words(text: str) -> list[str]:
    """The unigrams of a text in order, lower-cased (in Python: SQL engines disagree on some Unicode)."""
    lowered = unicodedata.normalize("NFC", normalise(text).lower())
    return [segment for segment in _SEGMENT.findall(lowered) if _WORD_LIKE.search(segment)]


def is_filename(text: str) -> bool:
    """Whether the whole text is a file name, a path or a URL and nothing else.

    A rule of ours, not the paper's: a path splits into 3 to 20 words and passes T3, and where every picture has its own
    file name T1 does not see it either.
    """
    return _FILE_NAME.fullmatch(normalise(text)) is not None
