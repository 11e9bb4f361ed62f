"""The summary that a run prints at its end. Every number is read from the reports; none is computed here."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.display.report import reported
from align.display.shares import percent
from align.release.registration.shown import headline, metrics_of
from flows.checkout.run_branch import Recorded
from flows.pages.index import index_file
from flows.run.context import RunContext, StageOutcome

#: Examples shown from the index's report: this many labelled queries, with this many images each.
NUM_EXAMPLES, NUM_HITS = 3, 3

HERE = """\
Look around:
{activate}  make up                                    Prefect and MLflow in the browser; make down stops them
  open {index}                    all pages: figures, pictures, what was dropped
  align search "{query}" --html hits.html
  align compare {name} .                     after your next change
  dvc plots show                             training curves"""

ELSEWHERE = """\
Look around:
  align compare {name} .                     compared with this checkout
  rm -f dvc.lock && git switch run/{name} && dvc checkout
                                             its data, model and reports; git does not track dvc.lock here"""


def summarise(
    run: RunContext, outcomes: Sequence[StageOutcome], recorded: Recorded, registered: str, told: Sequence[str] = ()
) -> str:
    """The summary of a run as text for a terminal. `told`, warnings and what a promotion would say, is its end."""
    folders = {stage.name: run.root / stage.report for stage in run.chosen.stages}
    metrics = metrics_of(folders.values())
    ran = [outcome.stage for outcome in outcomes if outcome.ran]
    how = "recorded as" if recorded.is_new else "the same result as"
    parts = [
        f"Run '{run.name}', {how} branch run/{recorded.name} ({recorded.commit[:10]}): {len(ran)} stages ran"
        f"{' (' + ', '.join(ran) + ')' if ran else ''}, {len(outcomes) - len(ran)} came from the cache.",
        _pairs(metrics),
        _retrieval(metrics),
        _zero_shot(metrics),
        f"Registered: {registered}",
        _examples(folders.get("index")),
        _look(folders, run, recorded.name),
        "\n".join(told),
    ]
    return "\n\n".join(part for part in parts if part)


def result(run: RunContext, recorded: Recorded, said: Sequence[str]) -> str:
    """What a run has come to, in a line: its branch, two figures that promotion looks at, and what else was said."""
    metrics = metrics_of(run.root / stage.report for stage in run.chosen.stages)
    shown = [name for name in headline(run.params.values) if name in metrics][:2]
    return "; ".join([f"run/{recorded.name}", *(f"{name} {percent(metrics[name])}" for name in shown), *said])


def _look(folders: Mapping[str, Path], run: RunContext, name: str) -> str:
    name = shlex.quote(name)
    if run.root != run.checkout or "evaluate" not in folders:  # else its files can be opened here
        return ELSEWHERE.format(name=name)
    query = next((query["query"] for query in _queries(folders.get("index"))), "your words")
    index = index_file(run).relative_to(run.root)
    return HERE.format(name=name, index=index, query=query, activate=_activate(run.root))


def _activate(root: Path) -> str:
    """The line that makes `align` known to the shell; empty if the environment is active, or there is none."""
    environment = Path(sys.prefix)
    if sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return ""
    script = environment / "bin" / "activate"
    shown = shlex.quote(str(script.relative_to(root) if script.is_relative_to(root) else script))
    return f"  {f'. {shown}':<42} first: the environment with align and dvc\n"


def _pairs(metrics: Mapping[str, float]) -> str:
    if "ingest/num_pairs" not in metrics or "filter/num_kept" not in metrics:
        return ""
    total, kept = int(metrics["ingest/num_pairs"]), int(metrics["filter/num_kept"])
    prefix = "filter/dropped/"
    dropped = {key.removeprefix(prefix): int(value) for key, value in metrics.items() if key.startswith(prefix)}
    rows = [(reason, number) for reason, number in dropped.items() if number]
    lines = [f"Pairs: {total:,} in, {kept:,} kept ({percent(kept / max(total, 1))}); dropped, by first matching rule:"]
    return "\n".join(lines + [f"  {number:>7,}  {reason}" for reason, number in sorted(rows, key=lambda row: -row[1])])


def _retrieval(metrics: Mapping[str, float]) -> str:
    lines = [f"{'Retrieval, fine-tuned (chance):':<32}" + "".join(f"{f'recall@{k}':>17}" for k in (1, 5, 10))]
    rows = [name.removesuffix("/recall@1") for name in metrics if name.endswith("_to_text/recall@1")]
    rows += [name.removesuffix("/recall@1") for name in metrics if name.endswith("_to_image/recall@1")]
    for row in sorted(row for row in rows if f"{row}/recall@1/chance" in metrics):
        names = [f"{row}/recall@{k}" for k in (1, 5, 10)]
        cells = [f"{percent(metrics[name]):>6} ({percent(metrics[f'{name}/chance'])})" for name in names]
        lines.append(f"  {row:<30}" + "".join(f"{cell:>17}" for cell in cells))
    return "\n".join(lines) if len(lines) > 1 else ""


def _zero_shot(metrics: Mapping[str, float]) -> str:
    lines = []
    for key, value in metrics.items():
        if key.endswith("/zero_shot/accuracy"):
            chance, majority = metrics[f"{key}/chance"], metrics[f"{key}/majority"]
            name = key.removesuffix("/zero_shot/accuracy")
            by_luck = f"chance {percent(chance)}, majority rate {percent(majority)}"
            lines.append(f"Zero-shot accuracy ({name}): {percent(value)}; {by_luck}")
    return "\n".join(lines)


def _queries(folder: Path | None) -> list[dict[str, Any]]:
    """The labelled queries in the index's report; a project of one's own may have none."""
    return reported(folder).get("queries", []) if folder else []


def _examples(folder: Path | None) -> str:
    lines = []
    for query in _queries(folder)[:NUM_EXAMPLES]:
        lines.append(f'  align search "{query["query"]}"')
        for hit in query["found"][:NUM_HITS]:
            mark = "right" if hit["right"] else "     "
            lines.append(f"    {hit['score']:.2f}  {mark}  {' | '.join(hit['texts'])[:80]}")
    return "\n".join(["Searches:", *lines]) if lines else ""
