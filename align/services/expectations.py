"""Great Expectations, which no other module imports: expectations in code, an ephemeral context, no files, no network.

Two things shape it. Its own database route fails on DuckDB, so it is given pandas frames: one of statistics over the
whole data (one row, a column per statistic) and bounded samples of rows. And its Data Docs load styles from a CDN and
come up blank offline, so results leave here as plain values and the caller renders them.

Importing Great Expectations takes 4 to 14 s; hence the import within `check`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True, slots=True)
class Expectation:
    """One line of the gate.

    Attributes:
        name: stable, such as `keep-rate`: what people type to accept its failure.
        what: for people, such as "keep rate".
        table: which frame it is checked on.
        kind: Great Expectations' name in snake case, such as `expect_column_max_to_be_between`.
        arguments: its arguments, such as `{"column": "keep_rate", "min_value": 0.2}`.
        threshold: for people, such as "0.2 to 0.95".
    """

    name: str
    what: str
    table: str
    kind: str
    arguments: Mapping[str, Any]
    threshold: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an expectation: its words, and `observed`: a value, or how many of how many rows fail."""

    name: str
    what: str
    expectation: str
    observed: str
    threshold: str
    passed: bool


def statistic(what: str, column: str, low: float | None, high: float | None) -> Expectation:
    """An expectation on one figure of the frame `statistics`, both bounds included; None: no bound."""
    if high is None:
        threshold = f"at least {low:g}"
    elif low is None or low == high == 0:
        threshold = f"at most {high:g}" if high else "0"
    else:
        threshold = f"{low:g} to {high:g}" if low != high else f"{low:g}"
    name = column.replace("_", "-")
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Expectation(name, what, "statistics", "expect_column_max_to_be_between", arguments, threshold)


def check(tables: Mapping[str, pd.DataFrame], expectations: Sequence[Expectation]) -> list[Outcome]:
    """Runs one checkpoint over all tables.

    Args:
        tables: name -> rows.
        expectations: each names one of the tables.

    Returns:
        One outcome an expectation, in the order given. One that cannot be evaluated (its column is missing) has failed,
        and says so.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read at import
    with warnings.catch_warnings():  # it imports modules that Python has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # and pyspark, where it is installed, about pandas
        import great_expectations as gx
        from great_expectations import expectations as gxe
        from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("align")
    outcomes: dict[int, Outcome] = {}
    for name, frame in tables.items():
        wanted = [(index, item) for index, item in enumerate(expectations) if item.table == name]
        kinds = [getattr(gxe, "".join(word.capitalize() for word in item.kind.split("_"))) for _, item in wanted]
        suite = gx.ExpectationSuite(
            name=name,
            expectations=[
                kind(**item.arguments, meta={"index": index}) for kind, (index, item) in zip(kinds, wanted, strict=True)
            ],
        )
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("whole")
        definition = gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
        checkpoint = gx.Checkpoint(
            name=name, validation_definitions=[context.validation_definitions.add(definition)], result_format="SUMMARY"
        )
        result = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
        for run in result.run_results.values():
            for row in run.results:
                values: dict[str, Any] = row.to_json_dict()
                index = values["expectation_config"]["meta"]["index"]
                outcomes[index] = _outcome(expectations[index], bool(row.success), _observed(values))
    return [outcomes[index] for index in range(len(expectations))]


def _outcome(item: Expectation, passed: bool, observed: str) -> Outcome:
    expectation = f"{item.kind}({item.arguments.get('column', '')})"
    return Outcome(item.name, item.what, expectation, observed, item.threshold, passed)


def _observed(row: dict[str, Any]) -> str:
    result = row["result"]
    if "observed_value" in result:
        return _show(result["observed_value"])
    if "unexpected_count" in result:
        text = f"{result['unexpected_count']:,} of {result['element_count']:,} rows are otherwise"
        if examples := result["partial_unexpected_list"]:
            text += ", such as " + ", ".join(_show(value) for value in dict.fromkeys(examples[:3]))
        return text
    reason = (row["exception_info"] or {}).get("exception_message")
    if reason is None:  # one entry a metric
        reasons = [info["exception_message"] for info in row["exception_info"].values() if isinstance(info, dict)]
        reason = reasons[0] if reasons else "no result"
    return f"not evaluated: {reason}"


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)
