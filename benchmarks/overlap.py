"""How much of the time that gradients travel is hidden by the backward pass, over a link that is slow on purpose.

Every message takes 20 ms more, and those that sum gradients follow each other, as on one cable. Two ways of the same
step: a bucket is sent as soon as its gradients are there, as we do, and all buckets after the backward pass. The loss's
own messages wait in both ways alike and are left out, since its result needs them.

Of the added time, what is not hidden is what a step waits for after its backward pass. It is said twice:

* as measured: what the step sleeps for at its end, for messages that would be there but for the 20 ms. Ranks that share
  cores compute more slowly, and a slower backward pass hides more;
* as if every rank had a core of its own: from the CPU time at which each message starts and the backward pass ends.

Buckets are small, since the demo's towers are: they would have two of the product's size.
"""

from __future__ import annotations

import functools
import json
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from align.config.model import ModelConfig
from align.display.console import say
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.training.batches.batch import Batch
from align.training.ranks import buckets
from align.training.ranks.buckets import GradientSums
from align.training.ranks.process_group import Ranks, launch
from align.training.step import compute_gradients
from benchmarks.measure import Comparison, compare
from benchmarks.presets import recipe
from benchmarks.world import World

DELAY_S = 0.02
WORLD_SIZES = (1, 2, 4)
#: Pairs of each rank: one part, so one backward pass of each tower.
SHARE = 64
BUCKET_BYTES = 1 << 20
#: Of each way, after one of each that does not count.
REPETITIONS = 4
_WORDS = ("a", "red", "green", "blue", "sofa", "bar", "at", "the", "top", "left", "of", "vendor's", "garden", "chair")


def run(world: World) -> list[Comparison]:
    rows = []
    for count in WORLD_SIZES:
        say(f"benchmark: gradients over a slow link, {count} ranks")
        out = world.root / f"overlap-{count}.json"
        launch(functools.partial(_measure, world, out), count, 1)
        found = json.loads(out.read_text())
        note = "wall-clock time; no message"
        if sent := found["messages"]:
            measured, own_core = (
                f"{100 * (1 - median(found[name]) / (sent * DELAY_S)):.0f} %" for name in ("slept_s", "left_s")
            )
            note = f"wall-clock time; {measured} of {sent} x 20 ms hidden, {own_core} if each had its own core"
        rows.append(
            compare(
                f"training step, demo's towers, {count} gloo ranks, {SHARE} pairs each, 20 ms on each message",
                "gradients sent after the backward pass", "pairs / s", items=count * SHARE,
                ours_s=found["overlapped_s"], theirs_s=found["after_s"], note=note,
            )
        )  # fmt: skip
    return rows


def _measure(world: World, out: Path, ranks: Ranks) -> None:
    buckets.BUCKET_BYTES = BUCKET_BYTES
    link = _SlowLink()
    config = world.params.section(ModelConfig)
    tokenizer = TextTokenizer.load(world.tokenizer, config.max_tokens)
    torch.manual_seed(0)
    model = DualEncoder(config, tokenizer.vocab_size).train()
    values, batch = recipe(world, num_steps=1, batch_size=SHARE * ranks.world_size), share(model, ranks, SHARE)
    seconds: dict[str, list[float]] = {"overlapped": [], "after": []}
    waited: dict[str, list[float]] = {"slept": [], "left": []}
    overlapping = GradientSums.last_backward
    for repetition in range(REPETITIONS + 1):
        for way in list(seconds)[:: 1 if repetition % 2 else -1]:
            after = way == "after"
            GradientSums.last_backward = (lambda *_: nullcontext()) if after else overlapping  # type: ignore[method-assign,assignment]  # a stand-in
            link.started_s.clear()
            link.slept_s = 0.0
            ranks.barrier()
            start = time.monotonic()
            compute_gradients(model, values, ranks, tokenizer, batch)
            if repetition:
                seconds[way].append(time.monotonic() - start)
                for name, value in () if after else (("slept", link.slept_s), ("left", link.left_s())):
                    waited[name].append(float(ranks.max(torch.tensor(value))))
    if ranks.leads:
        values: dict[str, Any] = {f"{name}_s": taken for name, taken in (seconds | waited).items()}
        out.write_text(json.dumps(values | {"messages": len(link.started_s)}))


class _SlowLink:
    """Delays every message of this process.

    Attributes:
        started_s: CPU time at which each message that sums gradients starts.
        slept_s: for these, after the backward pass.
    """

    def __init__(self) -> None:
        self.started_s: list[float] = []
        self.slept_s, self._free, self._ended_s = 0.0, 0.0, 0.0
        start_sum, finish = Ranks.start_sum, GradientSums.finish

        def noted_finish(sums: GradientSums) -> None:
            self._ended_s = time.thread_time()
            finish(sums)

        def slow_sum(ranks: Ranks, tensor: Tensor) -> _Delayed:
            self.started_s.append(time.thread_time())
            self._free = max(self._free, time.monotonic()) + DELAY_S
            return _Delayed(self, start_sum(ranks, tensor), self._free)

        Ranks.start_sum, GradientSums.finish = slow_sum, noted_finish  # type: ignore[method-assign]  # in this process
        for name in ("all_gather", "reduce_scatter"):
            setattr(dist, name, _later(getattr(dist, name)))

    def left_s(self) -> float:
        """What the last message of the step arrives later than its backward pass ends, by CPU time."""
        arrives = 0.0
        for started_s in self.started_s:
            arrives = max(arrives, started_s) + DELAY_S
        return max(0.0, arrives - self._ended_s) if self.started_s else 0.0


class _Delayed:
    """A message that arrives later than it does."""

    def __init__(self, link: _SlowLink, message: Any, arrives: float) -> None:
        self._link, self._message, self._arrives = link, message, arrives

    def wait(self) -> None:
        self._message.wait()
        rest_s = max(0.0, self._arrives - time.monotonic())
        time.sleep(rest_s)
        self._link.slept_s += rest_s


def _later(function: Any) -> Any:
    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(DELAY_S)
        return function(*arguments, **options)

    return slow


def share(model: DualEncoder, ranks: Ranks, num_pairs: int) -> Batch:
    """Other pairs on each rank. What they show changes no time; texts have 1 to 14 words."""
    generator = np.random.default_rng(ranks.rank)
    size = model.config.image_px
    images = torch.from_numpy(generator.integers(0, 256, (num_pairs, size, size, 3), dtype=np.uint8))
    texts = [" ".join(generator.permutation(_WORDS)[: 1 + row % len(_WORDS)]) for row in range(num_pairs)]
    draws = torch.from_numpy(generator.random((num_pairs, model.vision_model.num_blocks), dtype=np.float32))
    return Batch(images, texts, draws)
