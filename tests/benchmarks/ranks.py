"""Training on all cores: a rank per core, which is the default, against one rank whose threads share the work.

Wall-clock time, since that is what a core more or less changes: run it on a quiet machine.
"""

from __future__ import annotations

import os

from align.config.model import ModelConfig
from align.config.pretrain import PretrainConfig
from align.training.process_group import default_processes
from align.training.run import make_plan
from align.training.run import run as train
from tests.benchmarks.measure import Comparison, compare
from tests.benchmarks.world import World

NUM_STEPS = 16
REPETITIONS = 3


def run(world: World) -> list[Comparison]:
    config = world.params.section(ModelConfig)
    recipe = world.params.section(PretrainConfig)
    cores = len(os.sched_getaffinity(0))
    ranks = default_processes(recipe.batch_size, config.batch_norm_group)
    seconds: dict[int, list[float]] = {ranks: [], 1: []}
    if ranks == 1:
        return []
    for repetition in range(REPETITIONS):
        for num_processes in (ranks, 1) if repetition % 2 else (1, ranks):
            values = {
                "num_steps": NUM_STEPS, "warmup_steps": 1, "num_processes": num_processes, "seed": repetition,
                "num_threads": cores // num_processes,
            }  # fmt: skip
            plan = make_plan(
                recipe.model_copy(update=values), config, initial=None, shards=world.shards, tokenizer=world.tokenizer,
                checkpoints=world.root / f"ranks-{num_processes}",
            )  # fmt: skip
            seconds[num_processes].append(NUM_STEPS * recipe.batch_size / train(plan).pairs_per_s)
    return [
        compare(
            f"training on {cores} cores, {ranks} ranks", f"1 rank of {cores} threads", "pairs / s",
            items=NUM_STEPS * recipe.batch_size, ours_s=seconds[ranks], theirs_s=seconds[1], note="wall-clock time",
        )
    ]  # fmt: skip
