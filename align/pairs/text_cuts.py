"""Whether a text alone decides that its pair is dropped, for any picture and any other pairs.

The filter asks that of whole tables in SQL: its rules `text_too_short`, `text_too_long` and `text_is_filename`. Ingest
asks it of one text at a time, since a picture need not be fetched if none of its texts can pass. A test compares the
two.
"""

from __future__ import annotations

from dataclasses import dataclass

from align.pairs.text import MAX_CHARACTERS, is_filename, normalise, words


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

    def can_pass(self, text: str | None) -> bool:
        """Whether these rules keep a text, given as data/raw has it; None is the empty text."""
        normal = normalise(text or "")
        # of a text that was cut, white space may hide how much there was
        if len(normal) > self.max_characters or len(text or "") >= MAX_CHARACTERS:
            return False
        if not self.min_words <= len(words(normal)) <= self.max_words:
            return False
        return not (self.drop_filenames and is_filename(normal))
