"""The texts of a sample in a tar of webdataset: which of its members have them, and what is read from one."""

from __future__ import annotations

import io
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from align.formats.json_tables import object_of
from align.formats.tar_members import DamagedTar, read_members

#: Endings of files and members that hold the text of the picture of the same name, and the most bytes of one.
TEXT_EXTENSIONS, MAX_TEXT_BYTES = ("txt", "text", "caption", "cap"), 1 << 20
#: Keys of a sample's JSON under which its text is, or a list of its texts.
TEXT_KEYS = ("caption", "captions", "text", "texts", "TEXT", "alt")
#: Texts of a picture that are trained on, and the characters of each: no model reads more.
_MAX_TEXTS, _MAX_CHARACTERS = 1_000, 10_000


def sample_name(member: str) -> tuple[str, str]:
    """A member's sample and extension as webdataset defines them: the latter begins at the last part's first dot."""
    folder, slash, base = member.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


class Texts(list[str]):
    """The texts of a picture, and in `sources` where each is from; empty: no text says it."""

    def __init__(self, texts: Iterable[str], sources: Iterable[str | None] = ()) -> None:
        super().__init__(texts)
        self.sources = tuple(sources)

    def drawn(self, number: float, weights: Mapping[str, float] | None) -> str:
        """The text that a number in [0, 1) draws: a source by its weight among those that are here, then any of its
        texts. Without weights, or if no source here has one: any text.
        """
        num_texts = Counter(self.sources)
        shares = [*accumulate((weights or {}).get(one or "", 0.0) / num_texts[one] for one in self.sources)]
        if not weights or not shares or not shares[-1]:
            return self[int(number * len(self))]
        return self[bisect(shares, number * shares[-1])]


def texts_of_sources(members: Mapping[str, bytes], names: Sequence[str]) -> Texts:
    """The texts of a sample's members (extension -> bytes), of each source: a key of the JSON, else one of
    TEXT_EXTENSIONS.
    """
    values = object_of(members.get("json", b"")) or {}
    own = {name: data.decode("utf-8", "replace") for name, data in members.items() if name in TEXT_EXTENSIONS}
    found = [(text, name) for name in names for text in _plain(values.get(name) or own.get(name))]
    return Texts((text for text, _ in found), (name for _, name in found))


def texts_at(data: bytes, names: Sequence[str]) -> Texts:
    """The texts of a sample, in the bytes that an index of given tars names: a member, or with `names` the part of the
    tar from the first to the last that are needed. Where it has none of these sources: as without `names`.
    """
    if not names:
        return Texts(texts_in(data))
    file, members = io.BytesIO(data), dict[str, bytes]()
    try:
        for member in read_members(file):
            if member.problem is None and member.size <= MAX_TEXT_BYTES:
                members[sample_name(member.name)[1]] = data[member.offset : member.offset + member.size]
    except DamagedTar:
        pass
    return texts_of_sources(members, names) or Texts(next(filter(None, map(texts_in, members.values())), []))


def texts_in(data: bytes) -> list[str]:
    """The texts in a member: of a JSON object those under the first of TEXT_KEYS that has some, else all as one."""
    values = object_of(data)
    if values is None:
        return _plain(data.decode("utf-8", "replace"))
    return _plain(next((values[key] for key in TEXT_KEYS if values.get(key)), None))


def _plain(found: Any) -> list[str]:
    listed = found[:_MAX_TEXTS] if isinstance(found, list) else [found]
    texts = (" ".join(text[:_MAX_CHARACTERS].split()) for text in listed if isinstance(text, str))
    return [text for text in texts if text]
