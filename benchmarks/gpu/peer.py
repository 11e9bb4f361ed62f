"""Our loss beside open_clip's, and our whole step beside open_clip's own, around the same towers.

Theirs is `train_one_epoch` of open_clip_train with its defaults (ClipLoss, AdamW) in bfloat16; its batches are ready
tensors on the host, pixels in float32. Ours is LAMB, starts from pictures as bytes, and tokenises.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from align.model.preprocess import to_pixels
from align.training.acceleration import accelerated
from align.training.batches.batch import Batch
from align.training.loss import align_loss
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.machine import attempt, release, synchronise
from benchmarks.gpu.scale import TOWERS, Scale
from benchmarks.gpu.steps import Measured, Trainer, accelerated_steps, measure

_WIDTH = 640
_REPETITIONS = 3
#: Of an epoch of open_clip, which waits for the device at the first and the last to log a loss; a run of it does so
#: every hundred.
_STEPS = 8


def run(scale: Scale, journal: Journal) -> None:
    """Rows of both tables; a note where open_clip is not installed."""
    try:
        from open_clip.loss import ClipLoss

        from benchmarks.open_clip_step import OpenClip
    except ImportError as error:
        journal.note(f"open_clip is not installed here ({error}), so ours has no peer.")
        return
    for count in scale.loss_pairs:
        ours = attempt(partial(_loss, scale, count, align_loss))
        theirs = attempt(partial(_loss, scale, count, lambda *own: ClipLoss(cache_labels=True)(*own[:2], 1 / own[2])))
        journal.row("losses", pairs=f"{count:,}", **_both(ours, theirs, "ms", lambda each: number(1e3 * each)))
        release()
    for name in TOWERS:
        _whole_steps(scale, journal, name, OpenClip)


def _whole_steps(scale: Scale, journal: Journal, name: str, peer: Callable[..., Any]) -> None:
    """Ours at every size first, then theirs: two optimisers would share the memory."""
    sizes = scale.batches[:3]
    if journal.left_s() < 2 * (len(sizes) * 3 * scale.step_s + 5):
        journal.note(f"{scale.towers(name)}: no time was left for whole steps.")
        return
    trainer: Trainer | None = Trainer(scale, name)
    ours = [attempt(partial(accelerated_steps, trainer, size)) for size in sizes]
    trainer = None
    release()
    theirs = _Theirs(scale, name, peer)
    for size, mine in zip(sizes, ours, strict=True):
        other = attempt(partial(theirs.measured, size))
        cells = _both(_pair(mine), _pair(other), "pairs_per_s", number)
        journal.row("open_clip", towers=scale.towers(name), batch=f"{size:,}", **cells)
        release()


def _pair(found: Measured | None) -> tuple[float, int] | None:
    return None if found is None else (found.pairs_per_s, found.peak_bytes)


def _both(
    ours: tuple[float, int] | None, theirs: tuple[float, int] | None, unit: str, show: Callable[[float], str]
) -> dict[str, str]:
    """Cells of a pair of results; an empty one means that it did not fit."""
    cells = {}
    for name, found in (("ours", ours), ("open_clip", theirs)):
        cells[f"{name}_{unit}"] = show(found[0]) if found else "does not fit"
        cells[f"{name}_peak"] = f"{found[1] / 2**20:,.0f} MiB" if found and found[1] else ""
    if ours and theirs:
        ratio = ours[0] / theirs[0]
        cells["ratio"] = f"{1 / ratio if unit == 'ms' else ratio:.2f}"
    else:
        cells["ratio"] = ""
    return cells


def _loss(scale: Scale, count: int, loss: Callable[..., Tensor]) -> tuple[float, int]:
    """Median seconds of forward and backward, and peak bytes above the inputs."""
    device = scale.device
    torch.manual_seed(0)
    inputs = [F.normalize(torch.randn(count, _WIDTH, device=device), dim=-1).requires_grad_() for _ in range(2)]
    inputs.append(torch.tensor(0.02, device=device, requires_grad=True))
    spent, before = [], 0
    for repetition in range(_REPETITIONS + 1):
        for tensor in inputs:
            tensor.grad = None
        synchronise(device)
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        loss(*inputs).backward()  # type: ignore[no-untyped-call]  # untyped in torch
        synchronise(device)
        if repetition:
            spent.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else 0
    return sorted(spent)[len(spent) // 2], peak


class _Theirs:
    """open_clip's steps around the towers of a profile, for `measure`."""

    def __init__(self, scale: Scale, name: str, peer: Callable[..., Any]) -> None:
        self.scale, self._trainer = scale, Trainer(scale, name)  # its towers and batches; its own steps are not made
        precision = "fp32" if scale.stand_in else "amp_bf16"
        self._peer = peer(
            self._trainer.state.model, self._trainer.words.tokenizer.pad_id, 1000,
            (f"--precision={precision}", f"--device={scale.device}"),
        )  # fmt: skip
        self._number, self._steps = 0, 1 if scale.stand_in else _STEPS
        self.batch: Batch

    def measured(self, size: int) -> Measured:
        batch = self._trainer.prepare(size).batch
        self.batch = replace(batch, texts=batch.texts * self._steps)
        ids, _ = self._trainer.words.padded(batch.texts)
        pixels = to_pixels(batch.images)
        if not self.scale.stand_in:
            ids, pixels = ids.pin_memory(), pixels.pin_memory()
        self._ready = pixels, ids
        with accelerated(self._trainer.state.model, self._trainer.recipe, self.scale.device):
            return measure(self, self.scale.step_s)

    def step(self) -> None:
        self._peer.step(self._number, *[self._ready] * self._steps)
        self._number += 1
