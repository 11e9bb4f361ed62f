"""`kill -9` of a fine-tuning for classification: what resumes gives the bytes of an undisturbed run."""

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import pytest

from align.durable.checkpoint import CheckpointFolder
from align.evaluate.fine_tuning.recipe import IMAGENET, small
from tests.support import warm
from tests.support.tuned_suite import evaluate, write
from tests.support.tuning import content, tuned

#: Two phases of 9 steps.
LONGER = replace(small(IMAGENET, image_px=32, num_epochs=3, batch_size=8), checkpoint_every_steps=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return content(tuned(tmp_path_factory.mktemp("whole") / "run", LONGER))


@pytest.mark.parametrize("after", [2, 10])
def test_a_killed_run_resumes_to_the_same_bytes(after: int, whole: dict[str, bytes], tmp_path: Path) -> None:
    """Killed in the phase of the head, and in that of all layers."""
    process = multiprocessing.get_context("spawn").Process(target=tuned, args=(tmp_path / "killed", LONGER))
    process.start()
    saved = CheckpointFolder(tmp_path / "killed", keep=2)
    deadline = time.monotonic() + 120
    while not any(step >= after for step in saved.steps()):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    assert process.pid
    warm.kill(process.pid)
    process.join()
    assert process.exitcode == -9
    assert content(tuned(tmp_path / "killed", LONGER)) == whole


@pytest.mark.costs(4, "three evaluations with their figures, of which one is killed")
def test_a_killed_evaluation_resumes_its_fine_tuning_to_the_same_report(tmp_path: Path) -> None:
    """Killed in the second phase; the checkpoint is at the end of the first."""
    write(tmp_path, epochs=12)  # 9 steps a phase
    process = multiprocessing.get_context("spawn").Process(target=evaluate, args=(tmp_path, "killed"))
    process.start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("checkpoints/*/step-00000009.pt")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)
    assert process.pid
    warm.kill(process.pid)
    process.join()
    assert process.exitcode == -9 and not (tmp_path / "killed").exists()
    assert evaluate(tmp_path, "killed") == evaluate(tmp_path, "whole", "others") == 0
    for name in ("report.json", "ranks.parquet", "colours_fine_tuning.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
