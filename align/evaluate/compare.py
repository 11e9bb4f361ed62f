"""`align evaluate --compare A B`: the difference of two models on the same items, metric by metric.

Both are measured now, on the same sets, and compared query by query, by `align.statistics.paired` as in a promotion.
The interval is two-sided at 95 %. Where it is above or below zero, one model is better by this metric. Of two equally
good models about one metric in twenty looks different, so one metric of many says little.

A metric whose answers are not kept query by query (`ranks.parquet`) has no interval: both values are shown, and no
verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.display.figure import BAD, GOOD, SOFT, Interval, forest
from align.display.html import escape, heading, link, note, page, paragraph, plot, scroll, table
from align.display.report import Report, write_report
from align.display.shares import percent, points
from align.durable.files import write_text
from align.errors import ConfigError, DataError
from align.evaluate.paper_table import STYLE, grouped, label
from align.formats.model_folder import require_model
from align.formats.query_ranks import QueryRanks
from align.statistics.paired import difference, of_metrics

#: One-sided, so that both bounds make a 95 % interval.
CONFIDENCE = 0.975
_STYLE = """.scroll > table.compared { table-layout: auto }
table.compared th:nth-child(2), table.compared td:nth-child(2) { text-align: left }
table.compared td:first-child { white-space: nowrap; max-width: none; padding-left: .4rem }
table.compared td.soft { color: var(--soft) }
"""
#: With 80 % power, beside which "not told apart" has to be read.
HEADS = ("metric", "verdict", "A", "B", "B − A", "95 % interval", "found if at least")
A_BETTER, B_BETTER, EQUAL, UNKNOWN = "A is better", "B is better", "not told apart", "not compared by item"


@dataclass(frozen=True)
class Measured:
    """A model as it was measured.

    Attributes:
        folder: of the model, for people.
        digest: of its files.
        metrics: of its report.
        ranks: of each query.
    """

    folder: str
    digest: str
    metrics: Mapping[str, float | int]
    ranks: QueryRanks


@dataclass(frozen=True)
class Row:
    """One metric.

    Attributes:
        a, b: shares in [0, 1].
        difference: b - a.
        low, high: its 95 % interval; None: the answers to single queries are not kept.
        detectable: a true difference of this size is found in 80 % of trials of this size; None as `low`, or if there
            are too few units to find any.
        num_units: independent units (concepts); None as `low`.
        verdict: in words.
    """

    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    detectable: float | None
    num_units: int | None
    verdict: str


class CompareReport(Report):
    """The comparison; `metrics` has `SET/METRIC/difference` with `/low` and `/high`.

    Attributes:
        models: `a` and `b` -> folder and digest.
        sets: set -> digest, of those that both were measured on.
        rows: metric -> `Row`.
    """

    models: dict[str, dict[str, str]]
    sets: dict[str, str]
    rows: dict[str, dict[str, Any]]


def require_two_models(a: Path, b: Path) -> None:
    """Checks, before anything is measured, that there are two.

    Raises:
        ConfigError: it is the same folder twice.
        DataError, FormatError: a folder is no model.
    """
    for folder in (a, b):
        require_model(folder)
    if a.resolve() == b.resolve():
        raise ConfigError(f"--compare: {a} and {b} are the same folder; name two models")


def compare(a: Measured, b: Measured, *, seed: int) -> CompareReport:
    """Compares by every metric that both have.

    Raises:
        DataError: they have no metric in common, or were not asked the same items of a set.
    """
    _require_same_items(a, b)
    names = [name for name in a.metrics if f"{name}/low" in a.metrics and name in b.metrics]
    if not names:
        raise DataError(f"{a.folder} and {b.folder} have no metric in common: nothing can be compared")
    rows = {name: _row(name, a, b, seed) for name in names}
    metrics: dict[str, float | int] = {}
    for name, row in rows.items():
        metrics[f"{name}/difference"] = row.difference
        if row.low is not None and row.high is not None:
            metrics |= {f"{name}/difference/low": row.low, f"{name}/difference/high": row.high}
    return CompareReport(
        metrics=metrics,
        models={key: {"folder": one.folder, "digest": one.digest} for key, one in (("a", a), ("b", b))},
        sets=dict(a.ranks.sets),
        rows={name: asdict(row) for name, row in rows.items()},
    )


def lines(report: CompareReport) -> Iterator[str]:
    """The comparison for a terminal: A, B, a row for each metric, and which is better."""
    for key, one in report.models.items():
        yield f"{key.upper()}: {one['folder']}"
    cells = [list(HEADS), *([name, *shown] for name, shown in _shown(report))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADS))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield sentence(report)
    if report.models["a"]["digest"] == report.models["b"]["digest"]:
        yield "A and B are the same model, byte for byte"


def write_comparison(report: CompareReport, folder: Path) -> None:
    """Writes `report.json`, `metrics.json` and `report.html` beside the reports of both models, `a` and `b`."""
    write_report(report, folder)
    write_text(folder / "report.html", _page(report))


def _require_same_items(a: Measured, b: Measured) -> None:
    if different := sorted(
        name for name in a.ranks.sets.keys() | b.ranks.sets.keys() if a.ranks.sets.get(name) != b.ranks.sets.get(name)
    ):
        raise DataError(
            f"{a.folder} and {b.folder} were measured on other sets: {', '.join(different)}; measure both again"
        )
    for key in a.ranks.ranked.keys() & b.ranks.ranked.keys():
        mine, theirs = a.ranks.ranked[key], b.ranks.ranked[key]
        if mine.queries != theirs.queries or mine.num_items != theirs.num_items:
            odd = sorted(set(mine.queries) ^ set(theirs.queries))
            raise DataError(
                f"set {key[0]}: a picture can be shown to one of {a.folder} and {b.folder} only, so that they are not "
                f"asked the same{f' ({odd[0]})' if odd else ''}; their reports name what was left out"
            )


def _row(name: str, a: Measured, b: Measured, seed: int) -> Row:
    mine, theirs = float(a.metrics[name]), float(b.metrics[name])
    try:
        parts = of_metrics([name], b.ranks, a.ranks)
    except DataError:  # its answers are not kept query by query
        return Row(mine, theirs, round(theirs - mine, 6), None, None, None, None, UNKNOWN)
    found = difference(parts, confidence=CONFIDENCE, seed=seed)
    verdict = B_BETTER if found.low > 0 else A_BETTER if found.high < 0 else EQUAL
    low, high, detectable = (round(value, 6) for value in (found.low, found.high, found.detectable(0.0)))
    detected = detectable if detectable < 1 else None
    return Row(mine, theirs, round(found.value, 6), low, high, detected, found.num_units, verdict)


def _shown(report: CompareReport) -> Iterator[tuple[str, list[str]]]:
    """Metric -> the other cells of its row. Differences are in percentage points."""
    for name, values in report.rows.items():
        row = Row(**values)
        interval, found = _interval(values), ""
        if row.low is not None:
            found = "none is found" if row.detectable is None else f"{100 * row.detectable:.1f}"
        yield name, [row.verdict, percent(row.a), percent(row.b), points(row.difference), interval, found]


def _interval(row: Mapping[str, Any]) -> str:
    """Of a difference, in percentage points; empty if it has none."""
    if row["low"] is None:
        return ""
    anything = row["low"] <= -1 and row["high"] >= 1
    return "any: too few concepts" if anything else f"{points(row['low'])} to {points(row['high'])}"


def _table(report: CompareReport) -> str:
    """All metrics in one table, in the order of the evaluation's page."""
    shown, rows = dict(_shown(report)), []
    for by_set in grouped(shown, report.sets).values():
        for name, of in by_set.items():
            rows += [f"<tr><th colspan={len(HEADS)}>{escape(name)}</th></tr>"] if name else []
            for metric in of:
                key = f"{name}/{metric}" if name else metric
                verdict, *cells = (escape(cell) for cell in shown[key])
                css = "good" if report.rows[key]["verdict"] in (A_BETTER, B_BETTER) else "soft"
                columns = "".join(f"<td>{cell}</td>" for cell in cells)
                first = f'<td title="{escape(key)}">{escape(label(metric))}</td>'
                rows.append(f"<tr>{first}<td class={css}>{verdict}</td>{columns}</tr>")
    heads = "".join(f"<th>{escape(head)}</th>" for head in HEADS)
    return scroll(f"<table class='paper compared'><tr>{heads}</tr>{''.join(rows)}</table>", "table: all metrics")


