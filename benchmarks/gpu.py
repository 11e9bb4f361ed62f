"""Training steps of real towers by size of the batch, what one step's time goes to, and open_clip's steps beside ours.

python -m benchmarks.gpu, on a machine with a CUDA card; prints tables in Markdown. Batches are in memory: pictures of
noise, texts of the longest length. MFU is as `align.training.progress` has it: what is computed again is no part of it.
A size that does not fit says so. Without a card tiny towers take its place on the CPU, so that the program itself can
be tried. Whether results are right on a card is the tests' part: `pytest -m gpu`.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from align.config import load_params
from align.config.model import ModelConfig
from align.config.params import profile_overrides
from align.config.recipe import PretrainConfig
from align.display.console import say
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer, fit_wordpiece, save_tokenizer
from align.pipeline.cards import card_named
from align.training.acceleration import accelerated
from align.training.batches.batch import Batch, Tokens
from align.training.progress import count_operations
from benchmarks.step import OpenClip, Ours, ready
from tests.support import ROOT
from tests.support.peers import build_beside_us
from tests.support.training_data import MODEL

#: Profile -> the names of its towers.
PROFILES = {"cc3m": "B3 + Mini", "coyo": "B7 + Base"}
BATCHES = (64, 128, 256, 512, 1024)
#: How long the steps of one batch size are measured, at least.
STEP_S = 1.5
#: Rows of the word embedding, the paper's (4.1).
VOCAB_SIZE = 100_000
#: Steps of an epoch of open_clip, which waits for the device at the first and the last; a run of it has hundreds.
EPOCH_STEPS = 8
_SENTENCE = "a red fox in the snow two grey owls on an old branch picture of green hills under heavy clouds"
_NUM_KERNELS = 15
#: What errors of other classes say when memory is short: the driver's and Triton's, cuDNN's, and cuBLAS's.
_NO_MEMORY = ("out of memory", "unable to find an engine", "alloc_failed")


class Measured(NamedTuple):
    """Of the steps of one batch size."""

    pairs_per_s: float
    peak_bytes: int


class Bench:
    """A profile's towers on the device, and batches for them.

    Attributes:
        card: whether the device is a card, and towers are the paper's.
    """

    def __init__(self, name: str, tokenizer_folder: Path) -> None:
        self.card = torch.cuda.is_available()
        self.device = torch.device("cuda", 0) if self.card else torch.device("cpu")
        self.batches, self.step_s = (BATCHES, STEP_S) if self.card else ((8, 16), 0.0)
        params = load_params(ROOT / "params.yaml", profile_overrides(name, ROOT))
        self.config = params.section(ModelConfig) if self.card else MODEL
        self.towers = PROFILES[name] if self.card else f"tiny ones for {PROFILES[name]}"
        save_tokenizer(
            fit_wordpiece([_SENTENCE], vocab_size=200, min_count=1), tokenizer_folder, max_tokens=self.config.max_tokens
        )
        self.tokenizer = TextTokenizer.load(tokenizer_folder, self.config.max_tokens)
        plain = {
            "micro_batch": None, "gradient_checkpointing": "none", "precision": "bfloat16",
            "num_processes": 1, "shard_weights": False,
        }  # fmt: skip
        self.recipe = params.section(PretrainConfig).model_copy(update=plain)

    def model(self) -> DualEncoder:
        """The same weights each time, on the device."""
        torch.manual_seed(0)
        vocab_size = VOCAB_SIZE if self.card else self.tokenizer.vocab_size
        return DualEncoder(self.config, vocab_size).train().to(self.device)

    def batch(self, size: int) -> Batch:
        """On the host, pinned for a card."""
        side, draw = self.config.image_px, random.Random(0)
        images = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8)
        draws = torch.rand(size, self.model().vision_model.num_blocks)
        if self.card:
            images, draws = images.pin_memory(), draws.pin_memory()
        words = _SENTENCE.split()
        texts = [" ".join(draw.choices(words, k=self.config.max_tokens)) for _ in range(size)]
        tokens = Tokens.of(self.tokenizer.ids(texts), self.tokenizer.pad_id, pin=self.card)
        return Batch(images, texts, draws, tokens)

    def measure(self, step: Callable[[], object], pairs: int) -> Measured:
        """Two steps to warm up, then steps for `step_s`, one at least."""
        step(), step()
        self.wait()
        if self.card:
            torch.cuda.reset_peak_memory_stats(self.device)
        start, count = time.perf_counter(), 0
        while not count or time.perf_counter() - start < self.step_s:
            step()
            count += 1
        self.wait()
        spent = time.perf_counter() - start
        return Measured(count * pairs / spent, torch.cuda.max_memory_allocated(self.device) if self.card else 0)

    def wait(self) -> None:
        """For what the device computes."""
        if self.card:
            torch.cuda.synchronize(self.device)


def fitting(work: Callable[[], Measured]) -> Measured | None:
    """What `work` returns, or None if the device has too little memory; its memory is free again then."""
    try:
        return work()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not (isinstance(error, torch.OutOfMemoryError) or any(sign in str(error).lower() for sign in _NO_MEMORY)):
            raise
        # the frames that hold the tensors are gone after this block
    finally:
        release()
    return None


def release() -> None:
    """Returns what nobody holds any more to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def ours(bench: Bench, size: int, how: str) -> Measured:
    """Our steps with CUDA's switches as the recipe has them."""
    recipe = bench.recipe.model_copy(update={"batch_size": size, "gradient_checkpointing": how})
    model, batch = bench.model(), bench.batch(size)
    model.gradient_checkpointing = recipe.gradient_checkpointing
    steps = Ours(model, recipe, bench.device)
    with accelerated(model, recipe, bench.device):
        return bench.measure(partial(steps.step, batch), size)


