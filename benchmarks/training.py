"""The whole training step against the bare forward and backward of the same towers on the same batches, in memory.

Both run in the same process, one after the other, step by step: `train` calls `log` after every step, and there the
bare ones are timed on the batch that the step just had. Ours also crops, tokenises, draws, computes the loss, updates
with LAMB, checks and reports. With `micro_batch` it runs the towers forward once more: a quarter of its time, which the
peer does not spend. Peak memory is that of a process of its own that does nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from align.display.console import say
from align.durable.checkpoint import CheckpointFolder
from align.model.dual_encoder import DualEncoder
from align.model.preprocess import to_pixels
from align.model.tokenizer import pad
from align.training.batches.samples import SampleSources
from align.training.loop import Log, Monitoring, train
from align.training.ranks.process_group import Ranks
from align.training.state import State, new_state
from align.training.step import CPU_PART
from benchmarks.measure import Comparison, compare, cpu_s, in_process
from benchmarks.presets import PRESETS, Preset, encode, preset, recipe
from benchmarks.world import World

BATCH_SIZE = 256
#: The first step warms up and the last one ends the run: neither counts.
NUM_STEPS = 6

TowerInputs = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]


def bare(model: DualEncoder, parts: TowerInputs) -> None:
    """Forward of both towers, and backward from the sum of the cosines."""
    image_embeds, text_embeds = encode(model, parts)
    (image_embeds * text_embeds).sum().backward()


def in_parts(some: Preset, world: World, step: int, size: int, batch_size: int) -> TowerInputs:
    """A batch ready for the towers; which text goes with which image costs nothing."""
    batch = some.loader(recipe(world, num_steps=NUM_STEPS, batch_size=batch_size)).batch(step)
    ids = sorted(some.tokenizer.ids(batch.texts), key=len)
    return [
        (to_pixels(batch.images[rows]), batch.draws[rows], *pad(ids[rows], some.tokenizer.pad_id))
        for rows in (slice(start, start + size) for start in range(0, len(ids), size))
    ]


def train_in_memory(world: World, some: Preset, state: State, log: Log | None = None, **values: object) -> None:
    """The steps of `align pretrain` in this process."""
    how = recipe(world, batch_size=BATCH_SIZE, **values)
    train(
        state, how, Ranks(0, 1, torch.device("cpu")),
        samples=SampleSources(some.samples), tokenizer=some.tokenizer, monitoring=Monitoring(log),
        folder=CheckpointFolder(world.root / f"checkpoints-{time.monotonic_ns()}", keep=1),
    )  # fmt: skip


def run(world: World) -> list[Comparison]:
    rows = []
    for name in PRESETS:
        some = preset(world, name)
        say(f"benchmark: training steps, {name}")
        ours, (parts_s, whole_s) = _timed(world, some, (CPU_PART, BATCH_SIZE))
        accumulating, (one_pass_s,) = _timed(world, some, (CPU_PART,), micro_batch=CPU_PART)
        alone = {
            "ours": (_train, None), "accumulating": (_train, CPU_PART),
            "parts": (_bare, CPU_PART), "whole": (_bare, BATCH_SIZE),
        }  # fmt: skip
        of = {each: in_process(function, world, name, size)[1] for each, (function, size) in alone.items()}
        what = f"training step, {name}, batch {BATCH_SIZE}"
        again = f"training step, {name}, batch {BATCH_SIZE}, micro_batch {CPU_PART}"
        towers = f"bare forward + backward, in our parts of {CPU_PART}"
        for title, peer, ours_s, theirs_s, memory in (
            (what, towers, ours, parts_s, ("ours", "parts")),
            (what, "bare forward + backward, the batch at once", ours, whole_s, ("ours", "whole")),
            (again, f"{towers}, one pass", accumulating, one_pass_s, ("accumulating", "parts")),
        ):
            mine, other = (of[each] >> 20 for each in memory)
            rows.append(
                compare(title, peer, "pairs / CPU s", items=BATCH_SIZE, ours_s=ours_s, theirs_s=theirs_s,
                        note=f"peak memory {mine:,} against {other:,} MiB")
            )  # fmt: skip
    return rows


def _timed(
    world: World, some: Preset, sizes: tuple[int, ...], **values: object
) -> tuple[list[float], tuple[list[float], ...]]:
    """CPU seconds of each step, and of the bare passes in parts of each of the sizes."""
    state = new_state(some.model(), recipe(world, num_steps=NUM_STEPS))
    ours: list[float] = []
    theirs: tuple[list[float], ...] = tuple([] for _ in sizes)
    started = 0.0

    def log(_: dict[str, float], step: int) -> None:
        nonlocal started
        spent, counts = time.process_time() - started, 1 < step < NUM_STEPS
        for seconds, size in zip(theirs, sizes, strict=True) if counts else ():
            seconds.append(_bare_s(state.model, in_parts(some, world, step - 1, size, BATCH_SIZE)))
        if counts:
            ours.append(spent)
        started = time.process_time()

    train_in_memory(world, some, state, log, num_steps=NUM_STEPS, **values)
    return ours, theirs


def _bare_s(model: DualEncoder, parts: TowerInputs) -> float:
    model.zero_grad(set_to_none=True)
    took = cpu_s(partial(bare, model, parts))
    model.zero_grad(set_to_none=True)
    return took


def _train(world: World, name: str, micro_batch: int | None) -> None:
    _alone(lambda some: train_in_memory(
        world, some, new_state(some.model(), recipe(world, num_steps=2)), num_steps=2, micro_batch=micro_batch
    ), world, name)  # fmt: skip


def _bare(world: World, name: str, size: int) -> None:
    _alone(lambda some: bare(some.model(), in_parts(some, world, 0, size, BATCH_SIZE)), world, name)


def _alone(function: Callable[[Preset], object], world: World, name: str) -> None:
    torch.set_num_threads(1)
    function(preset(world, name))