def sentence(report: CompareReport, b: str = "B") -> str:
    """Which model is better, and by what. `b`: what the second one is called."""
    verdicts = [row["verdict"] for row in report.rows.values() if row["verdict"] != UNKNOWN]
    num_b, num_a = verdicts.count(B_BETTER), verdicts.count(A_BETTER)
    if not verdicts:
        return "No metric was compared query by query."
    better, numbers = ((b, "A"), (num_b, num_a)) if num_b >= num_a else (("A", b), (num_a, num_b))
    verdict = B_BETTER if num_b >= num_a else A_BETTER
    said = f"{better[0]} is better by {numbers[0]} of {len(verdicts)} metrics, {better[1]} by {numbers[1]}; "
    said += f"of two equally good models about {len(verdicts) / 20:.1f} look different."
    if not num_a and not num_b:
        verdict, said = EQUAL, f"A and {b} are not told apart by any of {len(verdicts)} metrics."
    shown = {name: row for name, row in report.rows.items() if row["verdict"] == verdict}
    name, most = max(shown.items(), key=lambda item: abs(item[1]["difference"]))
    found = f"{points(most['difference'])} points (95 % interval {_interval(most)})"
    return f"{said} Most of all by {name}: {b} − A {found}."


def drawing(report: CompareReport, b: str = "B") -> str:
    """Every difference that has an interval, by set, and what the colours say."""
    colours = {B_BETTER: GOOD, A_BETTER: BAD, EQUAL: SOFT}
    by_set: dict[str, list[Interval]] = {}
    for of_heading in grouped(report.rows, report.sets).values():
        for name, metrics in of_heading.items():
            for metric in metrics:
                row = Row(**report.rows[f"{name}/{metric}" if name else metric])
                if row.low is not None and row.high is not None:
                    line = Interval(label(metric), row.difference, row.low, row.high, colours[row.verdict])
                    by_set.setdefault(name, []).append(line)
    if not by_set:
        return ""
    said = f"Green: {b} is better. Red: A is better. Grey: the interval includes zero, so no difference is shown."
    return plot(forest(list(by_set.items()), about=f"{b} − A"), alt="differences, with intervals") + note(said)


def _page(report: CompareReport) -> str:
    blocks = [
        *(
            f"<p><b>{key.upper()}</b>: {escape(one['folder'])} ({link('its own report', f'{key}/report.html')})</p>"
            for key, one in report.models.items()
        ),
        heading("Which is better"),
        drawing(report),
        heading("Difference by metric"),
        paragraph(
            "Both models were asked the same queries. Concepts are drawn, with all their queries (paired bootstrap, "
            "studentised); differences are in percentage points. One model is called better where the interval leaves "
            "zero out. 'Found if at least': a true difference of this size would be found in 80 % of trials with so "
            "many concepts."
        ),
        _table(report),
        heading("Sets"),
        table(["set", "digest"], sorted(report.sets.items())),
    ]  # fmt: skip
    return page("Two models on the same items", sentence(report), blocks, style=STYLE + _STYLE)
