"""What checkpoints cost while training goes well, and what they save when it does not.

The stall is how long a step is kept waiting for the copy of the state, or for the checkpoint before to be on disk; the
file itself is written in a thread. Coming back is a run of all cores' ranks that is killed (SIGKILL, all processes at
once) some steps after a checkpoint and started again: processes, imports, reading, and the lost steps once more.
Wall-clock time throughout: run it on a quiet machine.
"""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from align.config.model import ModelConfig
from align.display.console import say
from align.durable.checkpoint import CheckpointFolder
from align.training.batches.samples import SampleSources
from align.training.loop import Monitoring, train
from align.training.ranks.process_group import Ranks
from align.training.run import run as run_plan
from align.training.run_plan import TrainingInputs, TrainingPlan, make_plan
from align.training.state import new_state
from benchmarks.measure import Comparison, compare
from benchmarks.presets import PRESETS, preset, recipe
from benchmarks.training import BATCH_SIZE
from benchmarks.world import World

#: Of the row on stalls; every other step saves.
STALL_STEPS, SAVE_EVERY = 9, 2
#: Killed after this step, with the checkpoint of that one before it.
KILLED_AFTER, SAVED_AT = 20, 16


def run(world: World) -> list[Comparison]:
    return [*(_stall(world, name) for name in PRESETS), _comeback(world)]


class _Timed(CheckpointFolder):
    """Notes how long each save keeps its caller."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, keep=2)
        self.kept_s: list[float] = []

    def save(self, step: int, values: dict[str, Any], *, best: bool = False) -> None:
        start = time.monotonic()
        super().save(step, values, best=best)
        self.kept_s.append(time.monotonic() - start)


def _stall(world: World, name: str) -> Comparison:
    say(f"benchmark: the stall of a checkpoint, {name}")
    some, ends = preset(world, name), [time.monotonic()]
    how = recipe(world, num_steps=STALL_STEPS, batch_size=BATCH_SIZE, checkpoint_every_steps=SAVE_EVERY)
    folder = _Timed(world.root / f"stalls-{name}")

    def log(_: dict[str, float], step: int) -> None:
        ends.append(time.monotonic())

    train(
        new_state(some.model(), how), how, Ranks(0, 1, torch.device("cpu")),
        samples=SampleSources(some.samples), tokenizer=some.tokenizer, folder=folder, monitoring=Monitoring(log),
    )  # fmt: skip
    # the last step ends with more than a save, and the save after step s lies between the ends of s and s + 1
    steps = [after - before for before, after in itertools.pairwise(ends[1:-1])]
    plain, saving = steps[0::2], steps[1::2]
    step_s, kept_s = statistics.median(plain), statistics.median(folder.kept_s[:-1])
    [path] = folder.directory.glob(f"step-*{STALL_STEPS}.pt")
    return compare(
        f"training step, {name}, batch {BATCH_SIZE}, with a checkpoint", "the same without", "pairs / s",
        items=BATCH_SIZE, ours_s=[step_s + kept_s], theirs_s=[step_s],
        note=f"wall-clock time; stalls {1e3 * kept_s:.0f} ms, {100 * kept_s / step_s:.1f} % of a step, for "
        f"{path.stat().st_size >> 20:,} MiB; while it is written the step takes "
        f"{statistics.median(saving) / step_s:.2f} times as long",
    )  # fmt: skip


def _comeback(world: World) -> Comparison:
    say("benchmark: coming back after a kill")
    notes = world.root / "steps.jsonl"
    plan = make_plan(
        recipe(world, num_steps=10 * KILLED_AFTER, checkpoint_every_steps=SAVED_AT),
        world.params.section(ModelConfig), TrainingInputs(world.shards, world.tokenizer), world.root / "killed",
        monitoring=Monitoring(functools.partial(_note, notes)),
    )  # fmt: skip
    first, second = _until_killed(plan, notes), _until_killed(plan, notes)
    assert (min(first), min(second)) == (1, SAVED_AT + 1)
    step_s = statistics.median(
        times[step + 1] - times[step] for times in (first, second) for step in times if step + 1 in times
    )
    scratch_s, back_s = first[KILLED_AFTER], second[KILLED_AFTER]
    start_s = second[SAVED_AT + 1] - step_s
    return compare(
        f"back to step {KILLED_AFTER} after a kill, {KILLED_AFTER - SAVED_AT} steps after a checkpoint",
        "from the start", "pairs / s", items=KILLED_AFTER * plan.recipe.batch_size, ours_s=[back_s],
        theirs_s=[scratch_s],
        note=f"wall-clock time; {back_s:.1f} against {scratch_s:.1f} s: {start_s:.1f} s until the first step, then "
        f"{KILLED_AFTER - SAVED_AT} steps of {step_s:.2f} s; the first run's start took {first[1] - step_s:.1f} s",
    )  # fmt: skip


def _until_killed(plan: TrainingPlan, notes: Path) -> dict[int, float]:
    """Step -> seconds from the start of the process to its end; all processes are killed after KILLED_AFTER."""
    notes.write_text("")
    start = time.time()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(plan,))
    process.start()
    try:
        while str(KILLED_AFTER) not in (times := _read(notes)):
            if not process.is_alive():
                raise RuntimeError(f"training ended with {process.exitcode} before it was killed")
            time.sleep(0.05)
    finally:
        whole = psutil.Process(process.pid) if process.is_alive() else None
        # the launcher first: it would start a rank again that it sees end
        processes = [whole, *whole.children(recursive=True)] if whole else []
        for one in processes:
            one.kill()
        psutil.wait_procs(processes[1:])  # until then they hold the lock
        process.join()
    return {int(step): at - start for step, at in times.items()}


def _read(notes: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in notes.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            found |= json.loads(line)
    return found


def _run(plan: TrainingPlan) -> None:
    run_plan(plan)


def _note(path: Path, _: dict[str, float], step: int) -> None:
    with path.open("a") as file:
        file.write(json.dumps({step: time.time()}) + "\n")
