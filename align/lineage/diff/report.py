"""What `align diff` reports: two versions of the data, the pairs whose state changed, and how distributions moved."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

#: States of a pair; the others are the reasons that it is dropped for.
KEPT, ABSENT = "kept", "absent"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChangedPair(_Frozen):
    """A pair whose state changed; a key is None if the version has no such pair."""

    url: str
    text: str
    key_before: str | None
    key_after: str | None


class StateChange(_Frozen):
    """The pairs that went from one state to another: `kept`, `absent`, or the reason that they are dropped for."""

    before: str
    after: str
    num_pairs: int
    examples: list[ChangedPair]


class VersionSummary(_Frozen):
    """One version of the data.

    Attributes:
        states: `kept` and each reason -> number of pairs.
        distributions: of the kept pairs, see `align.validate.drift`.
    """

    name: str
    num_pairs: int
    num_kept: int
    states: dict[str, int]
    distributions: dict[str, dict[str, float]]

    @property
    def keep_rate(self) -> float:
        """Share of the pairs that are kept, 0 to 1."""
        return self.num_kept / self.num_pairs if self.num_pairs else 0.0


class DiffReport(_Frozen):
    """What changed between two versions.

    Attributes:
        moves: every change of state with its number of pairs, the largest first.
        hosts: (host of the picture, kept before, kept after) where that changed most.
        distances: name -> how far the distribution moved, 0 to 1 (total variation).
    """

    schema_version: int = 1
    before: VersionSummary
    after: VersionSummary
    moves: list[StateChange]
    hosts: list[tuple[str, int, int]]
    distances: dict[str, float]

    @property
    def entered(self) -> list[StateChange]:
        """The changes of pairs that are kept now and were not."""
        return [move for move in self.moves if move.after == KEPT]

    @property
    def left(self) -> list[StateChange]:
        """The changes of pairs that were kept and are not."""
        return [move for move in self.moves if move.before == KEPT]

    @property
    def others(self) -> list[StateChange]:
        """The changes of pairs that are kept neither before nor after."""
        return [move for move in self.moves if KEPT not in (move.before, move.after)]

    def by_rule(self) -> list[tuple[str, int, int]]:
        """(reason, pairs before, pairs after) for each reason whose number of pairs changed."""
        states = sorted((self.before.states.keys() | self.after.states.keys()) - {KEPT})
        rows = [(state, self.before.states.get(state, 0), self.after.states.get(state, 0)) for state in states]
        return [row for row in rows if row[1] != row[2]]
