"""The history of a model's champion, as tags of the registered model in MLflow.

align.champion.00001 ...   one move each, as JSON; written when the alias has moved

`align.release.aliases.moves` writes them. Here is what they mean, for everybody who reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from align.display.visible import visible
from align.errors import FormatError
from align.formats.json_file import StoredModel, parse

_ENTRY = re.compile(r"align\.champion\.([0-9]{5})")
#: Characters that a database may hold of a tag of a registered model (`registered_model_tags.value`).
MAX_CHARACTERS = 5000
MAX_WHY, MAX_WHO = 1000, 200
_REMEDY = "restore the tag in MLflow, or delete it there"

#: `by hand`: somebody moved the alias in MLflow. `rejected`: a person did not approve; no alias moved.
Kind = Literal["promoted", "rolled back", "by hand", "rejected"]


class Move(StoredModel):
    """One move of the alias `champion`.

    Attributes:
        number: from 1, of the entry.
        kind: what happened.
        at: when, in UTC: 2026-11-27T08:00:00Z. For a move by hand: when it was noticed.
        who: the user or the flow run; the person who approved; `unknown`.
        before: number of the version that was the champion; None: there was none. `from` in JSON.
        to: number of the version that is; None: the alias was removed, or its version was deleted.
        why: one sentence.
        figures: what the decision was made on.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)
    schema_version: Literal[1] = 1
    number: Annotated[int, Field(ge=1)]
    kind: Kind
    at: str
    who: str
    before: Annotated[int | None, Field(alias="from")]
    to: int | None
    why: str
    figures: Mapping[str, float]

    @property
    def key(self) -> str:
        """The tag of its entry."""
        return f"align.champion.{self.number:05d}"

    def text(self) -> str:
        """As the tags hold it. Words that are too long are cut, and figures that do not fit are left out."""
        short = self.model_copy(
            update={"why": visible(self.why)[:MAX_WHY], "who": visible(self.who)[:MAX_WHO], "figures": {}}
        )
        text = short.model_dump_json()
        for name, value in self.figures.items():
            longer = short.model_copy(update={"figures": {**short.figures, name: value}})
            if len(longer.model_dump_json()) > MAX_CHARACTERS:
                break
            short, text = longer, longer.model_dump_json()
        return text


@dataclass(frozen=True)
class ChampionState:
    """What MLflow says of a model's champion at one moment.

    Attributes:
        model: name of the registered model.
        champion: number of the version with the alias; None: none has it.
        moves: the history, oldest first.
    """

    model: str
    champion: int | None
    moves: tuple[Move, ...]

    def previous(self, existing: Set[int]) -> int | None:
        """The champion that a rollback goes back to; None: there is none. `existing`: numbers of all versions."""
        return next(earlier_champions(self.moves, self.champion, existing), None)

    @property
    def moved_by_hand(self) -> bool:
        """Whether a person made it the champion in MLflow, so that no gate judged it.

        False without a history, since the champion may be older than the history.
        """
        return self.last is not None and (self.last.to != self.champion or self.last.kind == "by hand")

    @property
    def last(self) -> Move | None:
        """The last move of the alias; None if there is none."""
        return next((move for move in reversed(self.moves) if move.kind != "rejected"), None)


def history_of(model: str, tags: Mapping[str, str]) -> tuple[Move, ...]:
    """The moves in the tags of a registered model, oldest first.

    Raises:
        FormatError: a tag of the history was changed.
    """
    moves = []
    for key in sorted(filter(_ENTRY.fullmatch, tags)):
        move = parse(Move, tags[key].encode("utf-8", "replace"), f"tag {key} of model '{model}'", _REMEDY)
        if key != move.key:
            raise FormatError(f"tag {key} of model '{model}' is a copy of {move.key}; {_REMEDY}")
        moves.append(move)
    return tuple(moves)


def line_of_champions(moves: Iterable[Move]) -> list[int]:
    """The champions that led to the last one, oldest first: a rollback ends what it takes back."""
    line: list[int] = []
    for move in moves:
        if move.kind == "rejected":
            continue
        if move.before is not None and (not line or line[-1] != move.before):
            line.append(move.before)
        if move.kind == "rolled back" and move.to in line:
            del line[len(line) - line[::-1].index(move.to) :]
        elif move.to is not None:
            line.append(move.to)
    return line


def taken_back(moves: Iterable[Move]) -> set[int]:
    """The versions that were rolled back and have not been the champion since."""
    found: set[int] = set()
    for move in moves:
        if move.kind == "rolled back" and move.before is not None:
            found.add(move.before)
        if move.to is not None:
            found.discard(move.to)
    return found


def earlier_champions(moves: Sequence[Move], champion: int | None, existing: Set[int]) -> Iterator[int]:
    """The champions before this one, the latest first, without those that were rolled back or deleted."""
    passed = {champion} | taken_back(moves)
    for number in reversed(line_of_champions(moves)):
        if number in existing and number not in passed:
            passed.add(number)
            yield number


def last_before(moves: Iterable[Move], when: datetime) -> Move | None:
    """The last move at this time or before: its `to` was the champion then. None: the history begins later."""
    then = [move for move in moves if move.kind != "rejected" and time_of(move.at) <= when]
    return then[-1] if then else None


def time_of(text: str) -> datetime:
    """A time as tags hold it, in UTC. Raises ValueError if it is not a time."""
    when = datetime.fromisoformat(text)
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
