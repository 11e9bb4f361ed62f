"""Training steps of real towers: pairs a second, share of the peak, memory, by size of the batch; and what takes time.

A step is that of `align.training.loop`: gradients, update, values read one step later; its batch is in memory. MFU is
as `align.training.progress` has it: what is computed again is no part of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from align.config.pretrain import PretrainConfig
from align.model.dual_encoder import DualEncoder
from align.training.acceleration import accelerated
from align.training.batch import Batch
from align.training.process_group import Ranks
from align.training.progress import count_operations
from align.training.readings import Pending
from align.training.state import State, new_state
from align.training.step import compute_gradients
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.machine import attempt, matmul_tflops, published_tflops, release, synchronise
from benchmarks.gpu.scale import TOWERS, Scale
from benchmarks.gpu.texts import Words, words

#: Rows of the word embedding, the paper's (4.1).
VOCAB_SIZE = 100_000
#: A batch is not tried if it would take more than this share of the card's memory.
_FULL = 0.97
_KERNELS = 15


class Trainer:
    """A run of a profile at one batch size."""

    def __init__(self, scale: Scale, profile_name: str, batch_size: int, **recipe: Any) -> None:
        self.scale, self.config = scale, scale.model(profile_name)
        self.recipe: PretrainConfig = scale.recipe(profile_name, batch_size=batch_size, **recipe)
        self.words: Words = words(scale, self.config.max_tokens)
        torch.manual_seed(0)
        model = DualEncoder(self.config, VOCAB_SIZE if not scale.stand_in else self.words.tokenizer.vocab_size).train()
        model.gradient_checkpointing = self.recipe.gradient_checkpointing
        self.state: State = new_state(model.to(scale.device), self.recipe)
        self.batch = host_batch(scale, self.words, model, batch_size)
        self._earlier: Pending | None = None

    def step(self) -> None:
        """One step, whose values are read in the next."""
        model, optimiser = self.state.model, self.state.optimiser
        optimiser.set_learning_rate(1e-4)
        ranks = Ranks(0, 1, self.scale.device)
        gradients = compute_gradients(model, self.recipe, ranks, self.words.tokenizer, self.batch)
        optimiser.step()
        self.state.step += 1
        temperature = model.temperature
        pending = Pending(self.state.step, 1e-4, (*gradients, temperature, temperature))
        if self._earlier is not None:
            self._earlier.read()
        self._earlier = pending


def host_batch(scale: Scale, known: Words, model: DualEncoder, size: int) -> Batch:
    """Pictures of noise, pinned on a card, and texts of the longest length."""
    side = model.config.image_px
    images = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8)
    draws = torch.rand(size, model.vision_model.num_blocks)
    if not scale.stand_in:
        images, draws = images.pin_memory(), draws.pin_memory()
    return Batch(images, known.texts(size, num_words=model.config.max_tokens), draws)


@dataclass(frozen=True)
class Measured:
    """Of the steps of one batch size."""

    pairs_per_s: float
    peak_bytes: int


def measure(trainer: Trainer, seconds: float) -> Measured:
    """Two steps to warm up, then steps for so many seconds, one at least."""
    device = trainer.scale.device
    trainer.step(), trainer.step()
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < seconds:
        trainer.step()
        count += 1
    synchronise(device)
    spent = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return Measured(count * len(trainer.batch.texts) / spent, peak)


def operations_of_a_pair(trainer: Trainer) -> float:
    """Of a forward and a backward pass, which costs twice as much, with a text of the longest length."""
    counted = count_operations(trainer.config, trainer.state.model.vocab_size)
    return 3 * (counted.image + counted.text(trainer.config.max_tokens))


def run(scale: Scale, journal: Journal, profile_name: str) -> None:
    """Measures a profile's towers, and writes a row for each size of batch."""
    name = TOWERS[profile_name]
    reached = matmul_tflops(scale.device, scale.product, min(scale.step_s, 1.0))
    published = published_tflops(torch.cuda.get_device_name(scale.device)) if not scale.stand_in else None
    known = f"{published:,.0f} TFLOP/s by its data sheet" if published else "a peak that this page does not know"
    journal.note(
        f"MFU is the share of {known}; a product of two bfloat16 matrices of {scale.product:,} reached "
        f"{number(reached)} TFLOP/s here, of which the next column is the share."
    )
    operations: float | None = None
    good = scale.batches[0]
    for what in ("none", "cheap"):
        earlier: list[tuple[int, int]] = []
        for size in scale.batches:
            if journal.left_s() < 6 * scale.step_s + 4:
                journal.note(f"{name}, {what}: no time was left for batches of {size:,} pairs and more.")
                break
            if (needed := expected_bytes(earlier, size)) > _memory(scale) * _FULL:
                journal.note(f"{name}, {what}: {size:,} pairs would take {needed / 2**30:,.0f} GiB.")
                break
            found = attempt(partial(_measured, scale, profile_name, size, what))
            if found is None:
                journal.note(f"{name}, {what}: {size:,} pairs do not fit.")
                break
            measured, own = found
            operations = operations or own
            good = size if what == "none" else good
            tflops = measured.pairs_per_s * operations / 1e12
            earlier.append((size, measured.peak_bytes))
            journal.row(
                "steps", towers=name, recompute=what, batch=f"{size:,}", pairs_per_s=number(measured.pairs_per_s),
                step_ms=number(1e3 * size / measured.pairs_per_s),
                mfu=f"{100 * tflops / published:.1f} %" if published else "",
                of_product=f"{100 * tflops / reached:.1f} %",
                peak=f"{measured.peak_bytes / 2**30:,.1f} GiB" if measured.peak_bytes else "",
                a_pair=_of_a_pair(earlier),
            )  # fmt: skip
            release()
    if journal.left_s() < 8:
        journal.note(f"{name}: no time was left for the profiler.")
    elif attempt(partial(_profiled, scale, journal, profile_name, good)) is None:
        journal.note(f"{name}: too little memory for the profiler.")


