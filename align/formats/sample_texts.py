"""The texts of a sample in a tar of webdataset: which of its members have them, and what is read from one."""

from __future__ import annotations

from typing import Any

from align.formats.table_rows import object_of
from align.pairs.text import normalise

#: Endings of files and members that hold the text of the picture of the same name, and the most bytes of one.
TEXT_EXTENSIONS, MAX_TEXT_BYTES = ("txt", "text", "caption", "cap"), 1 << 20
#: Keys of a sample's JSON under which its text is, or a list of its texts.
TEXT_KEYS = ("caption", "captions", "text", "texts", "TEXT", "alt")
#: Texts of a picture that are trained on.
_MAX_TEXTS = 1_000


def sample_name(member: str) -> tuple[str, str]:
    """A member's sample and extension as webdataset defines them: the latter begins at the last part's first dot."""
    folder, slash, base = member.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def texts_in(data: bytes) -> list[str]:
    """The texts in a member, normalised: of a JSON object those of the first of TEXT_KEYS that has some, else all."""
    values = object_of(data)
    if values is None:
        return _plain(data.decode("utf-8", "replace"))
    return _plain(next((values[key] for key in TEXT_KEYS if values.get(key)), None))


def _plain(found: Any) -> list[str]:
    listed = found[:_MAX_TEXTS] if isinstance(found, list) else [found]
    return [text for one in listed if isinstance(one, str) and (text := normalise(one))]
