"""What a quality gate expects of the data and what it observed. `align.services.expectations` implements `Check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from align.config.params import Strict
from align.display.shares import precise_percent

if TYPE_CHECKING:
    import pandas as pd

#: The table with one row and one column per statistic, which `statistic` expects something of.
STATISTICS = "statistics"


@dataclass(frozen=True, slots=True)
class Expectation:
    """One line of a gate.

    Attributes:
        name: what people type to accept its failure, such as `keep-rate`; it does not change with the wording.
        what: the same for people, such as "keep rate".
        table: the table it is checked on.
        kind: Great Expectations' name in snake case, such as `expect_column_max_to_be_between`.
        arguments: its arguments, such as `{"column": "keep_rate", "min_value": 0.2}`.
        threshold: for people, such as "20% to 95%".
        is_share: whether its figure is one, which people read in per cent.
    """

    name: str
    what: str
    table: str
    kind: str
    arguments: Mapping[str, Any]
    threshold: str
    is_share: bool = False


def statistic(what: str, column: str, low: float | None, high: float | None) -> Expectation:
    """An expectation on one figure of the table `statistics`, both bounds included; None: no bound.

    It is of a share if a bound is a fraction by its type, as `validate` has them.
    """
    is_share = isinstance(low, float) or isinstance(high, float)
    shown = precise_percent if is_share else "{:g}".format
    if low is None or high is None:
        threshold = f"at least {shown(low)}" if low is not None else f"at most {shown(high or 0)}"
    else:
        threshold = f"{shown(low)} to {shown(high)}" if low != high else shown(low)
    name = column.replace("_", "-")
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Expectation(name, what, STATISTICS, "expect_column_max_to_be_between", arguments, threshold, is_share)


class Acceptance(Strict):
    """A failed expectation that a person takes responsibility for.

    Attributes:
        expectation: its name.
        data: digest of the data that it was accepted for.
        observed: what was observed then.
        threshold: what was expected then.
        reason: why the data may be used nevertheless.
        by: who decided.
        on: the day, such as 2026-01-31.
    """

    expectation: str
    data: str
    observed: str
    threshold: str
    reason: str
    by: str
    on: str

    @property
    def signed(self) -> str:
        """What was accepted, when and by whom."""
        return f"{self.expectation} on {self.on} by {self.by}, where {self.observed} was observed"


class Outcome(Strict):
    """The result of an expectation, as the gate's report keeps it.

    Attributes:
        name, what, threshold: as in `Expectation`.
        expectation: its kind and column, such as `expect_column_max_to_be_between(keep_rate)`.
        observed: a value, or how many of how many rows fail.
        passed: whether the data is as expected.
        accepted: who accepted the failure of this data; None if it passed or nobody did.
        accepted_before: who accepted a failure of this name last, for other data; None: as above, or it is accepted.
        value, low, high: of an expectation on one figure: the figure and its bounds; None: there is none.
    """

    name: str
    what: str
    expectation: str
    observed: str
    threshold: str
    passed: bool
    accepted: Acceptance | None = None
    accepted_before: Acceptance | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it blocks nothing: it passed or was accepted."""
        return self.passed or self.accepted is not None


class Check(Protocol):
    """Checks expectations on tables."""

    def __call__(self, tables: Mapping[str, pd.DataFrame], expectations: Sequence[Expectation]) -> list[Outcome]:
        """Checks them all.

        Args:
            tables: name -> rows.
            expectations: each names one of the tables.

        Returns:
            One outcome per expectation, in the order given. An expectation that cannot be evaluated (its column is
            missing) has failed, and its `observed` says why.
        """
        ...
