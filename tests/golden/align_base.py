"""Checks kakaobrain/align-base, given as a folder of transformers, against its published figures (align_base.yaml).

    python -m tests.golden.align_base --model align-base --sets sets

It runs the commands that a person would: `align import_model`, then `align evaluate` with a suite of the sets that are
here. A row whose weights or set are missing says what is missing and where to get it. Nothing is downloaded. ImageNet
and COCO take a GPU: on two cores they are days.

Exit codes: 0, every row was measured and agrees; 1, a row differs by more than the tolerance, or a command failed; 2,
no row differs, but some were not measured.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML

from align.cli import main as align
from tests.support import ROOT
from tests.support.params import PARAMS_FILE

TABLE = Path(__file__).with_suffix(".yaml")
AGREES, DIFFERS, NOT_MEASURED = 0, 1, 2
Verdict = Literal["agrees", "differs", "not measured"]


@dataclass(frozen=True)
class Row:
    """A published figure.

    Attributes:
        metric: `SET/METRIC`, as in the report of `align evaluate`.
        published: per cent.
        measured: per cent; None if it was not.
        verdict: what came out.
        why: of a row that was not measured.
    """

    metric: str
    published: float
    measured: float | None
    verdict: Verdict
    why: str = ""

    def line(self):
        """For people."""
        measured = "-" if self.measured is None else f"{self.measured:.1f}"
        return f"{self.metric:36} {self.published:>9.1f} {measured:>9}  {self.verdict}{self.why and ': '}{self.why}"


def read_table(path=TABLE):
    """align_base.yaml."""
    return YAML(typ="safe", pure=True).load(path.read_text("utf-8"))


def lacks(folder, wanted):
    """What a folder lacks, and where to get it; empty if nothing."""
    missing = [names for names in wanted["needs"] if not any((folder / name).exists() for name in names.split(" or "))]
    return f"{', '.join(missing)} missing in {folder}; get it from {wanted['source']}" if missing else ""


def suite_entry(one, sets):
    """A set's entry in a suite, with absolute paths."""
    entry = dict(one["suite"])
    folder = (sets / one["name"]).resolve()
    file = entry.pop("file", None)
    for key in ("images", "classnames"):
        if key in entry:
            entry[key] = str(folder / entry[key])
    return {"name": one["name"], "path": str(folder / file if file else folder)} | entry


def measure(table, model, sets, work):
    """(metric -> share, for the sets that are here; set -> why it was not measured).

    Raises:
        RuntimeError: a command failed; it has said why.
    """
    weights = lacks(model, table["model"])
    reasons = {}
    for one in table["sets"]:
        reasons[one["name"]] = "; ".join(filter(None, (weights, lacks(sets / one["name"], one))))
    here = [one for one in table["sets"] if not reasons[one["name"]]]
    if not here:
        return {}, reasons
    work.mkdir(parents=True, exist_ok=True)
    suite, imported, reports = work / "suite.yaml", work / "imported", work / "report"
    with suite.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump({"sets": [suite_entry(one, sets) for one in here]}, file)
    params = ("--params", str(PARAMS_FILE))
    _run("import_model", *params, "--from", str(model), "--out", str(imported))
    _run("evaluate", *params, "--model", str(imported), "--reports", str(reports), "--set", f"paths.evaluation={suite}",
         "--set", f"store.features={work / 'features'}")  # fmt: skip
    metrics = json.loads((reports / "metrics.json").read_text("utf-8"))
    return metrics, reasons


def _run(*arguments):
    if align(arguments) != 0:
        raise RuntimeError(f"align {arguments[0]} failed")


def compare(table, metrics, reasons):
    """Every row of the table with its verdict."""
    for one in table["sets"]:
        for name, published in one["published"].items():
            metric = f"{one['name']}/{name}"
            if why := reasons[one["name"]]:
                yield Row(metric, published, None, "not measured", why)
            elif metric not in metrics:
                yield Row(metric, published, None, "not measured", "the report of `align evaluate` has no such metric")
            else:
                measured = 100 * metrics[metric]
                near = abs(round(measured, 1) - published) <= table["tolerance"] + 1e-9  # published with one digit
                yield Row(metric, published, measured, "agrees" if near else "differs")


def code(rows):
    """The exit code."""
    verdicts = {row.verdict for row in rows}
    return DIFFERS if "differs" in verdicts else NOT_MEASURED if "not measured" in verdicts else AGREES


def main(arguments=None):
    """Entry point; see the module for what it returns."""
    words = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.golden.align_base", description=words)
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="kakaobrain/align-base")
    parser.add_argument("--sets", type=Path, required=True, metavar="FOLDER", help="the sets, each in its own folder")
    parser.add_argument("--work", type=Path, default=ROOT / ".align/golden", metavar="FOLDER", help="scratch; kept")
    parser.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: align_base.yaml")
    args = parser.parse_args(arguments)
    table = read_table(args.table)
    try:
        metrics, reasons = measure(table, args.model, args.sets, args.work)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return DIFFERS
    rows = list(compare(table, metrics, reasons))
    print(f"{'figure':36} {'published':>9} {'measured':>9}")
    print(*(row.line() for row in rows), sep="\n")
    counts = [
        f"{sum(row.verdict == verdict for row in rows)} {verdict}" for verdict in ("agrees", "differs", "not measured")
    ]
    print(f"{len(rows)} figures within {table['tolerance']} points: {', '.join(counts)}")
    return code(rows)


if __name__ == "__main__":
    sys.exit(main())
