"""Our loss beside open_clip's, and our whole step beside open_clip's own, around the same towers.

Theirs is `train_one_epoch` of open_clip_train with its defaults (ClipLoss, AdamW) in bfloat16; its batches are ready
tensors on the host, pixels in float32. Ours is LAMB, starts from pictures as bytes, and tokenises.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from align.model.preprocess import to_pixels
from align.training.loss import align_loss
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.machine import attempt, release, synchronise
from benchmarks.gpu.scale import TOWERS, Scale
from benchmarks.gpu.steps import Trainer, measure

_WIDTH = 640
_REPETITIONS = 3


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
        for size in scale.batches[1:4]:
            if journal.left_s() < 8 * scale.step_s + 6:
                journal.note(f"{TOWERS[name]}: no time was left for batches of {size:,} pairs and more.")
                break
            ours = attempt(partial(_ours, scale, name, size))
            release()
            theirs = attempt(partial(_theirs, scale, name, size, OpenClip))
            release()
            cells = _both(ours, theirs, "pairs_per_s", number)
            journal.row("open_clip", towers=TOWERS[name], batch=f"{size:,}", **cells)
            if ours is None or theirs is None:
                break


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


def _ours(scale: Scale, name: str, size: int) -> tuple[float, int]:
    found = measure(Trainer(scale, name, size), scale.step_s)
    return found.pairs_per_s, found.peak_bytes


def _theirs(scale: Scale, name: str, size: int, peer: Callable[..., object]) -> tuple[float, int]:
    trainer = Trainer(scale, name, size)  # towers and batch; its own steps are not made
    ids, _ = trainer.words.padded(trainer.batch.texts)
    pixels = to_pixels(trainer.batch.images)
    if not scale.stand_in:
        ids, pixels = ids.pin_memory(), pixels.pin_memory()
    precision = "fp32" if scale.stand_in else "amp_bf16"
    theirs = peer(
        trainer.state.model, trainer.words.tokenizer.pad_id, 1000,
        (f"--precision={precision}", f"--device={scale.device}", f"--batch-size={size}"),
    )  # fmt: skip
    steps = _Steps(theirs, trainer, (pixels, ids))
    found = measure(steps, scale.step_s)  # type: ignore[arg-type]  # it asks for no more than `_Steps` has
    return found.pairs_per_s, found.peak_bytes


class _Steps:
    """open_clip's steps, for `measure`."""

    def __init__(self, peer: object, trainer: Trainer, batch: tuple[Tensor, Tensor]) -> None:
        self.scale, self.batch = trainer.scale, trainer.batch
        self._peer, self._ready, self._number = peer, batch, 0

    def step(self) -> None:
        self._peer.step(self._number, self._ready)  # type: ignore[attr-defined]  # of open_clip_step.OpenClip
        self._number += 1
