"""Loader processes: the batches of threads, ends of every kind, and none that is left."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Self

import psutil
import pytest
import torch

from align.config.infrastructure import ClusterConfig
from align.errors import TrainingError
from align.model.tokenizer import TextTokenizer
from align.training.batches.batch import Augmentation, Batch, Sampling, Workers
from align.training.batches.index import read_outline
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.ranks.endings import RestartError
from align.training.run import run
from align.training.run_plan import Infrastructure
from tests.support import ROOT, training_data, warm
from tests.support.params import load_params
from tests.support.training_data import MODEL, RECIPE, TermAt, plan, pretrain_config
from tests.support.training_project import write_project

Data = tuple[Path, Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return training_data.write(tmp_path_factory.mktemp("data"))


def loader(data: Data, workers: Workers, extra: Data | None = None) -> TrainLoader:
    """The second of two ranks, from two sources."""
    index, more = (read_outline(source[0]).split("train") for source in (data, extra or data))
    return TrainLoader(
        SplitSamples(index, 36, on_corrupt="quarantine"), sampling=Sampling(seed=7, batch_size=16, shuffle_block=7),
        augmentation=Augmentation(32, 3, flip=True, phrase_dropout=0.5, tokenizer=TextTokenizer.load(data[1], 16)),
        extra=[(SplitSamples(more, 40), 0.5)], rank=1, world_size=2, workers=workers,
    )  # fmt: skip


def of_this_process() -> list[psutil.Process]:
    """The loader processes."""
    return [psutil.Process(child.pid) for child in multiprocessing.active_children()]


def num_leaders() -> int:
    """How many forks lead a session."""
    found = 0
    for process in warm.processes():
        with suppress(OSError):
            found += os.getsid(process.pid) == process.pid
    return found


def same(ours: Batch, theirs: Batch) -> bool:
    assert ours.tokens is not None and theirs.tokens is not None
    pairs = zip(ours.tensors(), theirs.tensors(), strict=True)
    return (
        all(torch.equal(one, other) for one, other in pairs)
        and ours.texts == theirs.texts
        and ours.tokens.lengths.tolist() == theirs.tokens.lengths.tolist()
        and ours.num_quarantined == theirs.num_quarantined
    )


def test_processes_make_what_threads_make_and_end_when_nobody_takes_it(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = training_data.write(tmp_path)
    tar = damaged[0] / "train/00000.tar"
    with tar.open("r+b") as file:
        for offset, size, *_ in read_outline(damaged[0]).split("train").read_offsets(0)[:4].tolist():  # not the texts
            file.seek(offset)
            file.write(b"\0" * size)
    threads = loader(damaged, Workers(num_threads=1), extra=data)
    expected = list(threads.batches(3, 10))
    lines = capsys.readouterr().err.splitlines()
    processes = loader(damaged, Workers(num_processes=3), extra=data)
    made = processes.batches(3, 1000)
    resource_tracker.ensure_running()
    while not (leaders := num_leaders()):  # it leads one, too
        time.sleep(0.01)
    shown = [next(made)]
    assert len(of_this_process()) == 3
    shown += islice(made, 6)
    assert num_leaders() == leaders + 3  # no Ctrl-C reaches them
    assert all(map(same, shown, expected)) and len(shown) == len(expected) == 7
    made.close()
    assert of_this_process() == []
    assert processes.num_quarantined == threads.num_quarantined > 0 and processes.wait_s > 0
    said = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said) == 1  # once for the tar, from however many
    assert all("quarantined" in line and "00000.tar: sample" in line for line in (*lines, *said))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_loader_process_that_dies_is_named_and_takes_the_others_with_it(data: Data, number: signal.Signals) -> None:
    with closing(loader(data, Workers(num_processes=2)).batches(0, 1000)) as batches:
        next(batches)
        first, second = sorted(of_this_process(), key=lambda process: process.pid)
        second.send_signal(number)
        with pytest.raises(RestartError, match=rf"^a loader process has died, .*\b{second.pid}\b.*; run the stage"):
            list(batches)
        assert not first.is_running() and not second.is_running()


@pytest.mark.costs(3, "a Python that imports torch alone")
def test_a_loader_process_imports_no_model() -> None:
    code = "import align.training.batches.loader, sys; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    imported = {name.partition(".")[0] for name in names.split()}
    assert "torch" in imported and not imported & {
        "transformers",
        "torchvision",
        "mlflow",
        "boto3",
        "prefect",
        "duckdb",
    }


@pytest.mark.costs(4, "three runs of two picture sizes")
def test_an_interrupted_run_with_phases_equals_an_uninterrupted_one_with_threads(data: Data, tmp_path: Path) -> None:
    large = MODEL.model_copy(update={"image_px": 36, "resize_px": 36})
    recipe = pretrain_config(phases=[{"share": 0.5, "image_px": 32, "max_tokens": 4}])
    processes = recipe.model_copy(update={"num_loader_processes": 1})
    whole = run(plan(data, tmp_path / "whole", recipe, model=large))
    with pytest.raises(TrainingError, match="stopped by SIGTERM after step 6 of 8"):
        run(plan(data, tmp_path / "parts", processes, model=large, log=TermAt(6)))
    assert of_this_process() == []
    resumed = run(plan(data, tmp_path / "parts", processes, model=large))
    assert whole is not None and resumed is not None and resumed.rows == whole.rows
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    assert of_this_process() == []


class KillTwice:
    """A log function: kills a loader process of the leading rank at one step, and that rank at another; each once.

    It is told what ends the rank, whose stderr is that of the process which it was forked from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            (self.folder / "why").write_text(f"{type(error).__name__}: {error}")

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        loaders = [child.pid for child in multiprocessing.active_children()]
        with (self.folder / "seen").open("a") as file:
            print(*loaders, file=file)
        for due, pids in ((2, loaders), (6, [os.getpid()])):  # the last step is told when no loader process is left
            if step == due and not (self.folder / str(due)).exists():
                (self.folder / str(due)).touch()
                os.kill(pids[0], signal.SIGKILL)


