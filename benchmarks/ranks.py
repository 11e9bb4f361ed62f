"""Training on all cores: a rank per core, which is the default, against one rank, and how long ranks wait for data.

Wall-clock time, since that is what a core more or less changes: run it on a quiet machine. `weak scaling` gives each
rank the same share; twice the pairs in the same time would be 2.0 on two cores, less what cores take from each other.

The loader's wait is that of the leading rank in a real run, from the first batch on: every picture is read from shards
of 346 px and decoded when its turn comes, since the run ends before any comes again.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

from align.config.model import ModelConfig
from align.config.recipe import PretrainConfig
from align.display.console import say
from align.training.loop import Monitoring
from align.training.ranks.process_group import default_processes
from align.training.run import run as train
from align.training.run_plan import TrainingInputs, make_plan
from benchmarks.measure import Comparison, compare
from benchmarks.train_loader import CROP_PX, RESIZE_PX, paper_shards
from benchmarks.world import World

NUM_STEPS = 12
REPETITIONS = 2
#: Pictures to, crop, batch, pictures of 346 px, each shown once.
FROM_SHARDS = ((72, 64, 256, 3072), (RESIZE_PX, CROP_PX, 64, 640))


def run(world: World) -> list[Comparison]:
    recipe = world.params.section(PretrainConfig)
    cores = len(os.sched_getaffinity(0))
    ranks = default_processes(recipe.batch_size, world.params.section(ModelConfig).batch_norm_group, cores)
    if ranks == 1:
        return []
    share = recipe.batch_size // ranks
    #: ranks, threads of each, batch
    ways = {"ranks": (ranks, 1, recipe.batch_size), "threads": (1, cores, recipe.batch_size), "one": (1, 1, share)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repetition in range(REPETITIONS):
        for way in list(ways)[:: 1 if repetition % 2 else -1]:
            num_processes, num_threads, batch_size = ways[way]
            values = {
                "num_steps": NUM_STEPS, "warmup_steps": 1, "num_processes": num_processes, "seed": repetition,
                "num_threads": num_threads, "batch_size": batch_size, "validate_every_steps": NUM_STEPS,
            }  # fmt: skip
            seconds[way].append(NUM_STEPS * batch_size / _pairs_per_s(world, way, values))
    theirs = [ranks * second for second in seconds["one"]]  # for as many pairs
    return [
        compare(
            f"training on {cores} cores, {ranks} ranks", f"1 rank of {cores} threads", "pairs / s",
            items=NUM_STEPS * recipe.batch_size, ours_s=seconds["ranks"], theirs_s=seconds["threads"],
            note="wall-clock time",
        ),
        compare(
            f"training, {ranks} gloo ranks, {share} pairs each", f"1 rank, {share} pairs (weak scaling)", "pairs / s",
            items=NUM_STEPS * recipe.batch_size, ours_s=seconds["ranks"], theirs_s=theirs, note="wall-clock time",
        ),
        *(_wait(world, ranks, *sizes) for sizes in FROM_SHARDS),
    ]  # fmt: skip


def _pairs_per_s(world: World, name: str, values: dict[str, int]) -> float:
    plan = make_plan(
        world.params.section(PretrainConfig).model_copy(update=values), world.params.section(ModelConfig),
        TrainingInputs(world.shards, world.tokenizer), world.root / f"ranks-{name}",
    )  # fmt: skip
    trained = train(plan)
    assert trained is not None
    return trained.pairs_per_s


def _wait(world: World, ranks: int, resize_px: int, crop_px: int, batch_size: int, num_images: int) -> Comparison:
    say(f"benchmark: the loader's wait, {resize_px} -> {crop_px} px")
    shards = Path(paper_shards(world, num_images).manifest).parent
    notes, num_steps = world.root / f"waits-{crop_px}", num_images // batch_size
    values = {
        "num_steps": num_steps, "warmup_steps": 1, "num_processes": ranks, "num_threads": 1, "batch_size": batch_size,
        "log_every_steps": num_steps, "validate_every_steps": num_steps, "checkpoint_every_steps": num_steps,
    }  # fmt: skip
    plan = make_plan(
        world.params.section(PretrainConfig).model_copy(update=values),
        world.params.section(ModelConfig).model_copy(update={"resize_px": resize_px, "image_px": crop_px}),
        TrainingInputs(shards, world.tokenizer), world.root / f"waits-of-{crop_px}",
        monitoring=Monitoring(functools.partial(_note, notes)),
    )  # fmt: skip
    trained = train(plan)
    assert trained is not None
    share = json.loads(notes.read_text().splitlines()[-1])["train/loader_wait_share"]
    spent = num_images / trained.pairs_per_s
    return compare(
        f"training from {RESIZE_PX} px shards, {resize_px} -> {crop_px} px, demo's towers, {ranks} ranks",
        "the same, had it never waited for its loader", "pairs / s", items=num_images, ours_s=[spent],
        theirs_s=[spent * (1 - share)],
        note=f"wall-clock time; waits {100 * share:.1f} % of it, the first batch included; {num_steps} steps",
    )  # fmt: skip


def _note(path: Path, metrics: dict[str, float], step: int) -> None:
    with path.open("a") as file:
        file.write(json.dumps(metrics) + "\n")
