"""Training steps of real towers: pairs a second, share of the peak, memory, by size of the batch; and what takes time.

A step is that of `align.training.loop`: gradients, update, values read one step later; its batch is in memory. MFU is
as `align.training.progress` has it: what is computed again is no part of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from align.config.recipe import PretrainConfig
from align.model import normalisation
from align.model.dual_encoder import DualEncoder
from align.training.acceleration import accelerated
from align.training.batches.batch import Batch
from align.training.progress import count_operations
from align.training.ranks.process_group import Ranks
from align.training.ranks.sharding import shard
from align.training.readings import Pending
from align.training.state import State, new_state
from align.training.step import compute_gradients
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.machine import attempt, matmul_tflops, published_tflops, release, synchronise
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.texts import Words, words

#: Rows of the word embedding, the paper's (4.1).
VOCAB_SIZE = 100_000
#: A batch is not tried if it would take more than this share of the card's memory.
_FULL = 0.97
_KERNELS = 15


class Trainer:
    """A profile's towers and their optimiser on the device; `prepare` gives them a batch and settings.

    Attributes:
        batch: on the host.
    """

    def __init__(self, scale: Scale, profile_name: str, ranks: Ranks | None = None, *, sharded: bool = False) -> None:
        self.scale, self.config, self.ranks = scale, scale.model(profile_name), ranks or Ranks(0, 1, scale.device)
        self.words: Words = words(scale, self.config.max_tokens)
        self._profile = profile_name
        torch.manual_seed(0)
        model = DualEncoder(self.config, self.words.tokenizer.vocab_size if scale.stand_in else VOCAB_SIZE).train()
        self.recipe: PretrainConfig = scale.recipe(profile_name, shard_weights=sharded)
        if sharded:
            shard(model, self.ranks)
        self.state: State = new_state(model if sharded else model.to(scale.device), self.recipe)
        self._earlier: Pending | None = None
        self.batch: Batch

    def prepare(self, batch_size: int, **recipe: Any) -> Trainer:
        """Another batch, and other values of the recipe."""
        model = self.state.model
        sharded = self.recipe.shard_weights
        self.recipe = self.scale.recipe(self._profile, batch_size=batch_size, shard_weights=sharded, **recipe)
        model.gradient_checkpointing = self.recipe.gradient_checkpointing
        self.batch, self._earlier = host_batch(self.scale, self.words, model, batch_size), None
        return self

    def step(self) -> None:
        """One step, whose values are read in the next."""
        model, optimiser = self.state.model, self.state.optimiser
        optimiser.set_learning_rate(1e-4)
        gradients = compute_gradients(model, self.recipe, self.ranks, self.words.tokenizer, self.batch)
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


class Steps(Protocol):
    """What is measured: ours, or a peer's."""

    scale: Scale
    batch: Batch

    def step(self) -> None:
        """One step."""


@dataclass(frozen=True)
class Measured:
    """Of the steps of one batch size."""

    pairs_per_s: float
    peak_bytes: int


def measure(trainer: Steps, seconds: float) -> Measured:
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
    name = scale.towers(profile_name)
    reached = matmul_tflops(scale.device, scale.product, min(scale.step_s, 1.0))
    published = published_tflops(torch.cuda.get_device_name(scale.device)) if not scale.stand_in else None
    known = f"{published:,.0f} TFLOP/s by its data sheet" if published else "a peak that this page does not know"
    journal.note(
        f"MFU is the share of {known}; a product of two bfloat16 matrices of {scale.product:,} reached "
        f"{number(reached)} TFLOP/s here, of which the next column is the share."
    )
    trainer = Trainer(scale, profile_name)
    operations = operations_of_a_pair(trainer)
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
            measured = attempt(partial(accelerated_steps, trainer, size, gradient_checkpointing=what))
            if measured is None:
                journal.note(f"{name}, {what}: {size:,} pairs do not fit.")
                break
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
    _without_triton(trainer, journal, name)
    if journal.left_s() < 8:
        journal.note(f"{name}: no time was left for the profiler.")
    elif attempt(partial(_profiled, trainer, journal, profile_name, good)) is None:
        journal.note(f"{name}: too little memory for the profiler.")


def _without_triton(trainer: Trainer, journal: Journal, name: str) -> None:
    """What Triton's kernels bring, where `align.model` has them."""
    scale, kernels = trainer.scale, getattr(normalisation, "kernels", None)
    if scale.stand_in or kernels is None or journal.left_s() < 8 * scale.step_s:
        return
    size = scale.batches[0]
    with kernels("plain"):
        measured = attempt(partial(accelerated_steps, trainer, size))
    if measured is not None:
        journal.note(f"{name}, {size:,} pairs, `none`, without Triton: {number(measured.pairs_per_s)} pairs / s.")


def accelerated_steps(trainer: Trainer, size: int, **recipe: Any) -> Measured:
    """Steps with CUDA's switches as the recipe has them."""
    trainer.prepare(size, **recipe)
    with accelerated(trainer.state.model, trainer.recipe, trainer.scale.device):
        return measure(trainer, trainer.scale.step_s)


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


def _profiled(trainer: Trainer, journal: Journal, profile_name: str, size: int) -> bool:
    """A table of what one step's time went to."""
    scale = trainer.prepare(size).scale
    on_card, name = scale.device.type == "cuda", scale.towers(profile_name)
    with accelerated(trainer.state.model, trainer.recipe, scale.device):
        trainer.step(), trainer.step()
        synchronise(scale.device)
        activities = [ProfilerActivity.CUDA] if on_card else [ProfilerActivity.CPU]
        with profile(activities=activities) as profiler:
            start = time.perf_counter()  # after the profiler's start, which takes seconds
            trainer.step()
            synchronise(scale.device)
            wall_ms = 1e3 * (time.perf_counter() - start)
    spent = [
        (event.self_device_time_total if on_card else event.self_cpu_time_total, event.count, event.key)
        for event in profiler.key_averages()
        if not on_card or kernel(event)
    ]
    total = sum(each for each, _, _ in spent) or 1.0
    for micros, count, key in sorted(spent, reverse=True)[:_KERNELS]:
        journal.row(
            "profile", towers=name, kernel=_short(key), calls=f"{count:,}", ms=number(micros / 1e3),
            share=f"{100 * micros / total:.1f} %",
        )  # fmt: skip
    calls = sum(count for each, count, _ in spent if each)
    journal.note(
        f"{name}, {size:,} pairs, `none`: {calls:,} {'kernels' if on_card else 'operations'} took "
        f"{number(total / 1e3)} ms of a step of {number(wall_ms)} ms, what recording costs included."
    )
    return True


def kernel(event: Any) -> bool:
    """Whether the profiler's event is work of the card, and no name that a block of the program gave to it."""
    return bool(event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False))


def _short(key: str) -> str:
    plain = key.replace("|", "/").replace("`", "'")
    return plain if len(plain) <= 110 else f"{plain[:107]}..."
