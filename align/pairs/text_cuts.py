"""What decides of a text alone that its pair is dropped, for any picture and any other pairs.

The filter asks that of whole tables: its rules `text_too_short`, `text_too_long` and `text_is_filename`. Ingest asks
it, too, since a picture need not be fetched if none of its texts can pass. A test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from align.pairs.text import MAX_CHARACTERS, is_filename, normalise, num_words


class TextFacts(NamedTuple):
    """What these rules look at; the same for any values of theirs.

    Attributes:
        num_words: words, as `align.pairs.text.num_words` counts them.
        num_characters: of the normalised text; more than a rule can allow if the text was cut, since white space may
            hide how much there was.
        is_filename: whether it is the name of a file.
    """

    num_words: int
    num_characters: int
    is_filename: bool


def facts_of(text: str | None) -> TextFacts:
    """The facts of a text as data/raw has it; None is the empty text."""
    normal = normalise(text or "")
    num_characters = MAX_CHARACTERS if len(text or "") >= MAX_CHARACTERS else len(normal)
    return TextFacts(num_words(normal), num_characters, is_filename(normal))


@dataclass(frozen=True)
class TextCuts:
    """The values of section `filter` by which a text alone is judged.

    Its rules on languages and personal data are not among them: they are off by default, and what is taken for a
    language changes with the library that guesses it.
    """

    min_words: int
    max_words: int
    max_characters: int
    drop_filenames: bool

    @property
    def condition(self) -> str:
        """SQL over the columns of TextFacts: whether these rules keep the text."""
        names = " AND NOT is_filename" if self.drop_filenames else ""
        words = f"num_words BETWEEN {self.min_words} AND {self.max_words}"
        return f"({words} AND num_characters <= {self.max_characters}{names})"