def theirs(bench: Bench, size: int) -> Measured:
    """open_clip's steps around the same towers, in bfloat16; its batches are ready tensors in pinned memory."""
    model, count = bench.model(), EPOCH_STEPS if bench.card else 1
    precision = "amp_bf16" if bench.card else "fp32"
    peer = OpenClip(model, bench.tokenizer.pad_id, (f"--precision={precision}", f"--device={bench.device}"))
    pixels, ids = ready(bench.batch(size), bench.tokenizer, bench.config.max_tokens)
    batch = (pixels.pin_memory(), ids.pin_memory()) if bench.card else (pixels, ids)
    with accelerated(model, bench.recipe, bench.device):
        return bench.measure(partial(peer.step, *[batch] * count), size * count)


def steps_table(bench: Bench) -> tuple[list[str], int]:
    """A row for each size of batch, without and with `cheap`; and the largest batch that fits without."""
    counted = count_operations(bench.config, bench.model().vocab_size)
    # of a forward and a backward pass, which costs twice as much
    operations = 3 * (counted.image + counted.text(bench.config.max_tokens))
    card = card_named(torch.cuda.get_device_name(bench.device)) if bench.card else None
    lines = ["| towers | computed again | pairs | pairs / s | step, ms | MFU | peak memory |", "|---|---|" + "--:|" * 5]
    largest = bench.batches[0]
    for how in ("none", "cheap"):
        for size in bench.batches:
            say(f"bench-gpu: {bench.towers}, {how}, {size:,} pairs")
            found = fitting(partial(ours, bench, size, how))
            if found is None:
                lines.append(f"| {bench.towers} | {how} | {size:,} | does not fit | | | |")
                break
            largest = size if how == "none" else largest
            mfu = f"{100 * found.pairs_per_s * operations / card.tflops / 1e12:.1f} %" if card else ""
            rate, step_ms = found.pairs_per_s, 1e3 * size / found.pairs_per_s
            row = f"| {bench.towers} | {how} | {size:,} | {rate:,.1f} | {step_ms:,.0f} | {mfu} | {_memory(found)} |"
            lines.append(row)
    return lines, largest


