"""Training in processes of their own: two equal one, signals, locks, and errors that cross the process border."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from align.config.recipe import Recipe
from align.errors import NonFiniteLossError
from align.pairs.formats.shards import read_manifest
from align.training.process_group import default_processes
from align.training.run import Plan, make_plan, run
from tests import training_data
from tests.conftest import ROOT
from tests.small_data import write_verdict
from tests.training_data import MODEL, RECIPE, pretrain_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return training_data.write(tmp_path_factory.mktemp("data"))


def plan(data: tuple[Path, Path], checkpoints: Path, recipe: Recipe) -> Plan:
    shards, tokenizer = data
    return make_plan(recipe, MODEL, initial=None, shards=shards, tokenizer=tokenizer, checkpoints=checkpoints)


def project(root: Path, data: tuple[Path, Path], recipe: dict[str, object]) -> list[str]:
    """A params file over the small data; returns the command that pre-trains with it."""
    yaml = YAML()
    values = yaml.load(ROOT / "params.yaml")
    values["model"] = MODEL.model_dump(mode="json")
    values["pretrain"] = recipe
    values["paths"] |= {"shards": str(data[0]), "tokenizer": str(data[1])}
    yaml.dump(values, root / "params.yaml")
    write_verdict(root / "reports/quality_shards", passed=True, data=read_manifest(data[0]).digest)
    return [sys.executable, "-m", "align.cli", "pretrain"]


@contextmanager
def started(command: list[str], directory: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, cwd=directory, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_checkpoint(root: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(root.glob("checkpoints/*/step-*.pt")):
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)


def test_two_processes_equal_one(data: tuple[Path, Path], tmp_path: Path) -> None:
    short = {"num_steps": 4, "warmup_steps": 1, "learning_rate": 0.005}  # small: rounding grows with the rate
    one = run(plan(data, tmp_path / "one", pretrain_config(**short)))
    two = run(plan(data, tmp_path / "two", pretrain_config(**short, num_processes=2)))
    # Weights without an influence on the loss (a shift that batch-norm takes out) follow rounding: compare the rest.
    for name, weight in one.model.state_dict().items():
        if weight.ndim > 1:
            torch.testing.assert_close(two.model.state_dict()[name], weight, atol=1e-3, rtol=1e-2, msg=name)
    for mine, theirs in zip(one.rows, two.rows, strict=True):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-4)
        assert mine["train/temperature"] == pytest.approx(theirs["train/temperature"], rel=1e-4)


def test_an_error_in_a_rank_reaches_the_caller(data: tuple[Path, Path], tmp_path: Path) -> None:
    broken = plan(data, tmp_path, pretrain_config(learning_rate=1e38, warmup_steps=7, num_processes=2))
    with pytest.raises(NonFiniteLossError, match=r"the loss is (nan|inf) at step"):
        run(broken)


def test_ranks_by_default_are_as_many_as_the_batch_divides_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert [default_processes(batch, 16) for batch in (16, 32, 128, 160, 256, 16 * 13)] == [1, 2, 8, 10, 8, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert default_processes(128, 16) == 2


@pytest.mark.parametrize("num_processes", [1, 2])
def test_sigterm_saves_and_a_second_trainer_is_refused(
    data: tuple[Path, Path], tmp_path: Path, num_processes: int
) -> None:
    recipe = RECIPE | {"num_steps": 100_000, "checkpoint_every_steps": 5, "num_processes": num_processes}
    command = project(tmp_path, data, recipe)
    with started(command, tmp_path) as first:
        wait_for_checkpoint(tmp_path)
        second = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert second.returncode == 1
        assert "another process trains this run" in second.stderr
        first.send_signal(signal.SIGTERM)
        _, errors = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "align: error: " in errors and "SIGTERM" in errors.splitlines()[-1]
    (folder,) = (tmp_path / "checkpoints").iterdir()
    steps = sorted(int(path.stem[5:]) for path in folder.glob("step-*.pt"))
    with started(command, tmp_path) as again:
        assert again.stderr is not None
        said = ""
        while "going on" not in said:
            said = again.stderr.readline()
            assert said, "the second run ended"
        assert f"step {steps[-1]:,} " in said
