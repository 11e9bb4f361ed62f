"""What a run would do, and what it would need: the first artifact of every run, and what `align plan` prints.

Nothing here is computed twice: states are DVC's (`flows.states`), rows are those of the reports, and speeds were
measured by earlier runs of this checkout. For `align plan` another program counts the memory that training needs
(`align.pipeline.estimate`). It says "unknown" for what was never measured.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

import align
import flows
from align.config import Params
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.model import ModelConfig
from align.config.release import lower_bar
from align.display.console import say, show, show_json
from align.display.visible import markdown_table, plain_markdown
from align.durable.locks import locked
from align.errors import DataError
from align.pipeline.estimate import REFUSED
from flows.checkout.worktree import commit_of, worktree
from flows.dag import overlap
from flows.request import Request, settled
from flows.run.context import STATE, RunContext, child_environment
from flows.run.supervised import CommandError, run_supervised
from flows.speeds import TRAINING, UNKNOWN, expected_time
from flows.states import SHOWN, StageState, read_states


class Plan(BaseModel):
    """A plan.

    Attributes:
        name: of the run.
        stages: that the run is asked for, as DVC sees them.
        before: stages that they read from and that are not run.
        figures: words -> what is expected; `unknown` where nobody has measured it.
        warnings: what may go wrong.
        refused: what cannot work: the run ends before it costs anything.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    stages: tuple[StageState, ...]
    before: tuple[StageState, ...]
    figures: dict[str, str]
    warnings: tuple[str, ...]
    refused: tuple[str, ...]

    def require_possible(self) -> None:
        """Raises DataError if the run cannot work; the message has the first reason, and the number of others."""
        if self.refused:
            first, *others = self.refused
            raise DataError(first + (f" ({len(others)} more: see the plan)" if others else ""))

    def text(self) -> str:
        """For a terminal."""
        width = max(len(one.stage) for one in (*self.before, *self.stages))
        lines = [f"  {one.stage:<{width}}  {one.state:<9}  {'; '.join(one.why)}".rstrip() for one in self.stages]
        if self.before:
            lines.insert(0, f"  before: {', '.join(f'{one.stage} ({one.state})' for one in self.before)}")
        wide = max(map(len, self.figures), default=0)
        lines += ["", *(f"  {words:<{wide}}  {value}" for words, value in self.figures.items())]
        lines += ["", *(f"  careful: {line}" for line in self.warnings)] if self.warnings else []
        lines += ["", *(f"  cannot work: {line}" for line in self.refused)] if self.refused else []
        num_stale = sum(one.state == "stale" for one in self.stages)
        return "\n".join([f"Plan of run '{self.name}': {num_stale} of {len(self.stages)} stages are stale", *lines])

    def markdown(self) -> str:
        """For the run's page."""
        parts = [f"* **Cannot work**: {plain_markdown(line)}" for line in self.refused]
        parts += [f"* Careful: {plain_markdown(line)}" for line in self.warnings]
        stages = ["| stage | | why |", "|---|---|---|"]
        for one in (*self.before, *self.stages):
            state = f"**{one.state}**" if one.state == "stale" else one.state
            stages.append(f"| {one.stage} | {state} | {plain_markdown('; '.join(one.why))} |")
        figures = [markdown_table(("", ""), self.figures.items())]
        return "\n\n".join("\n".join(block) for block in (parts, stages, figures) if block)


