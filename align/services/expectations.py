"""Great Expectations, which no other module imports: expectations in code, an ephemeral context, no files, no network.

Two things shape this module. Great Expectations' own database route fails on DuckDB, so it gets pandas frames: one of
statistics over the whole data (one row, one column per statistic) and bounded samples of rows. And its Data Docs load
their styles from a CDN and are blank offline, so results leave here as plain values and the caller renders them.

Importing Great Expectations takes 4 to 14 s; hence the import within `check`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import pandas as pd

from align.display.shares import precise_percent
from align.interfaces.expectations import STATISTICS, Expectation, Outcome


def check(tables: Mapping[str, pd.DataFrame], expectations: Sequence[Expectation]) -> list[Outcome]:
    """Implements `align.interfaces.expectations.Check`, with one checkpoint for each table."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read at import
    with warnings.catch_warnings():  # it imports modules that Python has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # and pyspark, if it is installed, about pandas
        import great_expectations as gx
        from great_expectations import expectations as gxe
        from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas("align")
    outcomes: dict[int, Outcome] = {}
    for name, frame in tables.items():
        of_table = [(index, item) for index, item in enumerate(expectations) if item.table == name]
        suite = gx.ExpectationSuite(
            name=name,
            expectations=[
                getattr(gxe, item.kind.title().replace("_", ""))(**item.arguments, meta={"index": index})
                for index, item in of_table
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
                outcomes[index] = _outcome(expectations[index], bool(row.success), values)
    return [outcomes[index] for index in range(len(expectations))]


def _outcome(item: Expectation, passed: bool, row: dict[str, Any]) -> Outcome:
    value = row["result"].get("observed_value")
    is_figure = item.table == STATISTICS and isinstance(value, int | float) and isfinite(value)
    expectation = f"{item.kind}({item.arguments.get('column', '')})"
    return Outcome(
        name=item.name,
        what=item.what,
        expectation=expectation,
        observed=precise_percent(value) if is_figure and item.is_share else _observed(row),
        threshold=item.threshold,
        passed=passed,
        value=value if is_figure else None,
        low=item.arguments["min_value"] if is_figure else None,
        high=item.arguments["max_value"] if is_figure else None,
    )


def _observed(row: dict[str, Any]) -> str:
    result = row["result"]
    if "observed_value" in result:
        return _show(result["observed_value"])
    if "unexpected_count" in result:
        text = f"{result['unexpected_count']:,} of {result['element_count']:,} rows fail"
        if examples := result["partial_unexpected_list"]:
            text += ", such as " + ", ".join(_show(value) for value in dict.fromkeys(examples[:3]))
        return text
    reason = (row["exception_info"] or {}).get("exception_message")
    if reason is None:  # one entry per metric
        reasons = [info["exception_message"] for info in row["exception_info"].values() if isinstance(info, dict)]
        reason = reasons[0] if reasons else "no result"
    return f"not evaluated: {reason}"


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)
