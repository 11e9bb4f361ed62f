"""What `align trace` found: a list of sections in the order of the chain, which text, JSON and page print alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["source", "page", "pair", "decision", "gate", "shards", "run", "version", "alias", "index"]
#: In the order of the chain, with the names that people read.
KINDS: Mapping[Kind, str] = {
    "source": "Source",
    "page": "Web page",
    "pair": "Pair",
    "decision": "Decision",
    "gate": "Quality gate",
    "shards": "Shards",
    "run": "Training run",
    "version": "Model version",
    "alias": "Alias",
    "index": "Search index",
}
State = Literal["", "good", "warn", "bad"]
Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Picture:
    """A picture: JPEG bytes, and its text."""

    data: bytes
    caption: str


@dataclass(frozen=True)
class Section:
    """One link of the chain.

    Attributes:
        kind: which link it is.
        title: its name, in a few words.
        facts: (label, value), in the order of reading.
        state: whether it is as it should be.
        missing: why something of it is not here, and how to get it; one line each.
        pictures: such as that of the pair.
        asked: whether it is what was asked for.
    """

    kind: Kind
    title: str
    facts: Facts = ()
    state: State = ""
    missing: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    asked: bool = False


@dataclass
class Trace:
    """The chain around what was asked for.

    Attributes:
        asked: the words of the command.
        subject: what they name, such as `pair 000000012`.
        answers: the main things that were found, as sentences.
        notes: one line for each source that could not be asked.
    """

    asked: str
    subject: str
    answers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _sections: list[Section] = field(default_factory=list)

    def add(self, *sections: Section) -> None:
        """Adds sections; equal ones once."""
        self._sections += [one for one in dict.fromkeys(sections) if one not in self._sections]

    @property
    def sections(self) -> list[Section]:
        """All, in the order of the chain."""
        return [one for kind in KINDS for one in self._sections if one.kind == kind]

    def as_json(self) -> dict[str, Any]:
        """For programs: without the bytes of pictures."""
        return {
            "schema_version": 3,
            "asked": self.asked,
            "subject": self.subject,
            "answers": self.answers,
            "notes": self.notes,
            "sections": [_as_json(one) for one in self.sections],
        }


def known(*facts: tuple[str, object]) -> Facts:
    """The facts that have a value, as text."""
    return tuple((label, str(value)) for label, value in facts if value not in (None, ""))


def _as_json(section: Section) -> dict[str, Any]:
    facts: dict[str, str] = {}
    for label, value in section.facts:  # a label may stand twice: two people accepted something
        facts[label] = f"{facts[label]}; {value}" if label in facts else value
    return vars(section) | {"facts": facts, "pictures": [picture.caption for picture in section.pictures]}
