"""What the runs of a study found: a figure of each run, the arms against the base, a page of one table and one plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from align.config.paths import PathsConfig
from align.config.study import Arm, Study
from align.display import html
from align.display.figure import BAD, GOOD, SOFT, Interval, forest
from align.durable.files import to_json, write_text
from align.errors import AlignError
from align.lineage.runs.run import read_run
from align.lineage.versions.data_versions import DataVersions
from align.statistics.dunnett import Comparison, Difference, against_base, reading
from align.statistics.paired import set_of

_COLUMNS = ("arm", "runs", "primary, %", "minus base, points", "95 %, all arms together", "verdict", "the paper")
_COLOURS = {"better": GOOD, "worse": BAD}


@dataclass(frozen=True)
class Run:
    """A run of a study that has ended.

    Attributes:
        name: of its branch, without `run/`.
        metrics: by their flat names.
        sets: evaluation set -> digest of its items.
    """

    name: str
    metrics: Mapping[str, float]
    sets: Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """What is known of a study.

    Attributes:
        runs: (arm, seed) -> its run.
        missing: (arm, seed) -> why there is none.
        figures: (arm, seed) -> the primary figure.
        comparison: of the arms with the base.
    """

    runs: Mapping[tuple[str, int], Run]
    missing: Mapping[tuple[str, int], str]
    figures: Mapping[tuple[str, int], float]
    comparison: Comparison


def read_runs(
    study: Study, names: Mapping[tuple[str, int], str], missing: Mapping[tuple[str, int], str], root: Path,
    paths: PathsConfig, scratch: Path,
) -> Found:  # fmt: skip
    """Reads the runs that have ended, from git and DVC's cache.

    A run without a primary metric, or that measured it on other items than the base, is one that is missing.

    Args:
        study: the study.
        names: (arm, seed) -> the branch of its run, without `run/`.
        missing: (arm, seed) -> why there is no run.
        root: the checkout.
        paths: where stages write.
        scratch: a folder for what comes from remotes.
    """
    versions = DataVersions(root, scratch)
    missing, runs, figures = dict(missing), dict[tuple[str, int], Run](), dict[tuple[str, int], float]()
    needed = {set_of(metric) for metric in study.primary}
    expected: dict[str, str] = {}
    for cell in [(arm.name, seed) for arm in study.arms for seed in study.seeds if (arm.name, seed) in names]:
        try:
            read = read_run(f"run/{names[cell]}", root, paths, versions)
        except AlignError as error:
            missing[cell] = str(error)
            continue
        sets = {name[4:]: digest for name, digest in read.digests.items() if name.startswith("set/")}
        runs[cell] = Run(names[cell], read.metrics, sets)
        expected = expected or sets
        if absent := [metric for metric in study.primary if metric not in read.metrics]:
            missing[cell] = f"its evaluation has no {absent[0]}"
        elif other := sorted(name for name in needed if sets.get(name) != expected.get(name)):
            missing[cell] = f"its set {other[0]} has other items than that of {study.arms[0].name}"
        else:
            figures[cell] = mean(read.metrics[metric] for metric in study.primary)
    return Found(runs, missing, figures, against_base(figures, study.arms[0].name))


def rows(study: Study, found: Found) -> Iterator[tuple[str, ...]]:
    """The table: a row for each arm, as the page and Prefect show it, under `columns`."""
    for arm in study.arms:
        number = sum((arm.name, seed) in found.figures for seed in study.seeds)
        value = found.comparison.means.get(arm.name)
        difference = found.comparison.differences.get(arm.name)
        interval = verdict = minus = ""
        if difference is not None:
            minus = f"{100 * difference.value:+.1f}"
            if difference.low is not None and difference.high is not None:
                interval = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
            verdict = difference.verdict or ""
        paper = [arm.paper, reading(difference.verdict if difference else None, arm.expected)]
        also = [_mean(arm, metric, study, found) for metric in study.also]
        shown = "-" if value is None else f"{100 * value:.1f}"
        runs = f"{number} of {len(study.seeds)}"
        yield arm.name, runs, shown, minus, interval, verdict, ": ".join(filter(None, paper)), *also


def columns(study: Study) -> tuple[str, ...]:
    """The head of `rows`."""
    return *_COLUMNS, *(f"{metric}, %" for metric in study.also)


def _mean(arm: Arm, metric: str, study: Study, found: Found) -> str:
    """The mean over the arm's runs; with `*` if their set has other items than that of the base's first run."""
    cells = [run for (name, _), run in found.runs.items() if name == arm.name and metric in run.metrics]
    first = next(iter(found.runs.values()), None)
    same = all(first and run.sets.get(set_of(metric)) == first.sets.get(set_of(metric)) for run in cells)
    return f"{100 * mean(run.metrics[metric] for run in cells):.1f}{'' if same else '*'}" if cells else "-"


def notes(study: Study, found: Found) -> Iterator[str]:
    """Sentences under the table: what the figure is, how runs differ, which runs are missing."""
    how = found.comparison
    yield f"The primary figure, named before any run: the mean of {' and '.join(study.primary)}."
    if how.deviation is None or how.critical is None:
        yield "There is no verdict: it takes two seeds or more to tell how much equal runs differ."
    else:
        yield (
            f"Model: arm + seed; a run deviates by {100 * how.deviation:.2f} points ({how.freedom} degrees of "
            f"freedom), Dunnett's critical value is {how.critical:.2f}. An interval that holds 0 does not tell the arm "
            f"from {study.arms[0].name}."
        )
    if any(cell.endswith("*") for row in rows(study, found) for cell in row[len(_COLUMNS) :]):
        yield "* on other items than the base's: not to be compared with it."
    for (arm, seed), why in found.missing.items():
        yield f"Without {arm}, seed {seed}: {why}"


def page(study: Study, found: Found) -> str:
    """One page: the question, the plot, the table, the notes."""
    base, *others = (arm.name for arm in study.arms)
    known = {base: Difference(0.0)} | {arm: found.comparison.differences.get(arm) for arm in others}
    drawn = [
        Interval(
            arm, one.value, one.value if one.low is None else one.low, one.value if one.high is None else one.high,
            _COLOURS.get(one.verdict or "", SOFT),
        )
        for arm, one in known.items() if one is not None
    ]  # fmt: skip
    figure = forest([("", drawn)], about=f"arm minus {base}")
    blocks = [
        html.plot(figure, alt=f"each arm minus {base}, with its 95 % interval"),
        html.table(columns(study), rows(study, found)),
        *(html.note(note) for note in notes(study, found)),
    ]
    return html.page(f"Study: {study.name}", study.question, blocks)


def write(study: Study, found: Found, folder: Path) -> None:
    """Writes `report.html` and, for programs, `report.json`."""
    cells: list[dict[str, Any]] = [
        {"arm": arm.name, "seed": seed, "figure": found.figures.get(cell), "run": run and run.name,
         "missing": found.missing.get(cell), "metrics": run and dict(run.metrics)}
        for arm, seed in study.cells()
        for cell in [(arm.name, seed)]
        for run in [found.runs.get(cell)]
    ]  # fmt: skip
    compared = asdict(found.comparison)
    for arm, one in found.comparison.differences.items():
        compared["differences"][arm]["verdict"] = one.verdict
    write_text(folder / "report.html", page(study, found))
    values = {"schema_version": 1, "study": study.model_dump(mode="json", by_alias=True), "runs": cells, **compared}
    write_text(folder / "report.json", to_json(values))
