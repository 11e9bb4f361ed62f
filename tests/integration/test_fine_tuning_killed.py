"""`kill -9` of a fine-tuning for classification: what resumes gives the bytes of an undisturbed run."""

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from align.checkpoint import CheckpointFolder
from align.evaluate.fine_tuning.recipe import IMAGENET, small
from tests.support.forked import preload
from tests.support.tuning import content, tuned

#: Two phases of 15 steps.
LONGER = replace(small(IMAGENET, image_px=32, num_epochs=5, batch_size=8), checkpoint_every_steps=2)


@pytest.mark.parametrize("after", [2, 16])
def test_a_killed_run_resumes_to_the_same_bytes(after: int, tmp_path: Path) -> None:
    """Killed in the phase of the head, and in that of all layers."""
    preload()
    process = multiprocessing.get_context("forkserver").Process(target=tuned, args=(tmp_path / "killed", LONGER))
    process.start()
    saved = CheckpointFolder(tmp_path / "killed", keep=2)
    deadline = time.monotonic() + 120
    while not any(step >= after for step in saved.steps()):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9
    assert content(tuned(tmp_path / "killed", LONGER)) == content(tuned(tmp_path / "whole", LONGER))