def make_plan(run: RunContext, states: Mapping[str, StageState], *, counts_memory: bool = False) -> Plan:
    """The plan of a run that is about to begin. What training needs is only counted if asked: it takes seconds."""
    asked = [states[stage.name] for stage in run.chosen.asked]
    before = [states[stage.name] for stage in run.chosen.before]
    params = run.params
    runs = {one.stage for one in asked if one.state == "stale"}
    here = runs if params.values.get("cluster", {}).get("training_pool") is None else runs.difference(TRAINING)
    counts = here.intersection(TRAINING) and (counts_memory or _is_given(params))
    needs, wrong = _needs(run) if counts else ({}, None)
    metrics = {key: value for one in states.values() for key, value in one.metrics.items()}
    figures = {"source": str(params.values["paths"].get("archive"))} | _rows(metrics, runs)
    for stage in TRAINING:
        if stage in runs:
            figures |= _training(stage, params, metrics, needs.get(stage) if stage in here else None)
    figures["time"] = expected_time(run, runs)
    needed, unknown = _disk(asked, needs)
    free = shutil.disk_usage(run.checkout).free
    figures["disk"] = f"{_bytes(needed)} needed{f' and {unknown}' if unknown else ''}, {_bytes(free)} free"
    refused = _stale_before(asked, before) or _missing(run, asked)
    if wrong and "pretrain" in here:  # fine-tuning has the towers of its folder
        refused.append(wrong)
    if needed > free:
        refused.append(f"{run.checkout}: {_bytes(free)} are free, and the run needs {_bytes(needed)}: free some space")
    warnings = [
        f"{stage}: a rank needs about {_bytes(need['rank_bytes'])}, and {need['device']} has "
        f"{_bytes(need['available_bytes'])} for it; lower {stage}.micro_batch, or use more ranks"
        for stage, need in needs.items()
        if stage in here and need["rank_bytes"] > need["available_bytes"]
    ]
    warnings += _bar(params, metrics)
    if elsewhere := sorted(runs - here):
        figures["elsewhere"] = f"{', '.join(elsewhere)} in work pool {params.values['cluster']['training_pool']}"
    return Plan(
        name=run.name, stages=tuple(asked), before=tuple(before), figures=figures, warnings=tuple(warnings),
        refused=tuple(refused),
    )  # fmt: skip


def _stale_before(asked: Sequence[StageState], before: Sequence[StageState]) -> list[str]:
    """A part of the pipeline never makes what it reads."""
    stale = [one for one in before if one.state == "stale"]
    if not stale:
        return []
    first, names = stale[0], ", ".join(one.stage for one in stale)
    return [
        f"{names} must run before {asked[0].stage}: {first.stage} is stale ({'; '.join(first.why)}); run all, or from "
        f"{first.stage}"
    ]


def _missing(run: RunContext, asked: Sequence[StageState]) -> list[str]:
    found = []
    for name, path in [(one.stage, path) for one in asked for path in one.missing]:
        maker = next((stage.name for stage in run.chosen.before if overlap([path], stage.outs)), None)
        what_to_do = ", and no stage makes it: put it there, or name another in params.yaml"
        if maker:
            what_to_do = f": `dvc checkout {maker}` brings it back, or `dvc pull {maker}` from a remote"
        found.append(f"{name}: {path} does not exist{what_to_do}")
    return found


def _bar(params: Params, metrics: Mapping[str, float]) -> list[str]:
    """Whether the first promotion asks for a recall that few models reach, among so few test pictures."""
    evaluate, promote = params.values.get("evaluate", {}), params.values.get("promote", {})
    num = min(metrics.get("shard/test/num_images", 0), evaluate.get("max_test_images", 0))
    cuts = [re.fullmatch(r"test/.+/recall@(\d+)", metric) for metric in promote.get("metrics", ())]
    bar = max((promote["min_times_chance"] * min(int(cut[1]) / num, 1) for cut in cuts if cut and num), default=0)
    times = f"{promote.get('min_times_chance', 0):g}"
    of = f"{num:,.0f} test pictures a first promotion needs a lower bound of {bar:.0%}, {times} times chance"
    return [f"among {of}; {lower_bar(f'below {times}')}"] if bar > 0.5 else []


def _is_given(params: Params) -> bool:
    """Whether towers or a tokenizer come from elsewhere, which training may refuse."""
    recipe = params.values["pretrain"]
    weights = recipe["image_weights"] or recipe["text_weights"]
    return bool(weights or params.section(ModelConfig).libraries or params.section(FitTokenizerConfig).given)