def peer_table(bench: Bench) -> list[str]:
    """Ours beside open_clip's steps, each alone on the device."""
    lines = ["| towers | pairs | ours, pairs / s | open_clip's | ratio | peak memory, ours | open_clip's |"]
    lines.append("|---|" + "--:|" * 6)
    for size in bench.batches[:3]:
        say(f"bench-gpu: {bench.towers}, {size:,} pairs, beside open_clip")
        mine, other = fitting(partial(ours, bench, size, "none")), fitting(partial(theirs, bench, size))
        rates = [f"{each.pairs_per_s:,.1f}" if each else "does not fit" for each in (mine, other)]
        ratio = f"{mine.pairs_per_s / other.pairs_per_s:.2f}" if mine and other else ""
        memory = " | ".join(_memory(each) for each in (mine, other))
        lines.append(f"| {bench.towers} | {size:,} | {rates[0]} | {rates[1]} | {ratio} | {memory} |")
    return lines


def _memory(found: Measured | None) -> str:
    return f"{found.peak_bytes / 2**30:,.1f} GiB" if found and found.peak_bytes else ""


def profile_table(bench: Bench, size: int) -> list[str]:
    """What one step's time went to, kernel by kernel (on a CPU: operation by operation)."""
    model, batch = bench.model(), bench.batch(size)
    steps = Ours(model, bench.recipe, bench.device)
    with accelerated(model, bench.recipe, bench.device):
        steps.step(batch), steps.step(batch)
        bench.wait()
        activity = ProfilerActivity.CUDA if bench.card else ProfilerActivity.CPU
        with profile(activities=[activity]) as profiler:
            start = time.perf_counter()  # after the profiler's start, which takes seconds
            steps.step(batch)
            bench.wait()
            wall_ms = 1e3 * (time.perf_counter() - start)
    spent = [
        (event.self_device_time_total if bench.card else event.self_cpu_time_total, event.count, event.key)
        for event in profiler.key_averages()
        if not bench.card or _is_kernel(event)
    ]
    total, calls = sum(each for each, _, _ in spent) or 1.0, sum(count for each, count, _ in spent if each)
    lines = [
        f"{bench.towers}, {size:,} pairs: {calls:,} kernels took {total / 1e3:,.1f} ms of a step of {wall_ms:,.1f} ms.",
        "", "| kernel | calls | ms | share |", "|---|--:|--:|--:|",
    ]  # fmt: skip
    for micros, count, key in sorted(spent, reverse=True)[:_NUM_KERNELS]:
        name = key.replace("|", "/").replace("`", "'")[:110]
        lines.append(f"| `{name}` | {count:,} | {micros / 1e3:,.2f} | {100 * micros / total:.1f} % |")
    return lines


def _is_kernel(event: Any) -> bool:
    """Whether the profiler's event is work of the card, and no name that a block of the program gave to it."""
    return bool(event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False))


def main() -> int:
    """Returns 2 where torch cannot use the card that is here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("profiles", nargs="*", default=list(PROFILES), help=f"of {', '.join(PROFILES)}; none: all")
    args = parser.parse_args()
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        say(
            f"bench-gpu: torch {torch.__version__} cannot use this machine's card: install PyPI's own build, without "
            "an --extra-index-url of CPU builds, or a newer driver"
        )
        return 2
    sys.path.insert(0, str(build_beside_us()))  # open_clip's training asks for a webdataset before ours
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no card; {os.cpu_count()} cores"
    print(f"{here}, torch {torch.__version__}, Python {platform.python_version()}.")
    for name in args.profiles:
        with tempfile.TemporaryDirectory(prefix="align-bench-gpu-") as folder:
            bench = Bench(name, Path(folder))
        lines, largest = steps_table(bench)
        for part in (lines, profile_table(bench, largest), peer_table(bench)):
            print("", *part, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