@pytest.mark.costs(6, "two ranks and their loader processes start three times")
def test_ranks_restart_after_a_loader_process_or_a_rank_was_killed(data: Data, tmp_path: Path) -> None:
    recipe = pretrain_config(num_processes=2, checkpoint_every_steps=2)
    cluster = load_params().section(ClusterConfig)
    whole = run(plan(data, tmp_path / "whole", recipe))
    killed = run(plan(
        data, tmp_path / "killed", recipe.model_copy(update={"num_loader_processes": 1}), log=KillTwice(tmp_path),
        infrastructure=Infrastructure(cluster=cluster),
    ))  # fmt: skip
    assert (tmp_path / "2").exists() and (tmp_path / "6").exists()
    assert (tmp_path / "why").read_text().startswith("RestartError: a loader process has died, perhaps for memory: ")
    assert whole is not None and killed is not None and killed.rows == whole.rows
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(killed.model.state_dict()[name], weight), name
    require_gone({int(pid) for pid in (tmp_path / "seen").read_text().split()})


def require_gone(pids: set[int]) -> None:
    """Waits a moment for processes that end because another one did."""
    deadline = time.monotonic() + 120
    assert pids
    while left := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def loaders_below(launcher: int) -> Iterator[int]:
    for process in psutil.Process(launcher).children(recursive=True):
        if os.getsid(process.pid) == process.pid:
            yield process.pid


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_launcher(data: Data, tmp_path: Path, number: signal.Signals) -> None:
    recipe = RECIPE | {"num_steps": 100_000, "checkpoint_every_steps": 5, "num_processes": 2, "num_loader_processes": 2}
    command = write_project(tmp_path, data, recipe)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as first:
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("checkpoints/*/step-*.pt")):
            assert time.monotonic() < deadline and first.poll() is None
            time.sleep(0.05)
        below = {process.pid for process in psutil.Process(first.pid).children(recursive=True)}
        assert len(list(loaders_below(first.pid))) == 4
        if number is signal.SIGTERM:
            os.killpg(first.pid, number)  # as a flow that is cancelled, or a terminal, sends it
        else:
            first.send_signal(number)
        _, errors = first.communicate(timeout=120)
    require_gone(below)
    if number is signal.SIGTERM:
        assert "SIGTERM" in errors.splitlines()[-1] and "Traceback" not in errors
        assert "a loader process has died" not in errors  # none died first
    again = write_project(tmp_path, data, recipe | {"num_steps": 100_000, "num_loader_processes": 0})
    with subprocess.Popen(again, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as second:
        assert second.stderr is not None
        for line in second.stderr:
            if re.search("resuming from step", line):
                break
        else:
            pytest.fail("it did not resume")
        second.terminate()
        second.communicate(timeout=120)