def _needs(run: RunContext) -> tuple[dict[str, dict[str, Any]], str | None]:
    """What the training stages need, empty if that cannot be told; and what pre-training would refuse of its towers."""
    # not the program of the same name of a worktree of another revision
    ours = dict.fromkeys(str(Path(str(package.__file__)).parents[1]) for package in (flows, align))
    env = child_environment(run) | {"PYTHONPATH": os.pathsep.join(ours)}
    command = [sys.executable, "-P", "-m", "align.pipeline.estimate"]
    try:
        answer = run_supervised(command, cwd=run.root, env=env, log=lambda line: None)[-1]
        found: dict[str, dict[str, Any]] = json.loads(answer)
    except (CommandError, ValueError):
        return {}, None
    wrong: Any = found.pop(REFUSED, None)
    return found, wrong


def _rows(metrics: dict[str, float], runs: set[str]) -> dict[str, str]:
    """Pairs in and kept, of the stages that need not run."""
    found = {"pairs": "ingest/num_pairs", "pairs kept": "filter/num_kept", "pairs to train on": "shard/train/num_pairs"}
    made_by = {words: key.partition("/")[0] for words, key in found.items()}
    return {
        words: f"{int(metrics[key]):,}" if key in metrics else f"{UNKNOWN} until {made_by[words]} has run"
        for words, key in found.items()
        if key in metrics or made_by[words] in runs
    }


def _training(stage: str, params: Params, metrics: dict[str, float], need: dict[str, Any] | None) -> dict[str, str]:
    recipe = params.values[stage]
    seen = recipe["num_steps"] * recipe["batch_size"]
    images = metrics.get("shard/train/num_images")
    epochs = f", {seen / images:,.1f} times each of {int(images):,} images" if images else ""
    figures = {stage: f"{recipe['num_steps']:,} steps of {recipe['batch_size']:,}: {seen:,} pairs{epochs}"}
    if need is None:
        return figures
    limit = params.values["fit_tokenizer"]["vocab_size"]  # which the model is counted with
    most = "" if metrics.get("fit_tokenizer/vocab_size") == limit else "at most "
    return figures | {
        f"{stage}, model": f"{most}{need['num_parameters'] / 1e6:.2f} M parameters",
        f"{stage}, memory": f"about {_bytes(need['rank_bytes'])} for each of {need['num_ranks']} ranks (weights and "
        f"moments {_bytes(need['state_bytes'])}, {need['pairs_at_a_time']:,} pairs at a time of "
        f"{_bytes(need['activation_bytes_per_pair'])}); {need['device']} has {_bytes(need['available_bytes'])} for it",
    }


def _disk(asked: Sequence[StageState], needs: dict[str, dict[str, Any]]) -> tuple[int, str]:
    """Bytes that outs and checkpoints will take, and words for what is not known."""
    running = [one for one in asked if one.state == "stale"]
    checkpoints = [needs[one.stage]["kept_bytes"] for one in running if one.stage in needs]
    unknown = [one.stage for one in running if one.num_bytes is None]
    total = sum(one.num_bytes or 0 for one in running) + sum(checkpoints)
    who = ", ".join(unknown) if len(unknown) <= SHOWN else f"{len(unknown)} stages"
    return total, f"what {who} will write ({UNKNOWN})" if unknown else ""


def _bytes(number: float) -> str:
    """`1.5 GB`, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


@contextmanager
def _checkout(root: Path, request: Request) -> Iterator[Path]:
    """Where the run would work: the checkout itself, or a worktree, which is removed again."""
    if request.in_place:
        yield root
        return
    commit, _ = commit_of(root, request)
    key = f"plan-{os.getpid()}"
    with (  # the lock tells `flows.checkout.worktree` that somebody works there
        locked(root / STATE / "locks" / key, "align plan", say),
        worktree(root, commit, root / STATE / "worktrees" / key, request.overrides) as path,
    ):
        yield path


def main(argv: Sequence[str]) -> int:
    """The program that `align plan` becomes; takes a request as JSON. Returns 0, also if the run cannot work."""
    root = Path.cwd()
    request = settled(root, Request.model_validate_json(argv[0]))
    with _checkout(root, request) as path:
        run = RunContext(root=path, checkout=root, name=request.name or "").with_stages(request)
        plan = make_plan(run, read_states(run), counts_memory=True)
    if "--json" in argv:
        show_json(plan.model_dump_json(indent=2))
    else:
        show(*plan.text().split("\n"))
    return 0
