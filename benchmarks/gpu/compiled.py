"""What torch.compile of the towers costs and brings: the same steps without and with it."""

from __future__ import annotations

import time

from align.training.acceleration import accelerated
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.machine import attempt, release
from benchmarks.gpu.scale import TOWERS, Scale
from benchmarks.gpu.steps import Trainer, measure

_PROFILE = "cc3m"


def run(scale: Scale, journal: Journal) -> None:
    """Two rows, or a note where the compiler fails; the section's time limit ends one that takes too long."""
    size = scale.batches[min(2, len(scale.batches) - 1)]
    for compiled in (False, True):
        if compiled:
            journal.note(
                f"Compiling began with {number(journal.left_s())} s left; without a second row it did not end."
            )

        def steps(compiled: bool = compiled) -> tuple[float, float]:
            trainer = Trainer(scale, _PROFILE, size, compile=compiled)
            start = time.perf_counter()
            with accelerated(trainer.state.model, trainer.recipe, scale.device):
                trainer.step()
                first_s = time.perf_counter() - start
                return measure(trainer, scale.step_s).pairs_per_s, first_s

        try:
            found = attempt(steps)
        except Exception as error:  # noqa: BLE001  # whatever the compiler raises, the page says it
            first = (str(error).strip().splitlines() or [""])[0][:300]
            journal.note(f"torch.compile failed: {type(error).__name__}: {first}")
            return
        if found is None:
            journal.note(f"{size:,} pairs do not fit.")
            return
        pairs_per_s, first_s = found
        journal.row(
            "compile", towers=TOWERS[_PROFILE], batch=f"{size:,}", compile="on" if compiled else "off",
            pairs_per_s=number(pairs_per_s), first_step_s=number(first_s),
        )  # fmt: skip
        release()
