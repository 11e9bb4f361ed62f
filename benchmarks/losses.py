"""ALIGN's loss in tiles against the naive one and open_clip's: CPU seconds and peak memory.

open_clip runs in our process. Its ClipLoss is the mean of both directions without smoothing. Peak
memory is that of a process which holds the embeddings and their gradients, above what it held with the embeddings
alone. The naive loss is not run where one of its matrices would take more than half of the machine's memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from open_clip.loss import ClipLoss, SigLipLoss  # the package itself exports only the first
from torch import Tensor
from torch.nn import functional as F

from align.display.console import say
from align.training.loss import align_loss, sigmoid_loss
from benchmarks.measure import Comparison, compare, interleaved
from benchmarks.world import World
from tests.support.own_process import forget_peak, in_process

WIDTH = 640
TIMED = (4096, 8192)
#: Batches of the table of memory, and the largest of them that open_clip's and the naive losses get.
BATCHES = (1024, 4096, 16_384, 65_536)
_LARGEST_NAIVE = 8192
REPETITIONS = 3


def naive(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    """The whole matrix through torch's cross-entropy, with label smoothing 0.1, both directions."""
    scores, target = images @ texts.T / temperature, torch.arange(len(images))
    return F.cross_entropy(scores, target, label_smoothing=0.1) + F.cross_entropy(scores.T, target, label_smoothing=0.1)


def clip(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    loss: Tensor = ClipLoss(cache_labels=True)(images, texts, 1 / temperature)
    return loss


def siglip(images: Tensor, texts: Tensor, temperature: Tensor) -> Tensor:
    loss: Tensor = SigLipLoss()(images, texts, 1 / temperature, torch.tensor(-10.0))
    return loss


LOSSES = {
    "ours": align_loss, "naive": naive, "open_clip's ClipLoss": clip,
    "ours, sigmoid": functools.partial(sigmoid_loss, bias=-10.0), "open_clip's SigLipLoss": siglip,
}  # fmt: skip


def run(world: World) -> list[Comparison]:
    torch.set_num_threads(1)
    del world
    rows = []
    for count in TIMED:
        say(f"benchmark: losses of {count:,} pairs")
        for ours, theirs in (("ours", "naive"), ("ours, sigmoid", "open_clip's SigLipLoss"),
                             ("ours", "open_clip's ClipLoss")):  # fmt: skip
            ours_s, theirs_s = interleaved(_passes(ours, count), _passes(theirs, count), REPETITIONS)
            rows.append(
                compare(f"{ours.replace('ours', 'loss')}, forward + backward, {count:,} pairs, D = {WIDTH}", theirs,
                        "pairs / CPU s", items=count, ours_s=ours_s, theirs_s=theirs_s)
            )  # fmt: skip
    for count in BATCHES:
        say(f"benchmark: memory of the losses, {count:,} pairs")
        ours_s, above = _process_of("ours", count)
        if count <= _LARGEST_NAIVE:
            theirs_s, theirs_above = _process_of("naive", count)
            against = f"{theirs_above >> 20:,} MiB"
        else:
            theirs_s, against = ours_s, f"not run: {count**2 * 4 / 1e9:,.0f} GB a matrix"
        rows.append(
            compare(f"loss, {count:,} pairs: peak above the inputs", "naive", "pairs / CPU s", items=count,
                    ours_s=[ours_s], theirs_s=[theirs_s],
                    note=f"{above >> 20:,} MiB against {against}; {ours_s:,.0f} s")
        )  # fmt: skip
    return rows


def _passes(name: str, count: int) -> Callable[[], None]:
    inputs = _inputs(count)

    def both_passes() -> None:
        for tensor in inputs:
            tensor.grad = None
        LOSSES[name](*inputs).backward()

    return both_passes


def _inputs(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    embeds = [F.normalize(torch.randn(count, WIDTH), dim=-1).requires_grad_() for _ in range(2)]
    return [*embeds, torch.tensor(0.02, requires_grad=True)]


def _process_of(name: str, count: int) -> tuple[float, int]:
    """CPU seconds of one forward and backward, and peak bytes above the inputs, in a process of its own."""
    held = in_process(_held, count)[1]
    seconds, peak = in_process(_measured, name, count)
    return seconds, peak - held


def _held(count: int) -> None:
    torch.set_num_threads(1)
    _passes("ours", 8)()  # what torch itself takes
    inputs = _inputs(count)
    forget_peak()
    del inputs


def _measured(name: str, count: int) -> None:
    torch.set_num_threads(1)
    _passes("ours", 8)()
    both_passes = _passes(name, count)
    forget_peak()
    both_passes()
