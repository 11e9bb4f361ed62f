"""`align filter` under `kill -9` at seeded random moments: the same command then leaves the same bytes."""

import shutil
from pathlib import Path

import pytest

from tests.support import killing
from tests.support.small_filter import evaluation_set, noise, shards

SETTINGS = ("filter.num_frequent_ngrams=60", "engine.num_workers=2", "engine.memory_limit=200MB")
FULL = pytest.param(10, marks=pytest.mark.full)


@pytest.mark.parametrize("num_moments", [3, FULL])
def test_a_killed_filter_resumes_and_leaves_the_same_bytes(tmp_path: Path, num_moments: int) -> None:
    shards(tmp_path / "raw", 6)
    evaluation_set(tmp_path / "evaluation", noise(2))

    def command(name: str) -> list[str]:
        paths = {one: tmp_path / name / one for one in ("filtered", "reports", "runtime")}
        paths |= {one: tmp_path / one for one in ("raw", "evaluation", "policy")}
        settings = [*SETTINGS, *(f"paths.{one}={path}" for one, path in paths.items())]
        return ["filter", *(word for setting in settings for word in ("--set", setting))]

    whole_s = killing.run(command("whole"), tmp_path)
    killing.kill_and_resume(
        command("killed"), tmp_path, seed=3, num_moments=num_moments, whole_s=whole_s,
        anew=lambda: shutil.rmtree(tmp_path / "killed"),
    )  # fmt: skip
    for folder in ("filtered", "reports"):
        whole = killing.digests(tmp_path / "whole" / folder)
        assert whole
        assert killing.digests(tmp_path / "killed" / folder) == whole
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        ".filtered.lock", "filtered", "reports", "runtime",
    }  # fmt: skip