def _measured(scale: Scale, profile_name: str, size: int, what: str) -> tuple[Measured, float]:
    trainer = Trainer(scale, profile_name, size, gradient_checkpointing=what)
    with accelerated(trainer.state.model, trainer.recipe, scale.device):
        return measure(trainer, scale.step_s), operations_of_a_pair(trainer)


def _memory(scale: Scale) -> float:
    return float("inf") if scale.stand_in else torch.cuda.get_device_properties(scale.device).total_memory


def expected_bytes(earlier: list[tuple[int, int]], size: int) -> float:
    """What a batch will take by the straight line through the last two; 0 where there are fewer."""
    if len(earlier) < 2:
        return 0.0
    (small, low), (large, high) = earlier[-2:]
    return high + (high - low) / (large - small) * (size - large)


def _of_a_pair(earlier: list[tuple[int, int]]) -> str:
    """Memory of one more pair, from the last two sizes."""
    if len(earlier) < 2 or not earlier[-1][1]:
        return ""
    (small, low), (large, high) = earlier[-2:]
    return f"{(high - low) / (large - small) / 2**20:,.0f} MiB"


def _profiled(scale: Scale, journal: Journal, profile_name: str, size: int) -> bool:
    """A table of what one step's time went to."""
    trainer = Trainer(scale, profile_name, size)
    on_card = scale.device.type == "cuda"
    with accelerated(trainer.state.model, trainer.recipe, scale.device):
        trainer.step(), trainer.step()
        synchronise(scale.device)
        activities = [ProfilerActivity.CUDA] if on_card else [ProfilerActivity.CPU]
        start = time.perf_counter()
        with profile(activities=activities) as profiler:
            trainer.step()
            synchronise(scale.device)
        wall_ms = 1e3 * (time.perf_counter() - start)
    spent = [
        (event.self_device_time_total if on_card else event.self_cpu_time_total, event.count, event.key)
        for event in profiler.key_averages()
    ]
    total = sum(each for each, _, _ in spent) or 1.0
    for micros, count, key in sorted(spent, reverse=True)[:_KERNELS]:
        journal.row(
            "profile", towers=TOWERS[profile_name], kernel=_short(key), calls=f"{count:,}", ms=number(micros / 1e3),
            share=f"{100 * micros / total:.1f} %",
        )  # fmt: skip
    calls = sum(count for each, count, _ in spent if each)
    journal.note(
        f"{TOWERS[profile_name]}, {size:,} pairs, `none`: {calls:,} {'kernels' if on_card else 'operations'} took "
        f"{number(total / 1e3)} ms of a step of {number(wall_ms)} ms, the profiler's own work included."
    )
    return True


def _short(key: str) -> str:
    plain = key.replace("|", "/").replace("`", "'")
    return plain if len(plain) <= 110 else f"{plain[:107]}..."
