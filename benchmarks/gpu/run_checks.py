"""Checks of whole runs on the device: one that was killed and resumed ends with the weights of one that was not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import torch

from align.training.run import Trained, run
from align.training.run_plan import TrainingPlan
from benchmarks.gpu.checks import Check, Found, relative
from benchmarks.gpu.scale import Scale
from tests.support import training_data
from tests.support.training_data import plan, pretrain_config

_STEPS, _KILLED_AFTER = 8, 5


class _KillAfter:
    """A log function that ends its own process, without a word, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _plan(data: tuple[Path, Path], checkpoints: Path, kill: bool = False) -> TrainingPlan:
    # float32: rounding to bfloat16 would take the weights of two equal runs as far apart as the bound
    recipe = pretrain_config(
        num_steps=_STEPS, log_every_steps=1, checkpoint_every_steps=2, validate_every_steps=4, precision="float32"
    )
    return plan(data, checkpoints, recipe, log=_KillAfter(_KILLED_AFTER) if kill else None)


def _train(the_plan: TrainingPlan) -> None:
    run(the_plan)


def _weights(trained: Trained | None) -> torch.Tensor:
    assert trained is not None
    return torch.cat([param.detach().flatten() for param in trained.model.parameters()])


def _resumed(scale: Scale) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        data = training_data.write(Path(folder) / "data")
        whole = _weights(run(_plan(data, Path(folder) / "whole")))
        checkpoints = Path(folder) / "killed"
        process = multiprocessing.get_context("spawn").Process(
            target=_train, args=(_plan(data, checkpoints, kill=True),)
        )
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the run that is killed after step {_KILLED_AFTER} ended with {process.exitcode}")
        saved = sorted(path.name for path in checkpoints.rglob("*.pt"))
        if not saved:
            raise RuntimeError("the killed run has left no checkpoint")
        resumed = _weights(run(_plan(data, checkpoints)))
    # kernels with atomic sums round differently from run to run, and LAMB divides by small numbers
    return Found(relative(resumed, whole), 1e-6 if scale.stand_in else 2e-2)


CHECKS = [Check("a run killed (SIGKILL) and resumed beside one that was not", _resumed)]
