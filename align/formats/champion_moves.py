"""The history of a model's champion, as tags of the registered model in MLflow.

align.champion.00001 ...   one move each, as JSON; written when the alias has moved

`align.release.aliases.moves` writes them. Here is what they mean, for everybody who reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
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
        return next((number for number in self._earlier(existing) if number in self.passed), None)

    def passed_over(self, existing: Set[int]) -> list[int]:
        """The champions between `previous` and this one that somebody made so by hand, the latest first."""
        standing, to = standing_of(self.moves), self.previous(existing)
        after = takewhile(lambda number: number != to, self._earlier(existing))
        return [number for number in after if standing.get(number) == "by hand"]

    def _earlier(self, existing: Set[int]) -> list[int]:
        """All versions that were the champion before this one, the latest first, without those that were deleted."""
        numbers = dict.fromkeys(move.to for move in reversed(self.moves))
        return [number for number in numbers if number is not None and number in existing - {self.champion}]

    @property
    def passed(self) -> set[int]:
        """The versions that the gates of `align promote` let be the champion, without those rolled back since."""
        return {number for number, how in standing_of(self.moves).items() if how == "promoted"}

    @property
    def made_by_hand(self) -> bool:
        """Whether the champion is one without having passed the gates, however the alias came back to it."""
        return self.champion is not None and self.champion not in self.passed


def history_of(model: str, tags: Mapping[str, str]) -> tuple[Move, ...]:
    """The moves in the tags of a registered model, oldest first. Raises FormatError if a tag of the history was
    changed.
    """
    moves = []
    for key in sorted(filter(_ENTRY.fullmatch, tags)):
        move = parse(Move, tags[key].encode("utf-8", "replace"), f"tag {key} of model '{model}'", _REMEDY)
        if key != move.key:
            raise FormatError(f"tag {key} of model '{model}' is a copy of {move.key}; {_REMEDY}")
        moves.append(move)
    return tuple(moves)


def standing_of(moves: Iterable[Move]) -> dict[int, Kind]:
    """How each version that was the champion stands: promoted, rolled back since, or by hand alone.

    Neither a move by hand nor a rollback to a version replaces what the gates, or the person who rolled it back, said.
    """
    found: dict[int, Kind] = {}
    for move in moves:
        if move.kind == "rolled back" and move.before is not None:
            found[move.before] = "rolled back"
        elif move.kind == "promoted" and move.to is not None:
            found[move.to] = "promoted"
        elif move.kind == "by hand" and move.to is not None:
            found.setdefault(move.to, "by hand")
    return found


def last_before(moves: Iterable[Move], when: datetime) -> Move | None:
    """The last move at this time or before: its `to` was the champion then. None: the history begins later."""
    then = [move for move in moves if move.kind != "rejected" and time_of(move.at) <= when]
    return then[-1] if then else None


def time_of(text: str) -> datetime:
    """A time as tags hold it, in UTC. Raises ValueError if it is not a time."""
    when = datetime.fromisoformat(text)
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
