"""What torch.compile of the towers costs and brings: the same steps without and with it."""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch

from align.training.acceleration import accelerated
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.machine import attempt, release
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.steps import Trainer, measure

_PROFILE = "cc3m"


def run(scale: Scale, journal: Journal) -> None:
    """Two rows, or a note where the compiler fails; the section's time limit ends one that takes too long."""
    size = scale.batches[1]
    trainer = Trainer(scale, _PROFILE)
    for compiled in (False, True):
        if compiled:
            left = number(journal.left_s())
            journal.note(f"Compiling began with {left} s left; without a second row it did not end.")
        try:
            with _backend(scale):
                found = attempt(functools.partial(_steps, trainer, size, compiled))
        except Exception as error:  # noqa: BLE001  # whatever the compiler raises, the page says it
            first = (str(error).strip().splitlines() or [""])[0][:300]
            journal.note(f"torch.compile failed: {type(error).__name__}: {first}")
            return
        if found is None:
            journal.note(f"{size:,} pairs do not fit.")
            return
        pairs_per_s, first_s = found
        journal.row(
            "compile", towers=scale.towers(_PROFILE), batch=f"{size:,}", compile="on" if compiled else "off",
            pairs_per_s=number(pairs_per_s), first_step_s=number(first_s),
        )  # fmt: skip
        release()


def _steps(trainer: Trainer, size: int, compiled: bool) -> tuple[float, float]:
    """Pairs a second, and seconds of the first step."""
    trainer.prepare(size, compile=compiled)
    start = time.perf_counter()
    with accelerated(trainer.state.model, trainer.recipe, trainer.scale.device):
        trainer.step()
        first_s = time.perf_counter() - start
        return measure(trainer, trainer.scale.step_s).pairs_per_s, first_s


def _backend(scale: Scale) -> AbstractContextManager[Any]:
    """On a CPU all but the C++ compiler, which takes minutes."""
    if not scale.stand_in:
        return nullcontext()
    return mock.patch.object(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
