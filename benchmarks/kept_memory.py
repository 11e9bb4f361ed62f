"""Training steps on a CPU that keep freed memory, as a run does, against steps that return it, as glibc does.

With the demo's towers, at its own size and at the paper's, where pixels and activations are large blocks. Peak memory
is that of processes of their own.
"""

from __future__ import annotations

from contextlib import nullcontext

from align.config.model import ModelConfig
from align.display.console import say
from align.durable.memory import freed_memory_kept
from align.model.tokenizer import TextTokenizer
from align.training.batches.samples import SplitSamples
from align.training.step import CPU_PART
from benchmarks.measure import Comparison, compare, in_process, interleaved
from benchmarks.presets import Preset, preset
from benchmarks.train_loader import CROP_PX, RESIZE_PX, paper_shards
from benchmarks.training import bare, in_parts
from benchmarks.world import World

SIZES = ("64 px", f"{CROP_PX} px")
BATCH_SIZE = 2 * CPU_PART
REPETITIONS = 3


def _steps(world: World, size: str, keep: bool, num_steps: int = 2) -> None:
    """Makes pixels of bytes, forward, backward."""
    some = _at(world, size)
    model = some.model()
    with freed_memory_kept() if keep else nullcontext():
        for step in range(num_steps):
            bare(model, in_parts(some, world, step, CPU_PART, BATCH_SIZE))


def _at(world: World, size: str) -> Preset:
    if size == "64 px":
        return preset(world, "demo")
    paper = {"image_px": CROP_PX, "resize_px": RESIZE_PX}
    config = world.params.section(ModelConfig).model_copy(update=paper)
    tokenizer = TextTokenizer.load(world.tokenizer, config.max_tokens)
    return Preset(size, config, tokenizer, SplitSamples(paper_shards(world), RESIZE_PX))


def run(world: World) -> list[Comparison]:
    rows = []
    for size in SIZES:
        say(f"benchmark: freed memory kept, {size}")
        kept_s, given_back_s = interleaved(
            lambda size=size: _steps(world, size, True), lambda size=size: _steps(world, size, False), REPETITIONS
        )  # fmt: skip
        peaks = [in_process(_steps, world, size, keep, 3)[1] >> 20 for keep in (True, False)]
        rows.append(
            compare(
                f"training step of {BATCH_SIZE} pairs, {size}, freed memory kept", "returned", "pairs / CPU s",
                items=2 * BATCH_SIZE, ours_s=kept_s, theirs_s=given_back_s,
                note=f"peak memory {peaks[0]:,} against {peaks[1]:,} MiB",
            )
        )  # fmt: skip
    return rows
